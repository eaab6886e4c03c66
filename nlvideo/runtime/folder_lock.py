"""One process at a time in a folder of results."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nlvideo.runtime.errors import UserFileExistsError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_held: dict[Path, int | None] = {}  # folders that this process holds, with the open file of the lock


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Keeps a folder for the block: locks that `lock_folder` takes meanwhile are given back when it ends.

    Raises:
        UserFileExistsError: another block of this process holds the folder.
    """
    key = folder.resolve()
    if key in _held:
        raise UserFileExistsError(f"output_dir={folder} is in use by another run of this process.")
    _held[key] = None
    try:
        yield
    finally:
        lock = _held.pop(key)
        if lock is not None:
            os.close(lock)


def lock_folder(folder: Path) -> None:
    """Locks a folder until `holding` ends or, outside of it, this process; one that does not exist is not locked.

    Raises:
        UserFileExistsError: another process holds the lock.
    """
    key = folder.resolve()
    if not folder.is_dir() or _held.get(key) is not None:
        return
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        lock_file(lock, wait=False)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(lock)
            raise UserFileExistsError(f"output_dir={folder} is in use by another process.") from None
        # any other error: a file system without locks
    _held[key] = lock


def lock_file(descriptor: int, *, wait: bool) -> None:
    """Locks an open file for this process, not for workers that it starts, until the file is closed.

    Args:
        wait: for another process that holds it; on Windows 10 seconds.

    Raises:
        OSError: another process holds the lock (EACCES or EAGAIN), or the file system has no locks.
    """
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
