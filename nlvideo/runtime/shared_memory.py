"""The shared memory through which loading workers hand over what they have read."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

SHARED_MEMORY = Path("/dev/shm")  # of Linux; elsewhere, shared memory has no size of its own


class Room(NamedTuple):
    """The size of the shared memory, and what of it nothing uses, in bytes."""

    total: int
    free: int

    def __str__(self) -> str:
        return f"{self.free / 1e6:.0f} MB free of {self.total / 1e6:.0f} MB"


def room_line() -> str:
    """Returns what there is to say of the room in shared memory."""
    room = shared_memory()
    return f"{SHARED_MEMORY} has {room}" if room else "shared memory has no limit of its own"


class SharedMemoryFull(RuntimeError):
    """Shared memory has no room for what a worker has read."""


def shared_memory() -> Room | None:
    """Returns the room in shared memory; None if the system sets it no limit."""
    if not SHARED_MEMORY.is_dir():
        return None
    usage = shutil.disk_usage(SHARED_MEMORY)
    return Room(usage.total, usage.free) if usage.total else None  # a tmpfs without a limit gives 0 for both


def share(tensor: Tensor) -> None:
    """Moves a tensor into shared memory.

    Raises:
        SharedMemoryFull: there is no room for it.
    """
    if tensor.numel() == 0:
        return
    try:
        tensor.share_memory_()
    except RuntimeError as error:
        room = shared_memory()
        place = f"{SHARED_MEMORY} has {room}" if room else str(error)
        raise SharedMemoryFull(f"no room in shared memory for {tensor.nbytes / 1e6:.1f} MB: {place}") from error


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Returns tensors of the same shape stacked; a worker copies them into shared memory at once, not in two steps.

    Raises:
        SharedMemoryFull: there is no room for them.
    """
    if get_worker_info() is None:
        return torch.stack(list(tensors))
    stacked = tensors[0].new_empty(len(tensors), *tensors[0].shape)
    share(stacked)
    return torch.stack(list(tensors), out=stacked)
