"""An index of videos as workers use it: what is known of a file, and a place for what is learned."""

import errno
import os
import sqlite3
import time
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import av

from nlvideo.data.index.facts import VideoFacts, facts_of_row
from nlvideo.data.index.index_file import (
    SELECT,
    BrokenIndex,
    UnusableIndex,
    check_index,
    checked_row,
    is_foreign,
    is_whole,
    lock_of,
    merge_notes,
    new_notes,
    note_line,
    open_index,
)
from nlvideo.data.shards.video_file import file_status
from nlvideo.runtime.errors import UserError

INDEX_FILE = ".nlvideo_index"  # in the folder of the videos
LIBRARIES = (av.library_versions[name] for name in ("libavformat", "libavcodec"))
READER = "/".join([av.__version__, *(".".join(map(str, version)) for version in LIBRARIES)])
NOTED_BYTES = 5_000_000  # of lines that a process keeps in memory: 19,000 videos of regular times, in 14 MB
LOOK_SECONDS = 30.0  # from one look whether the index has been replaced to the next


class FileState(NamedTuple):
    """A file as it was before it was read, and by what."""

    name: bytes  # see VideoIndex
    size: int
    mtime_ns: int
    start: int  # of a member of a tar file, where in it it begins
    reader: str = READER


class VideoIndex:
    """Facts of videos in a file that processes and machines share.

    A video is known by its name, size and time of change, and by the versions of PyAV and FFmpeg, another of which may
    see something else in it. Of a member of a tar file, the time is that of the tar file, and its place in it counts
    too. The name is relative to the folder of the index where it lies below that, so that a folder can be moved with
    its index, and absolute elsewhere. A file that is replaced by one of equal size with the old one's time of change
    (to the nanosecond) is not noticed.

    An object is used by any number of processes, forked or spawned; each opens the file for itself when it first needs
    it. What processes have learned is merged into the file when an object is made and when it ends, in the process that
    made it; until then each knows what it has noted itself. What cannot be read or written is done without: an index
    changes how long it takes to open a video and nothing else.

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
        self._notes: int | None = None  # file descriptor of _notes_file
        self._noted: OrderedDict[bytes, tuple[tuple[Any, ...], int]] = OrderedDict()  # rows, lengths of their lines
        self._noted_bytes = 0
        self._writable = self.grows and not is_foreign(self.file)

    def state(self, path: str | os.PathLike) -> FileState | None:
        """Returns the state of a file, or of a member of a tar file; None if there is none."""
        try:
            status = file_status(path)
        except OSError:
            return None
        name = os.path.abspath(path).removeprefix(os.path.join(self.file.parent, ""))
        return FileState(os.fsencode(name), *status)

    def find(self, state: FileState) -> VideoFacts | None:
        """Returns what is known of a file in this state, None if that is nothing."""
        row = self._noted_row(state.name) or self._kept_row(state.name)
        if row is None or row[: len(state)] != state or not is_whole(row):
            return None
        try:
            return facts_of_row(row[len(state) : -1], state.size)
        except Exception:  # anybody may have written the index
            return None

    def _noted_row(self, name: bytes) -> tuple[Any, ...] | None:
        """Returns what this process has noted, which the file has only after a merge, maybe the next run's."""
        self._begin_in_fork()
        if name not in self._noted:
            return None
        self._noted.move_to_end(name)
        return self._noted[name][0]

    def _kept_row(self, name: bytes) -> tuple[Any, ...] | None:
        reader = self._current_reader()
        if reader is None:
            return None
        try:
            return reader.execute(SELECT, (name,)).fetchone()
        except sqlite3.Error:  # damaged, which the next merge makes anew, or an error that passes
            self._close_reader()
            return None

    def add(self, state: FileState, facts: VideoFacts) -> None:
        """Notes what reading a file in this state has told."""
        row = checked_row((*state, *facts.as_row()))
        if self._noted_row(state.name) == row:
            return
        line = note_line(row)
        self._remember(state.name, row, len(line))
        for last_try in (False, True):
            if not self._writable:
                return
            try:
                self._write_note(line)
                return
            except OSError:
                # Another machine's merge may have removed the notes, which a network disk tells late.
                removed = self._notes is not None and _is_removed(self._notes)
                if not removed:
                    self._remove_empty_notes()
                self._close_notes()
                self._writable = removed and not last_try

    def _remember(self, name: bytes, row: tuple[Any, ...], size: int) -> None:
        self._noted_bytes += size - self._noted.pop(name, ((), 0))[1]
        self._noted[name] = row, size
        while self._noted_bytes > NOTED_BYTES:
            self._noted_bytes -= self._noted.popitem(last=False)[1][1]

    def _write_note(self, line: bytes) -> None:
        for _ in range(10):  # more merges than come in between
            if self._notes is None:
                self._notes_file = new_notes(self.file)
                self._notes = os.open(self._notes_file, os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY, 0o666)
            if os.write(self._notes, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._notes_file.exists():
                return
            self._close_notes()  # a merge has taken the notes, and may have read them before this line was there

    def count(self) -> int:
        """Returns how many videos it holds."""
        try:
            reader = self._current_reader()
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
        self._read = None  # it is opened anew, even if the file stays the same

    def _close_notes(self) -> None:
        if self._notes is not None:
            os.close(self._notes)
            self._notes = None

    def _remove_empty_notes(self) -> None:
        if self._notes is not None and not os.fstat(self._notes).st_size:
            self._close_notes()  # Windows removes no open file
            self._notes_file.unlink(missing_ok=True)

    def _current_reader(self) -> sqlite3.Connection | None:
        self._begin_in_fork()
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_SECONDS
            try:
                status = os.stat(self.file)
                if self._read != (status.st_ino, status.st_mtime_ns):
                    self._close_reader()
                    self._reader = open_index(self.file)
                    self._read = status.st_ino, status.st_mtime_ns
            except (OSError, sqlite3.Error, UnusableIndex):
                self._close_reader()
        return self._reader


def chosen_index(name: str, given: str) -> Path:
    """Returns the file that a user has named for an index.

    Args:
        given: how the user named it, such as "data.index=FILE".

    Raises:
        UserError: it cannot be, or is a file of something else, which an index would replace.
    """
    file, what = Path(name), ""
    if file.is_dir():
        what = "this is a folder"
    elif not file.parent.is_dir():
        what = f"the folder {file.parent} does not exist"
    elif is_foreign(file):
        what = "this file is no index of videos, and is not overwritten"
    if what:
        raise UserError(f"{given}: {what}. Give a file, which is made if it does not exist, or none.")
    return file


def index_problem(file: Path) -> str | None:
    """Returns a sentence on why an index is not what its user expects; None if it is, or is yet to be made."""
    writable = os.access(file.parent, os.W_OK | os.X_OK)
    try:
        check_index(file)
    except FileNotFoundError:
        if not writable:
            return f"no index of the videos is kept: {file.parent} cannot be written"
    except BrokenIndex as error:
        return f"{file} {error}: it is {'made anew' if writable else 'not used'}"
    except UnusableIndex as error:
        return f"{file} {error}: it is not used, and left as it is"
    lock = lock_of(file)
    if writable and lock.exists() and not os.access(lock, os.R_OK | os.W_OK):
        return f"{file} does not grow: {lock} is another user's, who can give it to all (chmod 666)"
    return None


def _is_removed(descriptor: int) -> bool:
    try:
        return not os.fstat(descriptor).st_nlink
    except OSError:  # ESTALE, of a network disk
        return True


def _merge(file: Path, process: int) -> None:
    if process != os.getpid():  # a forked worker holds a copy of the object
        return
    try:
        merge_notes(file)
    except (OSError, sqlite3.Error, UnusableIndex):
        pass  # the notes are still there
