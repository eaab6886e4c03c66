"""Puts context blocks into networks that were not written for them."""

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from nlvideo.runtime.errors import UserError

CHILD = "context_block"  # the name under which a submodule holds the block behind it

Network = TypeVar("Network", bound=nn.Module)


def insert_blocks(network: Network, blocks: Mapping[str, nn.Module]) -> Network:
    """Returns the network itself, each block now following the named submodule: insert_blocks(net, {"layer3.4": b}).

    The output of the submodule, (N, C, H, W) or (N, C, T, H, W), goes through the block. Existing keys of the state
    dict stay as they are; the block's are "layer3.4.context_block.*". The non-local paper's Mask R-CNN (Sec. 6) is
    {"backbone.body.layer3.4": NonLocalBlock(1024)} in torchvision's maskrcnn_resnet50_fpn.

    Args:
        network: any torch network.
        blocks: {name of a submodule as in named_modules(): the block}.

    Raises:
        UserError: no such submodule, or one that has a block already; the network is left as it was.
    """
    modules = dict(network.named_modules())
    for name in blocks:
        if name not in modules:
            near = [known for known in modules if known.rsplit(".", 1)[0] == name.rsplit(".", 1)[0] and known]
            raise UserError(f"The network has no submodule {name!r}. Beside it: {', '.join(near[:8]) or 'none'}.")
        if CHILD in dict(modules[name].named_children()):
            raise UserError(f"{name!r} is followed by a block already.")
    for name, block in blocks.items():
        modules[name].add_module(CHILD, block)
        modules[name].register_forward_hook(_apply_block)
    return network


def _apply_block(module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
    return module.get_submodule(CHILD)(output)
