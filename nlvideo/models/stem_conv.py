"""The network's first convolution, which sees three channels: too few for the matrix units of GPUs.

N batch, C channels, T frames, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nlvideo.models.temporal_conv import TemporalConv

KERNEL, STRIDE, PADDING = 7, 2, 3  # of height and width
COLOURS = 3
CHANNELS = 16  # of four pixels: matrix units want multiples of 8, and 12 is none


class StemConv(TemporalConv):
    """The t x 7 x 7 convolution of stride 2 that clips (N, 3, T, H, W) go through, without a bias.

    In 16 bits on a GPU it is computed from clips whose every 2 x 2 pixels have become the channels of one, see
    conv_of_four_pixels(). cuDNN's kernels for three channels took more than half of a forward pass on an H100.

    Args:
        channels: of the output.
        frames: temporal size of the kernel.
        stride: temporal.
    """

    def __init__(self, channels: int, frames: int, stride: int):
        sizes = (frames, KERNEL, KERNEL), (stride, STRIDE, STRIDE), (frames // 2, PADDING, PADDING)
        super().__init__(COLOURS, channels, *sizes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cuda" or (dtype := _compute_dtype(x)) not in (torch.bfloat16, torch.float16):
            return super().forward(x)
        return conv_of_four_pixels(x.to(dtype), self.weight.to(dtype), self.stride[0], self.kernel_size[0] // 2)


def conv_of_four_pixels(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Returns F.conv3d(x, weight, stride=(stride, 2, 2), padding=(padding, 3, 3)), in sums of another order.

    A stride of 2 moves the kernel by whole pairs of rows and columns. With the 2 x 2 pixels of two pairs as channels,
    it becomes a kernel of 4 x 4 (its eighth row and column are zero) that moves by 1.

    Args:
        x: clips (N, 3, T, H, W).
        weight: (K, 3, t, 7, 7).

    Returns:
        (N, K, T', ceil(H / 2), ceil(W / 2)) in channels_last_3d.
    """
    height, width = x.shape[3:]
    x = F.pad(x, (PADDING, PADDING + width % 2, PADDING, PADDING + height % 2))
    pairs = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2))  # N, 3, T, rows, 2, columns, 2
    pixels = F.pad(pairs.permute(0, 2, 3, 5, 4, 6, 1).flatten(4), (0, CHANNELS - 4 * COLOURS))
    kernel = F.pad(weight, (0, 1, 0, 1)).unflatten(4, (-1, 2)).unflatten(3, (-1, 2))  # K, 3, t, 4, 2, 4, 2
    kernel = F.pad(kernel.permute(0, 2, 3, 5, 4, 6, 1).flatten(4), (0, CHANNELS - 4 * COLOURS))
    channels_first = (0, 4, 1, 2, 3)
    return F.conv3d(
        pixels.permute(channels_first), kernel.permute(channels_first), None, (stride, 1, 1), (padding, 0, 0)
    )


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Returns the type that a convolution of x, on a GPU, is computed in."""
    autocast = x.dtype != torch.float64 and torch.is_autocast_enabled("cuda")
    return torch.get_autocast_dtype("cuda") if autocast else x.dtype
