"""The private parts of torch that nlvideo relies on, so that an upgrade that moves them fails in one place.

Each has a test of its own in tests/runtime/test_torch_private.py.
"""

from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # of any number of dimensions
from torch.nn.modules.batchnorm import _NormBase as NormWithStatistics  # batch and instance norms

__all__ = [
    "BatchNorm",
    "FakeTensorMode",
    "NormWithStatistics",
    "attention_choice",
    "batch_norm_backend",
    "loader_workers",
    "resize_antialiased",
    "storage_id",
]


def resize_antialiased(
    images: Tensor, size: Sequence[int], scales: Sequence[float], out: Tensor | None = None
) -> Tensor:
    """Returns images (N, C, H, W) resized bilinearly with antialiasing.

    F.interpolate derives the scale from the size, or the size from the scale; resizing a part of an image needs both
    to be given, because the part's size is not its number of pixels times the scale, rounded down.

    Args:
        size: output (height, width).
        scales: output pixels per input pixel, along height and width.
        out: (N, C, *size), written in place.
    """
    resize = torch.ops.aten._upsample_bilinear2d_aa
    if out is None:
        return resize(images, list(size), False, *scales)
    return resize.out(images, list(size), False, *scales, out=out)


def loader_workers(batches: Iterator) -> list[BaseProcess]:
    """Returns the processes behind an iterator over a DataLoader."""
    return list(getattr(batches, "_workers", ()))


def storage_id(tensor: Tensor) -> int:
    """Returns what tensors share if and only if they share memory; works for fake tensors, which have no address."""
    return tensor.untyped_storage()._cdata


def batch_norm_backend(norm: nn.Module, x: Tensor) -> str:
    """Returns whose kernel a BatchNorm takes for training on x (N, C, ...): Native (PyTorch's own), Cudnn, Miopen."""
    values = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return str(torch._C._select_batch_norm_backend(x, *values, True, norm.eps)).rpartition(".")[2]


def attention_choice(query: Tensor, key: Tensor, value: Tensor) -> str:
    """Returns which backend scaled_dot_product_attention takes these (B, heads, positions, D) with, such as
    FLASH_ATTENTION; MATH stores the matrix of all pairs."""
    return SDPBackend(torch._fused_sdp_choice(query, key, value)).name
