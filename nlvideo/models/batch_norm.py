"""Batch norm with PyTorch's results, in fewer and cheaper passes over memory where PyTorch's own is slow.

N batch, C channels, T frames, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class VideoBatchNorm3d(nn.BatchNorm3d):
    """A BatchNorm3d that takes shorter ways in two cases of training; otherwise it is PyTorch's.

    Frozen, that is in eval mode and with a gain and a bias that do not learn, it passes gradients as the affine map per
    channel that it is (released affine_nd_op.cc). PyTorch's own backward pass of that case keeps the input, which only
    the gain's gradient needs, and on GPUs returns a contiguous gradient, which the convolution before it has to
    transpose back to channels last.

    Training in bfloat16 on a GPU, it takes (N, C, T, H, W) in channels last for (N, C, T * H, W), see
    takes_four_dimensions.

    Args:
        num_features: C of the input; always with gain, bias and running statistics.
    """

    def __init__(self, num_features: int):
        super().__init__(num_features)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and takes_four_dimensions(x):
            return train_in_four_dimensions(self, x)
        if self.training or not x.requires_grad or any(p.requires_grad for p in self.parameters(recurse=False)):
            return super().forward(x)
        self._check_input_dim(x)
        return _FrozenBatchNorm.apply(x, self.weight, self.bias, self.running_mean, self.running_var, self.eps)


def takes_four_dimensions(x: Tensor) -> bool:
    """Returns whether training normalises x (N, C, T, H, W) as (N, C, T * H, W).

    bfloat16 is the one type that PyTorch (2.5 to 2.14) does not leave to cuDNN, which knows both forms
    (_select_batch_norm_backend in Normalization.cpp). Its own kernels for channels last know four dimensions only
    (batch_norm_choose_impl in Normalization.cu); five take generic ones. Compilers write their own.
    """
    if x.device.type != "cuda" or x.dtype != torch.bfloat16 or torch.compiler.is_compiling():
        return False
    return _flattens(x)


class _FrozenBatchNorm(torch.autograd.Function):
    """Batch norm by running statistics; of the inputs only x has a gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
        # x (N, C, T, H, W), which may be of 16 bits where the others, (C,), are float32
        ctx.save_for_backward(gain, variance)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, gain, bias, eps=eps)

    @staticmethod
    def backward(ctx, dy: Tensor):
        gain, variance = ctx.saved_tensors
        # Batch norm again, as the one operation that multiplies 16 bits by float32 without a copy in float32.
        dx = F.batch_norm(dy, torch.zeros_like(variance), variance, gain, eps=ctx.eps)
        return dx, None, None, None, None, None


def train_in_four_dimensions(norm: nn.BatchNorm3d, x: Tensor) -> Tensor:
    """Returns what norm, in training mode, makes of an x that _flattens, and updates norm's statistics."""
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    return _FlatBatchNorm.apply(x, norm.weight, norm.bias, norm)


class _FlatBatchNorm(torch.autograd.Function):
    """Batch norm by the batch's statistics, of views of four dimensions.

    A function of its own because the output of F.batch_norm would be a view, which costs the ReLU in place that follows
    two copies in the backward pass.
    """

    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, bias: Tensor, norm: nn.BatchNorm3d) -> Tensor:
        # x (N, C, T, H, W) in channels_last_3d; gain and bias (C,) are the norm's, whose statistics are updated
        y = torch.empty_like(x)
        mean, invstd = gain.new_empty(2, len(gain), dtype=torch.promote_types(gain.dtype, torch.float32))
        running, out = (norm.running_mean, norm.running_var), (_flat(y), mean, invstd)
        torch.native_batch_norm(_flat(x), gain, bias, *running, True, norm.momentum, norm.eps, out=out)
        ctx.save_for_backward(x, gain, mean, invstd)
        ctx.eps = norm.eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, gain, mean, invstd = ctx.saved_tensors
        dy = _flat(dy.contiguous(memory_format=torch.channels_last_3d))
        batch = (mean, invstd, True, ctx.eps, (True, True, True))
        # The running statistics count in eval mode only.
        dx, dgain, dbias = torch.ops.aten.native_batch_norm_backward(dy, _flat(x), gain, None, None, *batch)
        return dx.unflatten(2, x.shape[2:4]), dgain, dbias, None


def _flattens(x: Tensor) -> bool:
    """Returns whether x is in channels_last_3d, with more than one value in a channel, without which PyTorch raises."""
    return x.ndim == 5 and x.is_contiguous(memory_format=torch.channels_last_3d) and x.numel() > x.shape[1]


def _flat(x: Tensor) -> Tensor:
    """Returns x (N, C, T, H, W) in channels_last_3d as a view (N, C, T * H, W) in channels_last."""
    n, c, t, h, w = x.shape
    return x.view(n, c, t * h, w)
