"""One object in the cache of a node: its file, the record of what it is, and the lock that all processes respect.

An entry is a folder of four files. The file counts only with a record that says how long it is; both are made under
other names, synced and renamed, the record first: it names the file, and nothing without such a name is ever removed.
The lock is shared by those who read the file and exclusive for who fetches or removes it; the system gives it back when
a process dies.
"""

import hashlib
import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from nlvideo.data.stores.addresses import file_name
from nlvideo.runtime.files import PARTIAL_FILE, write_text
from nlvideo.runtime.folder_lock import open_lock

if sys.platform != "win32":
    import fcntl

LOCK, RECORD, PART = ".lock", ".record.json", ".part"
PARTIAL = re.compile(rf"\.\d+{re.escape(PART)}")  # see CacheEntry.part
GROUP, KEY = re.compile("[0-9a-f]{2}"), re.compile("[0-9a-f]{40}")  # names of the folders of entries
FIRST_TIME, TIME_RANGE = 1_000_000_000, 1_000_000_000  # seconds: the times of change that versions are mapped to


class Record(NamedTuple):
    """What a file in the cache is."""

    address: str
    size: int  # bytes
    version: str  # as the store called it
    md5: str  # of what came, hexadecimal


class CacheEntry:
    """Where an object is kept, whether it is there or not."""

    def __init__(self, cache: Path, address: str):
        key = hashlib.sha256(os.fsencode(address)).hexdigest()[:40]
        self.address, self.folder = address, cache / key[:2] / key
        self.file = self.folder / file_name(address)

    def record(self) -> Record | None:
        """Returns what the entry's file is; None if there is none, or not of the length that it had."""
        try:
            found = Record(**json.loads((self.folder / RECORD).read_bytes()))
            whole = found.address == self.address and self.file.stat().st_size == found.size
        except (OSError, ValueError, TypeError):
            return None
        return found if whole else None

    def part(self, size: int) -> Path:
        """Returns the name under which the object is fetched; it tells others how much space it takes."""
        return self.folder / f".{size}{PART}"

    def keep(self, part: Path, size: int, version: str, md5: str) -> None:
        """Makes what was fetched the entry's file. The caller holds the exclusive lock.

        The time of change is a function of the version: what an index of videos knows of the file outlasts its removal.
        """
        content = int(hashlib.sha256((version or md5).encode()).hexdigest()[:12], 16)
        os.utime(part, (FIRST_TIME + content % TIME_RANGE,) * 2)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        record = Record(self.address, size, version, md5)
        write_text(self.folder / RECORD, json.dumps(record._asdict()))
        part.replace(self.file)

    def lock(self, *, exclusive: bool, wait: bool) -> int | None:
        """Returns the open file that holds the entry's lock, until it is closed; None where others hold it.

        Args:
            wait: until they give it back.
        """
        return lock_folder_of_entry(self.folder, exclusive=exclusive, wait=wait)


def lock_folder_of_entry(folder: Path, *, exclusive: bool, wait: bool) -> int | None:
    """See CacheEntry.lock; its folder is made if it does not exist, and is for all users who share the cache."""
    name = folder / LOCK
    while True:
        _make_for_all(folder.parent)
        _make_for_all(folder)
        try:
            lock = open_lock(name)
        except FileNotFoundError:  # the entry was removed just now
            continue
        try:
            # Of an open file, not of a process as lockf: threads of one process exclude each other, too.
            fcntl.flock(lock, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
            if os.stat(name).st_ino == os.fstat(lock).st_ino:
                return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # of an entry that was removed while this one waited


def _make_for_all(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return
    with suppress(OSError):  # another process may have removed it
        folder.chmod(0o777)  # whatever the umask


def remove_entry(folder: Path) -> bool:
    """Removes an entry with all that dead processes have left in it, and returns whether it did.

    It does not where a process reads or fetches it, or where it is another user's who keeps it to himself.
    """
    try:
        lock = lock_folder_of_entry(folder, exclusive=True, wait=False)
        if lock is None:
            return False
        try:
            clear(folder)
            (folder / LOCK).unlink(missing_ok=True)
        finally:
            os.close(lock)
    except PermissionError:
        return False
    with suppress(OSError):  # another process has made the entry anew
        folder.rmdir()
    return True


def is_unfinished_record(name: str) -> bool:
    written = PARTIAL_FILE.fullmatch(name)
    return written is not None and written[1] == RECORD


def clear(folder: Path) -> None:
    """Removes what is ours but for the lock, the record last: it names the file. The caller holds the lock."""
    try:
        kept = file_name(json.loads((folder / RECORD).read_bytes())["address"])
    except (OSError, ValueError, LookupError, TypeError):
        kept = None
    for name in os.listdir(folder):
        if name == kept or PARTIAL.fullmatch(name) or is_unfinished_record(name):
            (folder / name).unlink(missing_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
