"""What a run has taken from stores, counted by all of its loading workers."""

import itertools
import threading
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

NUM_ROWS = 4096  # one for each worker at a time; they are used again after so many
_next_row = itertools.count()
_counts: Tensor | None = None


class Totals(NamedTuple):
    """Sums over workers."""

    opens: float = 0.0  # of videos in stores
    hits: float = 0.0  # of these, found in the cache
    fetches: float = 0.0  # of objects, those ahead of their use included
    fetched_bytes: float = 0.0
    waited_seconds: float = 0.0  # of workers, from asking for a video to having it

    def line(self) -> str:
        hits = 100 * self.hits / self.opens if self.opens else 0.0
        return (
            f"fetched {self.fetched_bytes / 1e9:.3g} GB, {self.fetches:.0f} objects; {hits:.0f} % of {self.opens:,.0f} "
            f"opens found their video in the cache, for the others workers waited {self.waited_seconds:.1f} s in all"
        )


class Traffic:
    """Counts for one loader. Each of its processes has a row of its own in memory that all share."""

    def __init__(self, num_workers: int):
        self._counts, self._lock = _shared_counts(), threading.Lock()
        self._rows = [next(_next_row) % NUM_ROWS for _ in range(num_workers + 1)]

    def __getstate__(self) -> tuple[Tensor, list[int]]:
        return self._counts, self._rows

    def __setstate__(self, state: tuple[Tensor, list[int]]) -> None:
        (self._counts, self._rows), self._lock = state, threading.Lock()

    def add(self, **values: float) -> None:
        worker = get_worker_info()
        row = self._rows[0 if worker is None else 1 + worker.id]
        with self._lock:
            for name, value in values.items():
                self._counts[row, Totals._fields.index(name)] += value


def totals(since: Totals | None = None) -> Totals:
    """Returns what this process and its workers have counted, less an earlier result."""
    found = Totals(*_shared_counts().sum(0).tolist())
    return Totals(*(now - then for now, then in zip(found, since or Totals(), strict=True)))


def _shared_counts() -> Tensor:
    global _counts
    if _counts is None:
        _counts = torch.zeros(NUM_ROWS, len(Totals._fields), dtype=torch.float64).share_memory_()
    return _counts
