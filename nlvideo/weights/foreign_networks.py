"""What the names and shapes of a network's weights tell: layout, depth, width, and its non-local blocks with places."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nlvideo.models.resnet import DEPTHS, LAYOUTS, STAGES
from nlvideo.runtime.errors import UserError

AMBIGUOUS_MODES = ("embedded_gaussian", "dot_product")  # with the same weights


def network_values(state: Mapping[str, Tensor], *, flat: bool) -> dict[str, Any]:
    """Returns {key: value} of the config that weights by our names tell.

    block.mode is left out where they do not tell it, see AMBIGUOUS_MODES.

    Args:
        state: the weights.
        flat: of a 2D network, which has no layout.

    Raises:
        UserError: a depth or a layout that is none of ours.
    """
    depth = _depth(state)
    values: dict[str, Any] = {"model.depth": depth}
    if "conv1.weight" in state:
        values["model.width"] = len(state["conv1.weight"])
    if not flat:
        values["model.layout"] = _layout(state, depth)
        values |= _block(state, depth)
    return values


def _depth(state: Mapping[str, Tensor]) -> int:
    matches = [re.match(r"layer([1-4])\.(\d+)\.conv3\.weight", key) for key in state]
    found = [(int(match[1]), int(match[2])) for match in matches if match]
    counts = tuple(1 + max((i for layer, i in found if layer == stage), default=-1) for stage in (1, 2, 3, 4))
    for depth, blocks in DEPTHS.items():
        if blocks == counts:
            return depth
    known = "; ".join(f"{', '.join(map(str, blocks))} in R{depth}" for depth, blocks in DEPTHS.items())
    raise UserError(
        f"it has {', '.join(map(str, counts))} bottlenecks in {', '.join(STAGES)}, and the depths known have {known}."
    )


def _layout(state: Mapping[str, Tensor], depth: int) -> str:
    kernels = [
        [
            (_frames(state, f"layer{stage}.{i}.conv1.weight"), _frames(state, f"layer{stage}.{i}.conv2.weight"))
            for i in range(blocks)
        ]
        for stage, blocks in enumerate(DEPTHS[depth], 1)
    ]
    for name, layout in LAYOUTS.items():
        ours = [layout.block_kernels(stage, blocks) for stage, blocks in enumerate(DEPTHS[depth])]
        if layout.conv1 == _frames(state, "conv1.weight") and ours == kernels:
            return name
    raise UserError(f"its convolutions reach over time as in none of the layouts {', '.join(LAYOUTS)}.")


def _frames(state: Mapping[str, Tensor], key: str) -> int:
    """Returns the temporal size of a kernel, 1 for a 2D one."""
    weight = state.get(key)
    return weight.shape[2] if weight is not None and weight.ndim == 5 else 1


def _block(state: Mapping[str, Tensor], depth: int) -> dict[str, Any]:
    matches = [re.match(r"layer(\d)\.(\d+)_nl\.g\.weight", key) for key in state]
    places = sorted((int(match[1]), int(match[2])) for match in matches if match)
    if not places:
        return {"block.kind": "none"}
    first = f"layer{places[0][0]}.{places[0][1]}_nl"
    values: dict[str, Any] = {
        "block.kind": "non_local",
        "block.places": {f"r{depth}": [f"res{layer + 1}.{i}" for layer, i in places]},
        "block.bias": f"{first}.g.bias" in state,
        "block.norm": f"{first}.bn.weight" in state,
    }
    if f"{first}.w_f.weight" in state:
        values["block.mode"] = "concatenation"
    elif f"{first}.theta.weight" not in state:
        values["block.mode"] = "gaussian"
    return values
