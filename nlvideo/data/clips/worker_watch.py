"""What each loading worker is at, so that one that hangs or dies can be named by the process that waits for it."""

import faulthandler
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from torch.utils.data import get_worker_info


class LostWorker(NamedTuple):
    """A worker that did not come back from a video."""

    worker: int
    path: str
    stack: str  # empty if it died without a word


class Watch:
    """Notes of what the workers are at. A worker that stays at one video for too long, even inside a C library where
    no Python runs, writes its stack down and ends; the process that waits for it then asks `lost`.

    In the main process (no workers) nothing is watched: it could not tell anyone.
    """

    def __init__(self, seconds: float | None):
        self.seconds = seconds
        self.folder = Path(tempfile.mkdtemp(prefix="nlvideo-watch-"))
        self._owner = os.getpid()
        weakref.finalize(self, _remove, self.folder, self._owner)

    @contextmanager
    def at(self, path: str) -> Iterator[None]:
        """Notes that this worker is at a video until the block ends."""
        worker = get_worker_info()
        if worker is None:
            yield
            return
        with open(self.folder / f"{worker.id}", "w", encoding="utf-8", errors="surrogateescape") as note:
            note.write(f"{os.getpid()}\n{path}\n")
            note.flush()
            if self.seconds is not None:
                faulthandler.dump_traceback_later(self.seconds, exit=True, file=note)
            try:
                yield
            finally:
                if self.seconds is not None:
                    faulthandler.cancel_dump_traceback_later()
                note.truncate(0)

    def lost(self, error: str) -> LostWorker | None:
        """Returns which worker it was that a loader's error speaks of, None if the error is of another kind."""
        named = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", error)
        if named is None:
            return None
        pids = named[1].split(", ")
        for note in self.folder.iterdir():
            pid, _, rest = note.read_text(encoding="utf-8", errors="surrogateescape").partition("\n")
            path, _, stack = rest.partition("\n")
            if pid in pids:
                return LostWorker(int(note.name), path, stack.strip())
        return None


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker holds a copy of the object
        shutil.rmtree(folder, ignore_errors=True)
