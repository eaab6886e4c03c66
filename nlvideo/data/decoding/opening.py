"""Opens videos with the decoder asked for, and knows which video each loading worker is at."""

import errno
import faulthandler
import importlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import get_worker_info

from nlvideo.data.decoding.excerpt import Excerpt
from nlvideo.data.decoding.frame_folder import FrameFolder
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.decoding.video import DecodeError, SlowVideo, Video
from nlvideo.data.index.video_index import VideoIndex
from nlvideo.data.stores.addresses import is_address
from nlvideo.data.stores.ahead import Ahead
from nlvideo.data.stores.cache import Cache
from nlvideo.data.stores.store import MissingObject, StoreFailed
from nlvideo.runtime.errors import UserError

# name: (module and class, the package it needs and how that is installed)
DECODERS = {
    "pyav": ("pyav_video.PyavVideo", "av", "pip install av"),
    "decord": ("decord_video.DecordVideo", "decord", "pip install decord"),
    "torchcodec": ("torchcodec_video.TorchcodecVideo", "torchcodec", "pip install nlvideo[torchcodec], and FFmpeg"),
}


def open_video(
    path: str | os.PathLike,
    decoder: str = "pyav",
    time_limit: float | None = None,
    frame_rate: float = 30.0,
    *,
    part: tuple[float, float] | None = None,
    clip_fps: float | None = None,
    index: VideoIndex | None = None,
) -> Video:
    """Returns an open video: a file, read by one of DECODERS, or a folder of its frames as pictures.

    All decoders give the same frames for the same indices, or refuse the file. Their colours differ by rounding.

    Args:
        decoder: a key of DECODERS.
        time_limit: seconds until SlowVideo is raised, seen between packets where the decoder shows them.
        frame_rate: frames a second of a folder of pictures, which does not tell.
        part: start and end in seconds of the part that is wanted.
        clip_fps: frames a second to take by time, whatever the video has.
        index: what is known of files from before, for the decoder pyav; it learns of those that it does not know.

    Raises:
        DecodeError: no such file, no video, or one that the decoder does not read rightly; a pipe or the like.
        UserError: the decoder is not installed.
    """
    if is_special(path):
        raise DecodeError(os.fsdecode(path), "it is neither a file nor a folder")
    if os.path.isdir(path):
        video: Video = FrameFolder(path, frame_rate)
    elif decoder == "pyav":
        video = _open_with_pyav(path, time_limit, index)
    else:
        video = load_decoder(decoder)(path, time_limit)
    if part is None and clip_fps is None:
        return video
    try:
        return Excerpt(video, part, clip_fps)
    except BaseException:
        video.close()
        raise


def is_special(path: str | os.PathLike) -> bool:
    """Returns whether something is there that is neither a file nor a folder, such as a pipe, which may never end."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _open_with_pyav(path: str | os.PathLike, time_limit: float | None, index: VideoIndex | None) -> PyavVideo:
    state = index.state(path) if index is not None else None
    if index is None or state is None:  # without a file, the decoder says why
        return PyavVideo(path, time_limit)
    facts = index.find(state)
    try:
        video = PyavVideo(path, time_limit, facts)
    except DecodeError:
        if facts is None:
            raise
        video = PyavVideo(path, time_limit)  # whether the file or what the index says of it is at fault, this decides
    if facts is None and index.state(path) == state:  # it was not written meanwhile
        index.add(state, video.facts)
    return video


def load_decoder(name: str) -> Callable[..., Video]:
    """Returns the class of one of DECODERS.

    Raises:
        UserError: an unknown name, or a package that is missing or does not start, with its install line.
    """
    if name not in DECODERS:
        raise UserError(f"data.decoder={name!r} is unknown. Choose from: {', '.join(DECODERS)}.")
    place, package, install = DECODERS[name]
    try:
        importlib.import_module(package)
    except Exception as error:  # a package without the libraries it needs fails in its own ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"data.decoder={name} needs {package} ({install}), which does not start: {reason}") from error
    module, cls = place.split(".")
    return getattr(importlib.import_module(f"nlvideo.data.decoding.{module}"), cls)


class Opener:
    """Opens videos with one decoder and time limit, and watches the workers that do.

    Args:
        decoder: a key of DECODERS.
        time_limit: seconds that a video may take, checked between packets; None is no limit. A worker that hangs
            inside a packet ends itself a little later, and `watch` knows at which video.
        frame_rate: frames per second of folders of pictures.
        clip_fps: frames per second that are taken; None is each video's own rate.
        index: what is known of videos, for the decoder pyav.
        cache: where videos of stores are fetched to before they are opened, which no time limit counts.
    """

    def __init__(
        self,
        decoder: str = "pyav",
        time_limit: float | None = None,
        frame_rate: float = 30.0,
        clip_fps: float | None = None,
        index: VideoIndex | None = None,
        cache: Cache | None = None,
    ):
        self.decoder, self.time_limit = decoder, time_limit
        self.frame_rate, self.clip_fps, self.index = frame_rate, clip_fps, index
        self.watch = Watch(None if time_limit is None else 1.5 * time_limit + 5)
        self.cache = cache
        self._ahead: Ahead | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ahead": None}  # a thread stays in its process

    @contextmanager
    def __call__(self, path: str, part: tuple[float, float] | None = None) -> Iterator[Video]:
        settings = self.decoder, self.time_limit, self.frame_rate
        with (
            self._at_hand(path) as file,
            self.watch.at(path),
            open_video(file, *settings, part=part, clip_fps=self.clip_fps, index=self.index) as video,
        ):
            yield video

    @contextmanager
    def _at_hand(self, path: str) -> Iterator[str]:
        """Yields a path of this machine for a video, which may be in a store; errors of the block name the video."""
        if self.cache is None or not is_address(path):
            yield path
            return
        if self._ahead is not None:
            self._ahead.opened(path)
        try:
            with self.cache.file(path) as file:
                try:
                    yield file
                except DecodeError as error:
                    if not self.cache.holds(path):
                        raise StoreFailed(f"{path} went from data.cache_dir={self.cache.folder} while open.") from None
                    raise DecodeError(path, error.reason) from None
                except SlowVideo as error:
                    raise SlowVideo(path, error.seconds) from None
        except MissingObject:
            raise DecodeError(path, os.strerror(errno.ENOENT)) from None  # as of a file that is missing

    def fetch_ahead(self, paths: Iterator[str], processes: int) -> None:
        """Lets this process fetch the videos of stores, in the order in which it will open them, before it does so.

        Args:
            processes: that do so on this node.
        """
        if self.cache is not None:
            self._ahead = Ahead(self.cache, filter(is_address, paths), processes)

    def stop_fetching(self) -> None:
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None


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


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker holds a copy of the object
        shutil.rmtree(folder, ignore_errors=True)
