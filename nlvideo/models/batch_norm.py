"""Batch norm with PyTorch's results, that keeps less for the backward pass where it is frozen.

N batch, C channels, T frames, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VideoBatchNorm3d(nn.BatchNorm3d):
    """A BatchNorm3d that is PyTorch's unless it is frozen.

    Frozen, that is in eval mode and with a gain and a bias that do not learn, it passes gradients as the affine map per
    channel that it is (released affine_nd_op.cc). PyTorch's own backward pass of that case keeps the input, which only
    the gain's gradient needs, and on GPUs returns a contiguous gradient, which the convolution before it has to
    transpose back to channels last.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not x.requires_grad or any(p.requires_grad for p in self.parameters(recurse=False)):
            return super().forward(x)
        self._check_input_dim(x)
        return _FrozenBatchNorm.apply(x, self.weight, self.bias, self.running_mean, self.running_var, self.eps)


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
