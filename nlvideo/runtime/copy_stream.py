"""Copies tensors to a GPU and from it beside what it computes."""

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
        """Returns the tensors on the device, ready for the current stream; the host waits for unpinned ones."""
        if self._stream is None:
            return tuple(tensor.to(self.device) for tensor in tensors)
        with torch.cuda.stream(self._stream):
            moved = tuple(tensor.to(self.device, non_blocking=True) for tensor in tensors)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._stream)
        for tensor in moved:
            tensor.record_stream(computing)  # its memory may be used again only when the step is done with it
        return moved


class HostCopy:
    """A tensor on its way from a device. Reading it waits for what computes it, not for what is launched later."""

    def __init__(self, tensor: Tensor):
        self._tensor, self._copied = tensor, None
        if tensor.is_cuda:
            self._tensor = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> Tensor:
        """Returns the tensor on the CPU."""
        if self._copied:
            self._copied.synchronize()
        return self._tensor
