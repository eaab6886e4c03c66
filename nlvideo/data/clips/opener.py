"""Opens videos for the loading workers, and knows what each worker is at when one hangs or dies."""

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

from nlvideo.data.decoding.opening import open_video
from nlvideo.data.decoding.video import Video


class LostWorker(NamedTuple):
    """A worker that did not come back from a video."""

    worker: int
    path: str
    stack: str  # empty if it died without one


class Watch:
    """Knows which video each worker is at.

    A worker that stays at one video for too long, even inside a C library where no Python runs, writes its stack to a
    file and exits; the process that waits for it then asks `lost`. Without workers nothing is watched: nobody would
    be left to report it.
    """

    def __init__(self, seconds: float | None):
        self.seconds = seconds
        self.folder = Path(tempfile.mkdtemp(prefix="nlvideo-watch-"))
        self._owner = os.getpid()
        weakref.finalize(self, _remove, self.folder, self._owner)

    @contextmanager
    def at(self, path: str) -> Iterator[None]:
        """Records that this worker is at a video until the block ends."""
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
        """Returns the worker that a DataLoader's error is about, None for any other error."""
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


class Opener:
    """Opens videos with one decoder and time limit, and watches the workers that do.

    Args:
        decoder: a key of nlvideo.data.decoding.opening.DECODERS.
        time_limit: seconds that a video may take, checked between packets; None is no limit. A worker that hangs
            inside a packet ends itself a little later, and `watch` knows at which video.
        frame_rate: frames per second of folders of pictures.
    """

    def __init__(self, decoder: str = "pyav", time_limit: float | None = None, frame_rate: float = 30.0):
        self.decoder, self.time_limit, self.frame_rate = decoder, time_limit, frame_rate
        self.watch = Watch(None if time_limit is None else 1.5 * time_limit + 5)

    @contextmanager
    def __call__(self, path: str) -> Iterator[Video]:
        with self.watch.at(path), open_video(path, self.decoder, self.time_limit, self.frame_rate) as video:
            yield video


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker holds a copy of the object
        shutil.rmtree(folder, ignore_errors=True)
