"""Builds the network that a config describes."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from nlvideo.config.schema import BlockConfig, DataConfig, ModelConfig
from nlvideo.models.global_context import GlobalContextBlock, SimplifiedNonLocalBlock
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.models.resnet import DEPTHS, STEMS, VideoResNet, temporal_size
from nlvideo.runtime.errors import UserError

# kind: (class, the keys of BlockConfig that it takes); group_frames and places are the builder's own.
BLOCKS = {
    "non_local": (NonLocalBlock, ("mode", "extent", "subsample", "pool", "scale", "bias", "norm", "init")),
    "simplified_non_local": (SimplifiedNonLocalBlock, ()),
    "global_context": (GlobalContextBlock, ("ratio", "pooling", "fusion", "norm")),
}
CONTEXT_BLOCKS = tuple(cls for cls, _ in BLOCKS.values())


def build_model(model: ModelConfig, block: BlockConfig, data: DataConfig, num_classes: int) -> VideoResNet:
    """Returns the network with freshly initialised weights.

    Raises:
        UserError: a choice that does not exist or has no effect, or clips too short for the stem.
    """
    if model.stem in STEMS and temporal_size(STEMS[model.stem], data.num_frames) < 1:
        raise UserError(f"data.num_frames={data.num_frames} is too short for model.stem={model.stem}.")
    blocks = block_makers(block, model.depth)
    network = VideoResNet(
        model.layout,
        model.depth,
        model.stem,
        num_classes,
        width=model.width,
        dropout=model.dropout,
        frozen_bn=model.frozen_bn,
        head_window=-(-data.crop_size // 32),
        blocks=blocks,
        inside=block.inside,
        activation_checkpointing=model.activation_checkpointing,
    )
    inserted = sum(isinstance(module, CONTEXT_BLOCKS) for module in network.modules())
    assert inserted == len(blocks), f"{inserted} blocks inserted, {len(blocks)} asked for"
    return network


def block_makers(block: BlockConfig, depth: int) -> dict[str, Callable[[int], nn.Module]]:
    """Returns {residual block as "res4.1": what makes its context block from the number of channels}.

    Raises:
        UserError: an unknown kind, no or repeated places for the depth, or an option that the kind does not have.
    """
    if block.kind != "none" and block.kind not in BLOCKS:
        raise UserError(f"block.kind={block.kind!r} is unknown. Choose from: none, {', '.join(BLOCKS)}.")
    if depth not in DEPTHS:
        raise UserError(f"depth={depth!r} is unknown. Choose from: {', '.join(map(str, DEPTHS))}.")
    _refuse_idle_options(block)
    if block.kind == "none":
        return {}
    places = block.places.get(f"r{depth}")
    if not places:
        raise UserError(
            f"block.places says nothing for depth {depth} (it has {', '.join(block.places) or 'nothing'}); "
            f"give block.places.r{depth}=[res4.1,...] or choose block=none."
        )
    if len(set(places)) != len(places):
        raise UserError(f"block.places.r{depth} names a place twice: {', '.join(places)}.")
    cls, options = BLOCKS[block.kind]
    makers = {place: partial(cls, **{option: getattr(block, option) for option in options}) for place in places}
    for stage, frames in block.group_frames.items():
        if not any(place.startswith(f"{stage}.") for place in places):
            raise UserError(f"block.group_frames.{stage}={frames}: no block stands in {stage}.")
        makers |= {p: partial(makers[p], group_frames=frames) for p in places if p.startswith(f"{stage}.")}
    return makers


def _refuse_idle_options(block: BlockConfig) -> None:
    """Raises UserError for an option that differs from its default although the kind of block does not have it."""
    cls, options = BLOCKS.get(block.kind, (None, ()))
    taken = {*options, "kind"}
    if cls is not None or not any(block.places.values()):
        taken |= {"places"}
    if cls is not None:
        taken |= {"inside"}
    if cls is NonLocalBlock:
        taken |= {"group_frames"}
    for field, default in vars(type(block)()).items():
        value = getattr(block, field)
        if field not in taken and value != default:
            raise UserError(
                f"block.{field}={value} has no effect on block.kind={block.kind}, which takes "
                f"{', '.join(options) or 'no options'}."
            )


def check_clip(network: VideoResNet, num_frames: int, height: int, width: int) -> None:
    """Raises UserError if the network cannot take clips of this size; shapes are followed, nothing is computed."""
    with torch.no_grad():
        copy.deepcopy(network).to("meta").eval()(torch.empty(1, 3, num_frames, height, width, device="meta"))
