"""Which kernels the blocks' attention and batch norm run with on a device, from PyTorch's own choice."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.backends import cuda

from nlvideo.models import pairwise
from nlvideo.models.batch_norm import VideoBatchNorm3d
from nlvideo.runtime.torch_private import attention_choice, batch_norm_backend

POSITIONS = 64  # of the tensors that are asked about; the choice depends on width, dtype and device


class AttentionKernel(NamedTuple):
    """What takes the softmax attention of queries and keys with D channels."""

    chosen: str  # flash, efficient or cudnn, or ours, where none of these is taken
    possible: tuple[str, ...]  # PyTorch's kernels that would take it


def attention_kernel(device: torch.device, dtype: torch.dtype, channels: int) -> AttentionKernel:
    """Returns what a block's attention runs with on this device; it makes three small tensors there."""
    # As in training: some kernels have no backward pass for wide heads.
    made = {"device": device, "dtype": dtype, "requires_grad": True}
    query, key, value = (torch.empty(1, 1, POSITIONS, channels, **made) for _ in range(3))
    possible = _possible_kernels(query, key, value)
    if not pairwise._fused_attention_takes(query, key, value):
        return AttentionKernel("ours", possible)
    return AttentionKernel(attention_choice(query, key, value).removesuffix("_ATTENTION").lower(), possible)


def _possible_kernels(query: Tensor, key: Tensor, value: Tensor) -> tuple[str, ...]:
    if query.device.type != "cuda":  # PyTorch has one for CPUs, flash attention, and no predicate for it
        return ("flash",) if attention_choice(query, key, value) == "FLASH_ATTENTION" else ()
    params = cuda.SDPAParams(query, key, value, None, 0.0, False, False)
    takes = {
        "flash": cuda.can_use_flash_attention,
        "cudnn": cuda.can_use_cudnn_attention,
        "efficient": cuda.can_use_efficient_attention,
    }
    return tuple(name for name, predicate in takes.items() if predicate(params))


def batch_norm_kernel(device: torch.device, dtype: torch.dtype) -> str:
    """Returns how batch norm trains on clips in channels last: whose kernel, on how many dimensions."""
    norm = VideoBatchNorm3d(8).to(device).train()
    x = torch.ones(2, 8, 2, 4, 4, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
    if has_own_batch_norm(device, dtype):
        return f"{batch_norm_backend(norm, x.flatten(2, 3)).lower()}, 4 dimensions"
    return f"{batch_norm_backend(norm, x).lower()}, 5 dimensions"


def has_own_batch_norm(device: torch.device, dtype: torch.dtype) -> bool:
    """Returns whether batch norm trains by another way than PyTorch's BatchNorm3d there."""
    norm = VideoBatchNorm3d(8).to(device).train()
    x = torch.ones(2, 8, 2, 4, 4, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
    ours, theirs = norm(x.requires_grad_()), nn.BatchNorm3d.forward(norm, x)
    return type(ours.grad_fn) is not type(theirs.grad_fn)
