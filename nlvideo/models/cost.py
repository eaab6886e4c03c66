"""Parameters, multiply-adds and activation memory of a network, from shapes alone: no computation, no memory."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from nlvideo.models.non_local import NonLocalBlock
from nlvideo.models.resnet import STAGES, VideoResNet, context_names
from nlvideo.runtime.torch_private import FakeTensorMode, storage_id


class Cost(NamedTuple):
    """The cost of one clip."""

    params: int
    multiply_adds: int  # as the paper counts them: non-local blocks form the matrix of all pairs
    multiply_adds_computed: int  # as computed here, see pairwise.py
    activation_bytes: int  # saved for the backward pass in float32


class Part(NamedTuple):
    """The cost of a stage or of a block in it, for one clip."""

    name: str
    output: str  # T x H x W x C
    params: int
    multiply_adds: int


def count_cost(network: VideoResNet, num_frames: int, height: int, width: int) -> Cost:
    """Returns the cost of one clip (1, 3, num_frames, height, width)."""
    network = copy.deepcopy(network).to("meta")
    clip = torch.empty(1, 3, num_frames, height, width, device="meta")
    computed = _count_flops(network, clip).get_total_flops() // 2
    saved = activation_bytes(network, clip.shape, torch.float32)
    _use_matrices(network)
    return Cost(num_params(network), _count_flops(network, clip).get_total_flops() // 2, computed, saved)


def cost_table(network: VideoResNet, num_frames: int, height: int, width: int) -> list[Part]:
    """Returns the parts of the network in order, each stage followed by its blocks, and "all" as the last row."""
    network = copy.deepcopy(network).to("meta")
    _use_matrices(network)
    labels = _part_labels(network)
    shapes: dict[str, str] = {}

    def note_shape(name: str, _module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        shapes[name] = " x ".join(map(str, (*output.shape[2:], output.shape[1])))

    for name in labels:
        network.get_submodule(name).register_forward_hook(partial(note_shape, name))
    clip = torch.empty(1, 3, num_frames, height, width, device="meta")
    flops = _count_flops(network, clip).get_flop_counts()
    parts = []
    for name, label in labels.items():
        of_part = sum(flops.get(f"{type(network).__name__}.{name}", {}).values())
        parts.append(Part(label, shapes[name], num_params(network.get_submodule(name)), of_part // 2))
    return [*parts, Part("all", shapes["fc"], num_params(network), sum(flops["Global"].values()) // 2)]


def activation_bytes(network: VideoResNet, shape: Sequence[int], dtype: torch.dtype) -> int:
    """Returns the bytes that training saves for the backward pass of clips (N, 3, T, H, W).

    Fake tensors, which have a dtype and a size but no content, go through the network.

    Args:
        network: not changed.
        shape: of the clips.
        dtype: the compute dtype; 16-bit ones run under autocast, as in training.
    """
    network = copy.deepcopy(network).to("meta")
    half = dtype in (torch.bfloat16, torch.float16)
    storage_dtype = torch.float32 if half else dtype
    saved: dict[int, Tensor] = {}  # tensors are held, so that no id is used twice

    def save(tensor: Tensor) -> Tensor:
        if storage_id(tensor) not in weights:
            saved[storage_id(tensor)] = tensor
        return tensor

    def fake(tensor: Tensor) -> Tensor:
        tensor_dtype = storage_dtype if tensor.is_floating_point() else tensor.dtype
        return torch.empty(tensor.shape, dtype=tensor_dtype, requires_grad=tensor.requires_grad)

    with FakeTensorMode(), torch.autocast("cpu", dtype if half else torch.bfloat16, enabled=half):
        state = {name: fake(tensor) for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
        weights = {storage_id(tensor) for tensor in state.values()}
        clips = torch.empty(shape, dtype=storage_dtype).contiguous(memory_format=torch.channels_last_3d)
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            functional_call(network.train(), state, (clips,))
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def passing_bytes(network: VideoResNet, shape: Sequence[int], dtype: torch.dtype) -> int:
    """Returns the bytes of the largest input and output that one layer holds at a time for clips (N, 3, T, H, W).

    They are there whether or not anything is kept for a backward pass.
    """
    network, largest = copy.deepcopy(network).to("meta").eval(), 0

    def note(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        largest = max(largest, sum(x.numel() for x in (*inputs, output)))

    for module in network.modules():
        if not [*module.children()]:
            module.register_forward_hook(note)
    with torch.no_grad():
        network(torch.empty(shape, device="meta"))
    return largest * dtype.itemsize


def num_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _part_labels(network: VideoResNet) -> dict[str, str]:
    """Returns {module name: what the table calls it}."""
    blocks = dict(zip(context_names(network), network.places, strict=True))
    labels = {"conv1": "conv1"}
    for i, stage in enumerate(STAGES):
        labels[f"layer{i + 1}"] = stage
        labels |= {name: f"  block at {place}" for name, place in blocks.items() if place.startswith(f"{stage}.")}
    return labels | {"fc": "fc"}


def _count_flops(network: VideoResNet, clip: Tensor) -> FlopCounterMode:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(clip)
    return counter


def _use_matrices(network: VideoResNet) -> None:
    for module in network.modules():
        if isinstance(module, NonLocalBlock):
            module.plain = True
