"""A convolution over frames that short clips do not break."""

import torch.nn.functional as F
from torch import Tensor, nn


class TemporalConv(nn.Conv3d):
    """A Conv3d whose gradients are also correct for clips shorter than its temporal kernel.

    On CPUs oneDNN leaves the bfloat16 weight gradient uninitialised when 1 < T < kernel (seen with torch 2.15). Padding
    the clip explicitly avoids it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] >= self.kernel_size[0]:
            return super().forward(x)
        assert not isinstance(self.padding, str)
        t, h, w = self.padding
        return F.conv3d(F.pad(x, (0, 0, 0, 0, t, t)), self.weight, self.bias, self.stride, (0, h, w))
