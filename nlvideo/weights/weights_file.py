"""A file of weights to start from, ours or another project's: what it holds, and what it says of its function."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from nlvideo.config.schema import BlockConfig
from nlvideo.data.lists.class_file import has_names
from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.weights.checkpoint_file import check_content, check_format, evaluation_weights, is_ours
from nlvideo.weights.foreign_files import read_weights_file
from nlvideo.weights.hub import local_weights
from nlvideo.weights.importers import import_weights

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


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights.

    Attributes:
        name: the file, as the user calls it.
        title: what kind it is.
        state: the weights, by our names.
        values: {key of FUNCTION_KEYS: value} of what the file says; a key it does not speak of is absent.
        assumed: the keys among them that nothing in the file tells.
        classes: names, in the order of the outputs; None where they have none.
        num_classes: None without a head, or if it is a 2D network's.
    """

    name: str
    title: str
    state: Mapping[str, Tensor]
    values: dict[str, Any]
    assumed: list[str] = field(default_factory=list)
    classes: list[str] | None = None
    num_classes: int | None = None

    @property
    def places(self) -> list[str]:
        """The residual blocks that have a context block."""
        if self.values.get("block.kind", "none") == "none":
            return []
        return self.values.get("block.places", {}).get(f"r{self.values.get('model.depth')}", [])


def read_weights(path: str | Path, mode: str | None = None, *, lazily: bool = False) -> WeightsFile:
    """Returns what a file of weights holds.

    Args:
        path: a checkpoint of ours, another project's file, or a published network; see local_weights().
        mode: block.mode where the user gives it, for files that do not tell it.
        lazily: read what it says alone; the weights are not verified.

    Raises:
        UserError: no such file, or none whose weights can be used; names model.pretrained.
    """
    try:
        content = read_weights_file(local_weights(path), lazily=lazily)
        if is_ours(content):
            (check_format if lazily else check_content)(content, path)
            return _file_of_ours(content, str(path))
        try:
            return imported_file(content, str(path), mode=mode)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    except UserFileNotFoundError as error:
        raise UserFileNotFoundError(f"model.pretrained: {error}") from None
    except UserError as error:
        raise UserError(f"model.pretrained: {error}") from None


def _file_of_ours(content: Mapping[str, Any], name: str) -> WeightsFile:
    classes = list(content["classes"])
    return WeightsFile(
        name,
        "nlvideo checkpoint",
        evaluation_weights(content),
        function_values(content["config"]),
        classes=classes if has_names(classes) else None,
        num_classes=len(classes),
    )


def imported_file(content: Any, name: str, source: str | None = None, mode: str | None = None) -> WeightsFile:
    """Returns what another project's file holds; the arguments are those of import_weights()."""
    found = import_weights(content, source, mode)
    return WeightsFile(
        name,
        f"{found.title}, inflated" if found.flat else found.title,
        found.state,
        {key: value for key, value in found.values.items() if key in FUNCTION_KEYS},
        assumed=[key for key in found.assumed if key in FUNCTION_KEYS],
        classes=None if found.flat else found.classes,
        num_classes=len(found.state["fc.weight"]) if "fc.weight" in found.state and not found.flat else None,
    )


def function_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {key: value} of the FUNCTION_KEYS that a config, stored as plain values, holds."""
    values = {}
    for key in FUNCTION_KEYS:
        node: Any = config
        for part in key.split("."):
            node = node.get(part, _ABSENT) if isinstance(node, Mapping) else _ABSENT
        if node is not _ABSENT:
            values[key] = node
    return values


_ABSENT = object()  # None is a value
