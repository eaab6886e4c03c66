"""Fills a network with pretrained weights: torchvision's (inflated), another project's, or those of a checkpoint."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nlvideo.config.schema import TrainConfig
from nlvideo.data.lists.class_file import has_names
from nlvideo.models.resnet import VideoResNet, context_names
from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.weights.adoption import assumptions, differing, refuse_blocks_without_place
from nlvideo.weights.inflate import inflate_state_dict
from nlvideo.weights.weights_file import WeightsFile, imported_file, read_weights


class Loaded(NamedTuple):
    """What became of a network's weights."""

    sentence: str  # what was loaded and what is new
    new_parts: list[str]  # names of the modules that keep their random weights: fc, and new blocks


def load_pretrained(network: VideoResNet, config: TrainConfig, classes: Sequence[str]) -> Loaded:
    """Loads model.pretrained into the network.

    The sentence names each value in which the config differs from the file, and what was assumed of the file. The head
    is kept if both have class names, the same ones in the same order, and model.keep_head is true.

    Args:
        network: of the config.
        config: with model.pretrained: "imagenet" (torchvision's IMAGENET1K_V1 weights), or a file.
        classes: of the training list.

    Raises:
        UserError: the file does not exist or could not be downloaded, is something else, or holds the weights of
            another network.
    """
    model = config.model
    assert model.pretrained is not None
    if model.pretrained == "imagenet":
        file = imported_file(_download_imagenet(model.depth), "imagenet", "torchvision")
    else:
        file = read_weights(model.pretrained, config.block.mode if config.block.kind == "non_local" else None)
    refuse_blocks_without_place(config, file)
    new_head = _why_new_head(file, list(classes), model.keep_head)
    state = {key: value for key, value in file.state.items() if new_head is None or not key.startswith("fc.")}
    new_blocks = _load_all_but_new(network, state, file.name)
    head = "its head kept" if new_head is None else f"a new head for {len(classes)} classes{new_head}"
    said = [f"{file.name}: {file.title}; {head}; {len(new_blocks) or 'no'} new blocks"]
    for title, lines in (("differs", differing(config, file)), ("assumed", assumptions(config, file))):
        said += [f"{title}: {', '.join(lines)}"] if lines else []
    return Loaded("; ".join(said), new_blocks + ([] if new_head is None else ["fc"]))


def _why_new_head(file: WeightsFile, classes: list[str], keep: bool) -> str | None:
    """Returns why the head is new, in brackets, or nothing where it goes without saying; None: it is kept."""
    if file.num_classes is None:
        return ""
    if not keep:
        return " (model.keep_head=false)"
    if file.classes is None:
        return f" (the {file.num_classes} classes of the checkpoint have no names)"
    if not has_names(classes):
        return " (which have no names)"
    if sorted(file.classes) == sorted(classes) and file.classes != classes:
        return " (the checkpoint has the same classes in another order)"
    return None if file.classes == classes else f" (the checkpoint has {file.num_classes} other classes)"


def _load_all_but_new(network: VideoResNet, state: Mapping[str, Tensor], source: str) -> list[str]:
    """Loads the state, from which the head and whole blocks may be missing, and returns the names of new blocks."""
    try:
        state = inflate_state_dict(state, network.state_dict())
    except ValueError as error:
        raise UserError(f"model.pretrained={source} does not fit the network: {error}.") from None
    missing, unexpected = network.load_state_dict(state, strict=False)
    new_blocks = [name for name in context_names(network) if not any(key.startswith(f"{name}.") for key in state)]
    lost = [
        key
        for key in missing
        if not key.startswith(("fc.", *(f"{name}." for name in new_blocks))) and not key.endswith("num_batches_tracked")
    ]
    if unexpected or lost:
        raise UserError(
            f"model.pretrained={source} is of another network: {_listing(lost)} of this network are not in it, "
            f"{_listing(unexpected)} in it are not of this network. Nothing but fc.* and new blocks may be missing."
        )
    return new_blocks


def check_blocks_can_learn(network: VideoResNet, new_parts: Sequence[str] = ()) -> None:
    """Raises UserError for a new block that is frozen, or whose norm is at zero gain: it would stay the identity."""
    for name, place in zip(context_names(network), network.places, strict=True):
        if name in new_parts and place.split(".")[0] in network.frozen:
            raise UserError(
                f"model.freeze freezes the new block at {place}, which could never learn: leave "
                f"{place.split('.')[0]} out, or use a model.pretrained whose blocks are trained."
            )
        norm = getattr(network.get_submodule(name), "bn", None)
        if isinstance(norm, torch.nn.BatchNorm3d) and not norm.weight.requires_grad and not norm.weight.any():
            raise UserError(
                f"model.frozen_bn=true freezes the zero gain of the new block {name}, which could never learn: "
                "use block.norm=false, or a model.pretrained whose blocks are trained."
            )


def _download_imagenet(depth: int) -> Mapping[str, Tensor]:
    from torchvision.models import ResNet50_Weights, ResNet101_Weights

    known: dict[int, Any] = {50: ResNet50_Weights.IMAGENET1K_V1, 101: ResNet101_Weights.IMAGENET1K_V1}
    weights = known.get(depth)
    if weights is None:
        raise UserError(f"model.pretrained=imagenet has no weights for model.depth={depth}; it has 50 and 101.")
    file = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(weights.url)
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise UserFileNotFoundError(
            f"model.pretrained=imagenet: {weights.url} could not be downloaded ({error}). Fetch it elsewhere and put "
            f"it at {file}, or use model.pretrained=PATH; model.pretrained=null starts from random weights."
        ) from None


def _listing(keys: list[str]) -> str:
    return f"{len(keys)} keys" + (f" ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else "")
