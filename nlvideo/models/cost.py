"""What a network costs, from shapes alone: nothing is computed and no memory taken."""

import copy
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from nlvideo.models.non_local import NonLocalBlock
from nlvideo.models.resnet import VideoResNet


class Cost(NamedTuple):
    params: int
    multiply_adds: int  # of one clip, pairwise products as the paper counts them: the matrix of all pairs
    multiply_adds_computed: int  # as they are computed here, see pairwise.py
    activation_bytes: int  # kept for the backward pass of one clip in float32


def count_cost(network: VideoResNet, num_frames: int, height: int, width: int) -> Cost:
    """Returns the cost of one clip (1, 3, num_frames, height, width)."""
    network = copy.deepcopy(network).to("meta")
    clip = torch.empty(1, 3, num_frames, height, width, device="meta")
    params = sum(p.numel() for p in network.parameters())
    computed, kept = _multiply_adds(network, clip), _activation_bytes(network, clip)
    for module in network.modules():
        if isinstance(module, NonLocalBlock):
            module.plain = True
    return Cost(params, _multiply_adds(network, clip), computed, kept)


def _multiply_adds(network: VideoResNet, clip: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(clip)
    return counter.get_total_flops() // 2


def _activation_bytes(network: VideoResNet, clip: torch.Tensor) -> int:
    weights = {p.untyped_storage()._cdata for p in [*network.parameters(), *network.buffers()]}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (storage.nbytes(), storage)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.train()(clip)
    return sum(size for size, _ in kept.values())
