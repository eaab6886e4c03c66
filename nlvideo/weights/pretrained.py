"""Fills a network with pretrained weights: torchvision's (inflated) or those of an nlvideo checkpoint."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nlvideo.models.resnet import VideoResNet, context_names
from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.weights.checkpoint_file import check_content, evaluation_weights, is_ours, read_tensor_file
from nlvideo.weights.inflate import inflate_state_dict

CONVERTER = "tools/convert_weights.py SOURCE FILE OUT.pt (SOURCE: pyslowfast, mmaction2, caffe2, torchvision, timm)"


class Loaded(NamedTuple):
    """What became of a network's weights."""

    sentence: str  # what was loaded and what is new
    new_parts: list[str]  # names of the modules that keep their random weights: fc, and new blocks


def load_pretrained(
    network: VideoResNet, source: str, depth: int, classes: list[str], keep_head: bool = True
) -> Loaded:
    """Loads `source` into the network.

    Args:
        source: "imagenet" (torchvision's IMAGENET1K_V1 weights), or a path: a torchvision ResNet's state dict, which
            is inflated, or an nlvideo checkpoint, whose head is kept if its classes are `classes` and `keep_head`.

    Raises:
        UserError: the file does not exist or could not be downloaded, is something else, or holds the weights of
            another network.
    """
    content = _download_imagenet(depth) if source == "imagenet" else _read(source)
    if is_ours(content):
        check_content(content, source)
        _refuse_other_function(network, content["config"].get("block", {}), source)
        state, kind = evaluation_weights(content), "nlvideo checkpoint"
        keep_head = keep_head and content["classes"] == classes
    else:
        state, kind = _torchvision_state(content, source), "2D ResNet weights, inflated"
        keep_head = False
    if not keep_head:
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    new_blocks = _load_all_but_new(network, state, source)
    head = "its head kept" if keep_head else f"a new head for {len(classes)} classes"
    if is_ours(content) and content["classes"] != classes:
        head += f" (the checkpoint has {len(content['classes'])} other classes)"
    sentence = f"{source}: {kind}; {head}; {len(new_blocks) or 'no'} new blocks"
    return Loaded(sentence, new_blocks + ([] if keep_head else ["fc"]))


def _read(source: str) -> Any:
    try:
        return read_tensor_file(source)
    except UserFileNotFoundError:
        raise
    except UserError as error:
        raise UserError(f"model.pretrained: {error} Convert another project's weights first: {CONVERTER}.") from None


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


def _refuse_other_function(network: VideoResNet, block: Mapping[str, Any], source: str) -> None:
    """Raises UserError if the checkpoint's blocks have the same weights as the network's but compute otherwise."""
    if block.get("kind") != "non_local":
        return
    for name in context_names(network):
        module = network.get_submodule(name)
        for option in ("mode", "extent", "subsample", "pool", "scale"):
            ours = getattr(module, option, None)
            if option in block and ours is not None and ours != block[option]:
                raise UserError(
                    f"model.pretrained={source} was trained with block.{option}={block[option]}, this network has "
                    f"{ours}; the same weights compute another function."
                )


def _torchvision_state(content: Any, source: str) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values()):
        state = {str(key).removeprefix("module."): value for key, value in content.items()}
        if "conv1.weight" in state:
            return state
    keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
    raise UserError(
        f"model.pretrained={source} is neither an nlvideo checkpoint nor a torchvision ResNet (it holds: {keys}). "
        f"Convert another project's weights first: {CONVERTER}."
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
