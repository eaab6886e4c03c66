"""An index of videos as workers use it: what is known of a file, and a place for what is learned."""

import os
import sqlite3
import time
import uuid
import weakref
from pathlib import Path
from typing import NamedTuple

import av

from nlvideo.data.index.facts import VideoFacts, facts_of_row
from nlvideo.data.index.index_file import (
    NOTES,
    SELECT,
    BrokenIndex,
    check_index,
    checked_row,
    is_whole,
    merge_notes,
    note_line,
    open_index,
)
from nlvideo.data.shards.video_file import file_status

INDEX_FILE = ".nlvideo_index"  # in the folder of the videos
LIBRARIES = (av.library_versions[name] for name in ("libavformat", "libavcodec"))
READER = "/".join([av.__version__, *(".".join(map(str, version)) for version in LIBRARIES)])
LOOK_SECONDS = 30.0  # from one look whether the index has been replaced to the next


class FileState(NamedTuple):
    """A file as it was before it was read, and by what."""

    name: bytes  # see VideoIndex
    size: int
    mtime_ns: int
    reader: str = READER


class VideoIndex:
    """Facts of videos in a file that processes and machines share.

    A video is known by its name, size and time of change, and by the versions of PyAV and FFmpeg, another of which may
    see something else in it. The name is relative to the folder of the index where it
    lies below that, so that a folder can be moved with its index, and absolute elsewhere. A file that is replaced by
    one of equal size with the old one's time of change (to the nanosecond) is not noticed.

    An object is used by any number of processes, forked or spawned; each opens the file for itself when it first needs
    it. What processes have learned is merged into the file when an object is made and when it ends, in the process that
    made it. What cannot be read or written is done without: an index changes how long it takes to open a video and
    nothing else.

    Args:
        grows: what is learned is written down.
    """

    def __init__(self, file: Path | str, *, grows: bool = True):
        self.file, self.grows = Path(os.path.abspath(file)), grows
        self._begin()
        if grows:
            self.merge()  # what an earlier process left when it was killed
            weakref.finalize(self, _merge, self.file, os.getpid())

    def __getstate__(self) -> tuple[Path, bool]:
        return self.file, self.grows

    def __setstate__(self, state: tuple[Path, bool]) -> None:
        self.file, self.grows = state
        self._begin()

    def _begin(self) -> None:
        """Forgets what only the process that opened it may use."""
        self._process = os.getpid()
        self._reader: sqlite3.Connection | None = None
        self._read: tuple[int, int] | None = None  # inode and time of change of the file that it reads
        self._look_at = 0.0
        self._notes: int | None = None  # file descriptor
        self._writable = self.grows

    def state(self, path: str | os.PathLike) -> FileState | None:
        """Returns the state of a file, or of a member of a tar file; None if there is none."""
        try:
            status = file_status(path)
        except OSError:
            return None
        name = os.path.abspath(path).removeprefix(os.path.join(self.file.parent, ""))
        return FileState(os.fsencode(name), status.size, status.mtime_ns)

    def find(self, state: FileState) -> VideoFacts | None:
        """Returns what is known of a file in this state, None if that is nothing."""
        reader = self._current_reader()
        if reader is None:
            return None
        try:
            row = reader.execute(SELECT, (state.name,)).fetchone()
        except sqlite3.Error:  # damaged; the next merge makes it anew
            self._close_reader()
            return None
        if row is None or row[: len(state)] != state or not is_whole(row):
            return None
        return facts_of_row(row[len(state) : -1])

    def add(self, state: FileState, facts: VideoFacts) -> None:
        """Notes what reading a file in this state has told."""
        self._begin_in_fork()
        line = note_line(checked_row((*state, *facts.as_row())))
        for _ in range(2):  # another machine's merge may have removed the notes, which a network disk tells late
            if not self._writable:
                return
            try:
                if self._notes is not None and not os.fstat(self._notes).st_nlink:
                    self._close_notes()
                if self._notes is None:
                    self._notes = self._new_notes()
                os.write(self._notes, line)
                return
            except OSError:
                self._writable = self._notes is not None
                self._close_notes()

    def count(self) -> int:
        """Returns how many videos it holds."""
        reader = self._current_reader()
        try:
            return reader.execute("SELECT count(*) FROM videos").fetchone()[0] if reader is not None else 0
        except sqlite3.Error:
            return 0

    def merge(self) -> None:
        """Makes what all processes have noted part of the file."""
        _merge(self.file, os.getpid())

    def __del__(self) -> None:
        self._close()

    def _begin_in_fork(self) -> None:
        if self._process != os.getpid():
            self._close()
            self._begin()

    def _close(self) -> None:
        self._close_reader()
        self._close_notes()

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _close_notes(self) -> None:
        if self._notes is not None:
            os.close(self._notes)
            self._notes = None

    def _new_notes(self) -> int:
        path = self.file.with_name(f"{self.file.name}.{uuid.uuid4().hex[:8]}{NOTES}")
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY, 0o666)

    def _current_reader(self) -> sqlite3.Connection | None:
        self._begin_in_fork()
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_SECONDS
            try:
                status = os.stat(self.file)
                if self._read != (status.st_ino, status.st_mtime_ns):
                    self._close_reader()
                    self._read = status.st_ino, status.st_mtime_ns
                    self._reader = open_index(self.file)
            except (OSError, BrokenIndex):
                self._close_reader()
        return self._reader


def index_problem(file: Path) -> str | None:
    """Returns a sentence on why an index is not what its user expects; None if it is, or is yet to be made."""
    writable = os.access(file.parent, os.W_OK | os.X_OK)
    try:
        check_index(file)
    except FileNotFoundError:
        return None if writable else f"no index of the videos is kept: {file.parent} cannot be written"
    except BrokenIndex as error:
        return f"{file} {error}: it is {'made anew' if writable else 'not used'}"
    return None


def _merge(file: Path, process: int) -> None:
    if process != os.getpid():  # a forked worker holds a copy of the object
        return
    try:
        merge_notes(file)
    except (OSError, sqlite3.Error):
        pass  # the notes are still there
