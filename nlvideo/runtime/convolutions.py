"""Whether cuDNN times its algorithms for each new shape of a convolution, which pays where shapes stay."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def time_algorithms(device: torch.device) -> None:
    """Lets cuDNN choose by time what it otherwise chooses by rules; elsewhere than on CUDA nothing does either."""
    torch.backends.cudnn.benchmark = device.type == "cuda"


@contextmanager
def varying_shapes() -> Iterator[None]:
    """Keeps cuDNN from timing anything until the block ends, for batches of which the last may be smaller."""
    timed = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = timed
