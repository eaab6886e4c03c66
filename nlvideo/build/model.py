"""From configuration to the network."""

import copy
from functools import partial

import torch

from nlvideo.config.schema import BlockConfig, DataConfig, ModelConfig
from nlvideo.models.global_context import GlobalContextBlock, SimplifiedNonLocalBlock
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.models.resnet import DEPTHS, STEMS, BlockMaker, VideoResNet, temporal_size
from nlvideo.runtime.errors import UserError

# block.kind: (class, keys of BlockConfig that are its arguments). block_makers applies places and group_frames.
BLOCKS = {
    "non_local": (NonLocalBlock, ("mode", "extent", "subsample", "pool", "scale", "bias", "norm", "init")),
    "simplified_non_local": (SimplifiedNonLocalBlock, ()),
    "global_context": (GlobalContextBlock, ("ratio", "pooling", "fusion", "norm")),
}
CONTEXT_BLOCKS = tuple(cls for cls, _ in BLOCKS.values())


def build_model(model: ModelConfig, block: BlockConfig, data: DataConfig, num_classes: int) -> VideoResNet:
    """Returns the network with newly initialised weights.

    Raises:
        UserError: an unknown choice, an option without effect, or clips too short for the stem.
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
        frozen=model.frozen_parts,
    )
    inserted = sum(isinstance(module, CONTEXT_BLOCKS) for module in network.modules())
    assert inserted == len(blocks), f"{inserted} blocks inserted, {len(blocks)} configured"
    return network


def block_makers(block: BlockConfig, depth: int) -> dict[str, BlockMaker]:
    """Returns {residual block, such as "res4.1": function from the number of channels to its context block}.

    Raises:
        UserError: an unknown kind, no places for the depth or repeated ones, or an option that the kind does not have.
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
            f"block.places.r{depth} is missing or empty (block.places has {', '.join(block.places) or 'nothing'}); "
            f"set block.places.r{depth}=[res4.1,...], or block=none."
        )
    if twice := ", ".join(sorted({place for place in places if places.count(place) > 1})[:4]):
        raise UserError(f"block.places.r{depth} names a place twice: {twice}.")
    cls, options = BLOCKS[block.kind]
    make = partial(cls, **{option: getattr(block, option) for option in options})
    makers: dict[str, BlockMaker] = dict.fromkeys(places, make)
    for stage, frames in block.group_frames.items():
        in_stage = [place for place in places if place.startswith(f"{stage}.")]
        if not in_stage:
            raise UserError(f"block.group_frames.{stage}={frames}: there is no block in {stage}.")
        makers |= dict.fromkeys(in_stage, partial(make, group_frames=frames))
    return makers


def _refuse_idle_options(block: BlockConfig) -> None:
    """Raises UserError for an option that is not at its default although the kind of block ignores it."""
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
    """Raises UserError if a block of the network cannot take clips of this size; runs on shapes alone."""
    with torch.no_grad():
        copy.deepcopy(network).to("meta").eval()(torch.empty(1, 3, num_frames, height, width, device="meta"))
