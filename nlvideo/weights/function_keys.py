"""The keys of a config that make a network compute what it computes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from nlvideo.config.schema import BlockConfig

BLOCK_KEYS = tuple(f"block.{option.name}" for option in dataclasses.fields(BlockConfig))
# The size of the pictures, which training and validation share: taken together, or not at all.
PICTURE_KEYS = (
    *("data.crop_size", "data.scale_range"),
    *("data.test.short_side", "data.test.crop_size", "data.test.num_crops"),
)
# What makes a network compute what it computed: the keys that a new run takes over.
FUNCTION_KEYS = (
    *(f"model.{name}" for name in ("layout", "depth", "width", "stem")),
    *BLOCK_KEYS,
    *(f"data.{name}" for name in ("mean", "std", "num_frames", "frame_stride", "clip_fps")),
    *PICTURE_KEYS,
)


def function_values(config: Mapping[str, Any], more: Sequence[str] = ()) -> dict[str, Any]:
    """Returns {key: value} of the FUNCTION_KEYS, and `more`, that a config, stored as plain values, holds."""
    values = {}
    for key in (*FUNCTION_KEYS, *more):
        node: Any = config
        for part in key.split("."):
            node = node.get(part, _ABSENT) if isinstance(node, Mapping) else _ABSENT
        if node is not _ABSENT:
            values[key] = node
    return values


_ABSENT = object()  # None is a value
