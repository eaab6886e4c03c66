"""One process at a time in a folder of results."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nlvideo.runtime.errors import UserFileExistsError

_held: dict[Path, int] = {}  # the files of the locks of this process


def lock_folder(folder: Path) -> None:
    """Locks a folder for this process until it ends or `unlocking` does; one that does not exist is not locked.

    Raises:
        UserFileExistsError: another process holds the lock.
    """
    key = folder.absolute()
    if not folder.is_dir() or key in _held:
        return
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    _held[key] = file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by this process alone, not by workers that it forks
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(_held.pop(key))
            raise UserFileExistsError(f"output_dir={folder} is in use by another process.") from None
        # any other error: a file system without locks


@contextmanager
def unlocking(folder: Path) -> Iterator[None]:
    """Gives the lock of a folder back when the block ends, for a process that goes on to other things."""
    try:
        yield
    finally:
        if folder.absolute() in _held:
            os.close(_held.pop(folder.absolute()))
