"""Video networks with context blocks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from nlvideo.models.non_local import NonLocalBlock
from nlvideo.models.resnet import STEMS, VideoResNet, temporal_size

if TYPE_CHECKING:
    from nlvideo.config import BlockConfig, DataConfig, ModelConfig

BLOCKS = ("none", "non_local")


def block_places(block: BlockConfig, depth: int) -> tuple[str, ...]:
    """Returns the residual blocks that get a context block, e.g. ("res3.1", "res4.1")."""
    if block.kind == "none":
        return ()
    places = block.places.get(f"r{depth}")
    if not places:
        raise ValueError(
            f"block.places says nothing for depth {depth} (it has {', '.join(block.places) or 'nothing'}); "
            f"give block.places.r{depth}=[res4.1,...] or choose block=none."
        )
    return tuple(places)


def build_model(model: ModelConfig, block: BlockConfig, data: DataConfig, num_classes: int) -> VideoResNet:
    """Returns the network with freshly initialised weights.

    Raises:
        ValueError: a choice that does not exist, or clips too short for the stem.
    """
    if block.kind not in BLOCKS:
        raise ValueError(f"block.kind={block.kind!r} is unknown. Choose from: {', '.join(BLOCKS)}.")
    if model.stem in STEMS and temporal_size(STEMS[model.stem], data.num_frames) < 1:
        raise ValueError(f"data.num_frames={data.num_frames} is too short for model.stem={model.stem}.")
    make_block = partial(
        NonLocalBlock,
        mode=block.mode,
        extent=block.extent,
        subsample=block.subsample,
        pool=block.pool,
        scale=block.scale,
        norm=block.norm,
        init=block.init,
    )
    network = VideoResNet(
        model.layout,
        model.depth,
        model.stem,
        num_classes,
        width=model.width,
        dropout=model.dropout,
        frozen_bn=model.frozen_bn,
        head_window=-(-data.crop_size // 32),
        places=block_places(block, model.depth),
        make_block=make_block,
    )
    inserted = sum(isinstance(module, NonLocalBlock) for module in network.modules())
    assert inserted == len(network.places), f"{inserted} blocks inserted, {len(network.places)} asked for"
    return network
