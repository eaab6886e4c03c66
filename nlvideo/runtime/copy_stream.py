"""Copies to a device beside what it computes."""

import torch
from torch import Tensor


class CopyStream:
    """Copies tensors to a device; on CUDA on a stream of its own, from pinned memory.

    What is queued on the device afterwards waits for the copies; what was queued before does not.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the tensors on the device."""
        if self.stream is None:
            return tuple(tensor.to(self.device) for tensor in tensors)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            copies = tuple(tensor.to(self.device, non_blocking=True) for tensor in tensors)
        computing.wait_stream(self.stream)
        for copy in copies:
            copy.record_stream(computing)
        return copies
