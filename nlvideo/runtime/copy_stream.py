"""Copies tensors to a GPU beside what it computes."""

import torch
from torch import Tensor


class CopyStream:
    """Moves tensors to a device.

    On a GPU they are copied in a stream of their own. The copies of one step run while the GPU still computes the step
    before, because the host is a step ahead of it.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the tensors on the device, for use in the stream that is current; only pinned ones do not wait."""
        if self._stream is None:
            return tuple(tensor.to(self.device) for tensor in tensors)
        with torch.cuda.stream(self._stream):
            moved = tuple(tensor.to(self.device, non_blocking=True) for tensor in tensors)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._stream)
        for tensor in moved:
            tensor.record_stream(computing)  # its memory may be used again only when the step is done with it
        return moved
