"""Inserts context blocks into networks that were not written for them."""

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from nlvideo.runtime.errors import UserError

CHILD = "context_block"  # name of the block in the submodule whose output it takes

Network = TypeVar("Network", bound=nn.Module)


def insert_blocks(network: Network, blocks: Mapping[str, nn.Module]) -> Network:
    """Returns the same network, with each block applied to the output of the named submodule.

    For example insert_blocks(net, {"layer3.4": block}). The output is (N, C, H, W) or (N, C, T, H, W). Existing keys of
    the state dict do not change; the block's are "layer3.4.context_block.*". The non-local paper's Mask R-CNN (Sec. 6)
    is {"backbone.body.layer3.4": NonLocalBlock(1024)} in torchvision's maskrcnn_resnet50_fpn.

    Args:
        network: any torch network; changed in place.
        blocks: {name of a submodule as in named_modules(): block}.

    Raises:
        UserError: no such submodule, or it already has a block; the network is unchanged.
    """
    modules = dict(network.named_modules())
    for name in blocks:
        if name not in modules:
            near = [known for known in modules if known.rsplit(".", 1)[0] == name.rsplit(".", 1)[0] and known]
            raise UserError(f"The network has no submodule {name!r}. Siblings: {', '.join(near[:8]) or 'none'}.")
        if CHILD in dict(modules[name].named_children()):
            raise UserError(f"{name!r} already has a block.")
    for name, block in blocks.items():
        modules[name].add_module(CHILD, block)
        modules[name].register_forward_hook(_apply_block)
    return network


def _apply_block(module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
    return module.get_submodule(CHILD)(output)
