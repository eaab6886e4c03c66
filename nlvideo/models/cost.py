"""What a network costs, from shapes alone: nothing is computed and no memory taken."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from nlvideo.models.non_local import NonLocalBlock
from nlvideo.models.resnet import STAGES, VideoResNet, context_names


class Cost(NamedTuple):
    params: int
    multiply_adds: int  # of one clip, pairwise products as the paper counts them: the matrix of all pairs
    multiply_adds_computed: int  # as they are computed here, see pairwise.py
    activation_bytes: int  # kept for the backward pass of one clip in float32


class Part(NamedTuple):
    """A stage of the network or a block in it."""

    name: str
    output: str  # T x H x W x C
    params: int
    multiply_adds: int


def count_cost(network: VideoResNet, num_frames: int, height: int, width: int) -> Cost:
    """Returns the cost of one clip (1, 3, num_frames, height, width)."""
    network = copy.deepcopy(network).to("meta")
    clip = torch.empty(1, 3, num_frames, height, width, device="meta")
    params = sum(p.numel() for p in network.parameters())
    computed = _counted(network, clip).get_total_flops() // 2
    kept = activation_bytes(network, clip.shape, torch.float32)
    _use_matrices(network)
    return Cost(params, _counted(network, clip).get_total_flops() // 2, computed, kept)


def cost_table(network: VideoResNet, num_frames: int, height: int, width: int) -> list[Part]:
    """Returns the parts of the network in their order, the blocks below the stage that contains them, and the sum."""
    network = copy.deepcopy(network).to("meta")
    _use_matrices(network)
    shapes: dict[str, str] = {}

    def note(name: str):
        def hook(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            shapes[name] = " x ".join(map(str, (*output.shape[2:], output.shape[1])))

        return hook

    blocks = dict(zip(context_names(network), network.places, strict=True))
    names = {"conv1": "conv1"}
    for i, stage in enumerate(STAGES):
        names[f"layer{i + 1}"] = stage
        names |= {name: f"  block at {place}" for name, place in blocks.items() if place.startswith(f"{stage}.")}
    names["fc"] = "fc"
    for name in names:
        network.get_submodule(name).register_forward_hook(note(name))
    clip = torch.empty(1, 3, num_frames, height, width, device="meta")
    counted = _counted(network, clip).get_flop_counts()
    parts = []
    for name, shown in names.items():
        params = sum(p.numel() for p in network.get_submodule(name).parameters())
        flops = sum(counted.get(f"{type(network).__name__}.{name}", {}).values())
        parts.append(Part(shown, shapes[name], params, flops // 2))
    total = sum(counted["Global"].values()) // 2
    return [*parts, Part("all", shapes["fc"], sum(p.numel() for p in network.parameters()), total)]


def activation_bytes(network: VideoResNet, shape: Sequence[int], dtype: torch.dtype) -> int:
    """Returns the bytes that the backward pass of clips (N, 3, T, H, W) needs, whose products are in `dtype`.

    It follows tensors without content that know their types and sizes.
    """
    network = copy.deepcopy(network).to("meta")
    half = dtype in (torch.bfloat16, torch.float16)
    width = torch.float32 if half else dtype
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (storage.nbytes(), storage)  # held, so that no address is used twice
        return tensor

    with FakeTensorMode(), torch.autocast("cpu", dtype if half else torch.bfloat16, enabled=half):
        state = {
            name: torch.empty(t.shape, dtype=width if t.is_floating_point() else t.dtype, requires_grad=t.requires_grad)
            for name, t in [*network.named_parameters(), *network.named_buffers()]
        }
        weights = {t.untyped_storage()._cdata for t in state.values()}
        clip = torch.empty(shape, dtype=width).contiguous(memory_format=torch.channels_last_3d)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            functional_call(network.train(), state, (clip,))
    return sum(size for size, _ in kept.values())


def _counted(network: VideoResNet, clip: Tensor) -> FlopCounterMode:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(clip)
    return counter


def _use_matrices(network: VideoResNet) -> None:
    for module in network.modules():
        if isinstance(module, NonLocalBlock):
            module.plain = True
