"""How much a cache holds, and which of its entries go first.

The last use of an entry is a number that each use counts up, kept as the time of change of its record: no clock is read
that could run backwards.
"""

import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from nlvideo.data.stores.entries import (
    GROUP,
    KEY,
    LOCK,
    PART,
    PARTIAL,
    RECORD,
    clear,
    is_unfinished_record,
    remove_entry,
)
from nlvideo.runtime.folder_lock import open_lock

if sys.platform != "win32":
    import fcntl

STATE = ".state"  # the number of the last use, and the bytes in the cache, those included that are on their way
STATE_LAYOUT = struct.Struct("<qq")
SLACK = 0.05  # of the limit, that is freed besides, so that not every fetch looks through the cache


class Held(NamedTuple):
    """An entry as it lies on the disk."""

    used: int  # number of its last use; 0 if it has no record, or no file
    size: int  # bytes, those included that are on their way
    folder: Path


class Space:
    """The bytes of a cache, shared by all processes of a node.

    Args:
        limit: bytes that this process allows the cache to have.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit

    def note_use(self, entry: Path) -> None:
        """Notes that an entry, whose lock the caller holds, was used after all others."""
        with self._state() as state:
            state[0] += 1
            with suppress(PermissionError):  # of another user's entry, which goes as if it was not used again
                os.utime(entry / RECORD, (state[0], state[0]))

    def take(self, size: int, part: Path) -> bool:
        """Counts bytes as held, after making room for them; returns whether there is room.

        Args:
            part: the file that is to hold them, named by CacheEntry.part. It is made at once, while no other process
                counts what is on the disk: one that did not see it would forget these bytes.
        """
        with self._state() as state:
            if state[1] + size > self.limit:
                state[1] = self._make_room(state[0], max(0, int(self.limit * (1 - SLACK)) - size))
            if state[1] + size > self.limit:
                return False
            part.touch()
            state[1] += size
            return True

    def give_back(self, size: int, entry: Path) -> None:
        """Removes what came of an entry, whose lock the caller holds, and counts its bytes as held no more."""
        with self._state() as state:  # both at once: who counts between the two would take them off twice
            clear(entry)
            state[1] = max(0, state[1] - size)

    def free(self, size: int) -> None:
        """Removes the entries that were not used for longest, of so many bytes: the disk is full before the cache."""
        with self._state() as state:
            state[1] = self._make_room(state[0], max(0, state[1] - max(size, int(SLACK * self.limit))))

    def count(self) -> None:
        """Looks how much there is, and removes what processes that were killed have left."""
        with self._state() as state:
            state[1] = self._make_room(state[0], self.limit)

    def _make_room(self, last_use: int, allowed: int) -> int:
        """Removes entries until the others are small enough, or in use; returns their bytes.

        A number above the last use is a time: whoever fetched the entry was killed before it was used.
        """
        held = sorted(held_entries(self.folder), key=lambda entry: entry.used if entry.used <= last_use else 1)
        total = sum(entry.size for entry in held)
        for entry in held:
            if (total > allowed or not entry.used) and remove_entry(entry.folder):
                total -= entry.size
        return total

    @contextmanager
    def _state(self) -> Iterator[list[int]]:
        """Yields the two numbers, which no other process changes until the block ends; then those in it count."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = open_lock(self.folder / STATE)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            read = os.pread(file, STATE_LAYOUT.size, 0)
            if len(read) == STATE_LAYOUT.size:
                state = list(STATE_LAYOUT.unpack(read))
            else:
                held = held_entries(self.folder)
                state = [max((entry.used for entry in held), default=0), sum(entry.size for entry in held)]
            yield state
            os.pwrite(file, STATE_LAYOUT.pack(*state), 0)
        finally:
            os.close(file)


def held_entries(folder: Path) -> list[Held]:
    """Returns the entries of a cache, and nothing else that lies in its folder: users may keep files there."""
    found = []
    for group in os.scandir(folder):
        if GROUP.fullmatch(group.name) and group.is_dir(follow_symlinks=False):
            entries = os.scandir(group.path)
            found += [_held(Path(entry.path)) for entry in entries if _is_entry(entry, group.name)]
    return found


def _is_entry(found: os.DirEntry, group: str) -> bool:
    named = KEY.fullmatch(found.name) and found.name.startswith(group)
    return bool(named) and found.is_dir(follow_symlinks=False)


def _held(entry: Path) -> Held:
    used = size = 0
    has_file = False
    try:
        for file in os.scandir(entry):
            if file.name == RECORD:
                used = int(file.stat().st_mtime)
            elif PARTIAL.fullmatch(file.name):
                size += int(file.name[1 : -len(PART)])
            elif file.name != LOCK and not is_unfinished_record(file.name):
                has_file = True
                size += file.stat(follow_symlinks=False).st_size
    except FileNotFoundError:  # it is being removed or written
        pass
    return Held(used if has_file else 0, size, entry)
