"""Another project's file as a checkpoint of ours: its weights by our names, and what it says of its network.

What it says comes from the names and shapes of the weights, then from the config that the project keeps beside them,
then from the project's preset, which is assumed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nlvideo.runtime.errors import UserError
from nlvideo.weights.bounds import check_bounds
from nlvideo.weights.fitting import listed
from nlvideo.weights.foreign_files import weights_in
from nlvideo.weights.foreign_metadata import metadata_classes, metadata_values
from nlvideo.weights.foreign_networks import AMBIGUOUS_MODES, network_values
from nlvideo.weights.sources import SOURCES, recognise

CONVERTER = "tools/convert_weights.py FILE OUT.pt"


@dataclass(frozen=True)
class ImportedWeights:
    """Another project's file.

    Attributes:
        source: the project, a key of SOURCES.
        state: its weights by our names.
        values: {key: value} of what it says of its network, clips and colours.
        assumed: the keys among them that nothing in the file tells.
        classes: names, in the order of the outputs; None where the file has none.
    """

    source: str
    state: dict[str, Tensor]
    values: dict[str, Any]
    assumed: list[str]
    classes: list[str] | None

    @property
    def title(self) -> str:
        return f"{SOURCES[self.source].title} weights"

    @property
    def flat(self) -> bool:
        """Whether they are a 2D network's."""
        return SOURCES[self.source].flat


def import_weights(content: Any, source: str | None = None, mode: str | None = None) -> ImportedWeights:
    """Returns what another project's file holds.

    Args:
        content: everything that the file holds.
        source: the project, a key of SOURCES; None: recognised by the names of the weights.
        mode: block.mode where the user gives it, for files that do not tell it.

    Raises:
        UserError: no project that is known, keys that it does not have, a network that is none of ours, blocks whose
            mode nothing tells, or clips of a size that no network needs.
    """
    weights = weights_in(content)
    if source is None:
        source = recognise(weights)
    if source is None:
        raise UserError(f"it is neither an nlvideo checkpoint nor of a project that is known ({_held(content)}).")
    if source not in SOURCES:
        raise UserError(f"source={source!r} is unknown. Choose from: nlvideo, {', '.join(SOURCES)}.")
    state = _renamed(weights, source)
    values = network_values(state, flat=SOURCES[source].flat)
    stated = metadata_values(source, content)
    assumed: dict[str, Any] = {}
    if values.get("block.kind") == "non_local":
        values["block.subsample"] = _subsamples(weights, source)
        _settle_mode(values, stated, assumed, source, mode)
    elif not SOURCES[source].flat:
        stated = {key: value for key, value in stated.items() if not key.startswith("block.")}
    preset = SOURCES[source].preset(values.get("model.layout", ""), (assumed | stated | values).get("block.mode"))
    assumed |= preset
    classes = metadata_classes(content)
    if classes is not None and len(classes) != len(state.get("fc.weight", ())):
        classes = None
    told = stated | values
    check_bounds(assumed | told)
    return ImportedWeights(source, state, assumed | told, [key for key in assumed if key not in told], classes)


def _held(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"it holds: {type(content).__name__}"
    held = list(map(str, content))
    return f"it holds: {', '.join(held[:5])}{', ...' if len(held) > 5 else ''}"


def _renamed(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    rename, skipped = SOURCES[source].rename, SOURCES[source].skipped
    state, unknown = {}, []
    for key, value in weights.items():
        if re.fullmatch(skipped, key):
            continue
        ours = rename(key)
        if ours is None:
            unknown.append(key)
        else:
            state[ours] = value
    if unknown:
        raise UserError(f"{len(unknown)} keys are unknown for {source}: {listed(unknown)}.")
    if "fc.weight" in state:
        state["fc.weight"] = state["fc.weight"].flatten(1)  # Caffe2's test network has a 1x1x1 convolution
    for key in [key for key in state if key.endswith("_nl.out.weight")]:  # mmcv leaves the bias out before a norm
        if source == "mmaction2":
            state.setdefault(key.replace("weight", "bias"), torch.zeros(len(state[key])))
    return state


def _subsamples(weights: Mapping[str, Tensor], source: str) -> bool:
    pattern = SOURCES[source].subsampled
    return pattern is None or any(re.fullmatch(pattern, key) for key in weights)


def _settle_mode(
    values: dict[str, Any], stated: dict[str, Any], assumed: dict[str, Any], source: str, mode: str | None
) -> None:
    """Finds the mode of blocks whose weights do not tell it, and says in which of the dicts it belongs.

    Raises:
        UserError: nothing tells the mode.
    """
    if "block.mode" in values:
        stated.pop("block.mode", None)
        return
    if "block.mode" in stated:
        return
    known = SOURCES[source].modes.get(values["model.layout"])
    if mode in AMBIGUOUS_MODES and mode != known:
        stated["block.mode"] = mode
    elif known is not None:
        assumed["block.mode"] = known
    else:
        choices = " or ".join(f"block.mode={name}" for name in AMBIGUOUS_MODES)
        raise UserError(
            f"its blocks have theta and phi, and nothing in it tells their mode, of which {SOURCES[source].title} "
            f"publishes several: give {choices}, with model.pretrained, or to {CONVERTER}."
        )
