"""Writes checkpoints on a thread of its own, so that training waits only for a copy of the tensors."""

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlvideo.training.step_files import save_step


class CheckpointWriter:
    """Saves the steps of a run, one at a time; use it in a `with` statement, which ends when the last one is written.

    A checkpoint is the newest only once it is whole, so a kill loses at most the one that is being written.

    Args:
        folder: of the run.
        keep: how many steps stay.
    """

    def __init__(self, folder: Path, keep: int):
        self._folder, self._keep = folder, keep
        self._copier = TensorCopier()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future | None = None

    def save(self, content: dict[str, Any]) -> None:
        """Takes a copy of a checkpoint's content and starts to write it; waits for the one before.

        Raises:
            RunFailed: the one before could not be written.
        """
        self.wait()
        copied, ready = self._copier.copy(content)
        self._writing = self._thread.submit(self._write, copied, ready)

    def wait(self) -> None:
        """Returns once everything is written.

        Raises:
            RunFailed: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def check(self) -> None:
        """Raises RunFailed if writing has failed already; does not wait for it."""
        if self._writing and self._writing.done():
            self.wait()

    def _write(self, content: dict[str, Any], ready: "torch.cuda.Event | None") -> None:
        if ready:
            ready.synchronize()
        save_step(self._folder, content, self._keep)

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, error: type | None, *_: object) -> None:
        self._thread.shutdown()
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            print(failure, file=sys.stderr)  # the error that ends the run matters more


class TensorCopier:
    """Copies the tensors in plain containers to the host. On a GPU the copies go to pinned memory, which is kept."""

    def __init__(self) -> None:
        self._pinned: dict[str, Tensor] = {}

    def copy(self, content: dict[str, Any]) -> "tuple[dict[str, Any], torch.cuda.Event | None]":
        """Returns the content with its own tensors on the CPU, and the event after which those from a GPU are there.

        Changes that are launched after this call are not in the copy. The next call overwrites those from a GPU.
        """
        copied, ready = self._copy(content, ""), None
        if self._pinned:
            ready = torch.cuda.Event()
            ready.record()
        return copied, ready

    def _copy(self, value: Any, place: str) -> Any:
        if isinstance(value, dict):
            return {key: self._copy(inner, f"{place}/{key}") for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copy(inner, f"{place}/{i}") for i, inner in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        value = value.detach()
        return self._copy_to_pinned(value, place) if value.is_cuda else value.clone()

    def _copy_to_pinned(self, value: Tensor, place: str) -> Tensor:
        buffer = self._pinned.get(place)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = self._pinned[place] = torch.empty_like(value, device="cpu", pin_memory=True)
        return buffer.copy_(value, non_blocking=True)
