"""From uint8 clips to what the network takes."""

import torch
from torch import Tensor


def normalize(clips: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns (clips / 255 - mean) / std in `dtype`, on the clips' device and in their memory format.

    Args:
        clips: (N, 3, T, H, W) uint8, RGB.
        mean, std: (3,) of values between 0 and 1.
    """
    shape = (1, 3, 1, 1, 1)
    return (clips.to(dtype) - 255 * mean.to(clips.device, dtype).view(shape)) / (
        255 * std.to(clips.device, dtype).view(shape)
    )
