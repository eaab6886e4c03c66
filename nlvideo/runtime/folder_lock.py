"""One process at a time in a folder of results."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nlvideo.runtime.errors import UserFileExistsError, UserPermissionError

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
        UserPermissionError: as open_lock.
    """
    key = folder.resolve()
    if not folder.is_dir() or _held.get(key) is not None:
        return
    lock = open_lock(folder / ".lock")
    try:
        lock_if_possible(lock)
    except BlockingIOError:
        os.close(lock)
        raise UserFileExistsError(f"output_dir={folder} is in use by another process.") from None
    _held[key] = lock


def open_lock(path: Path) -> int:
    """Returns a file to lock, open for reading and writing. A new one is for all users who share the folder.

    Raises:
        UserPermissionError: it is another user's, who has not given it to all, or cannot be created.
    """
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return open_to_lock(path, os.O_RDWR)
    except PermissionError:
        raise UserPermissionError(f"{path} cannot be created: permission denied.") from None
    with suppress(OSError):
        path.chmod(0o666)  # whatever the umask
    return lock


def open_to_lock(path: Path, flags: int) -> int:
    """Opens a file to lock that exists; raises as open_lock."""
    try:
        return os.open(path, flags)
    except PermissionError:
        raise UserPermissionError(f"{path} is another user's, who can give it to all (chmod 666).") from None


def lock_if_possible(descriptor: int, *, shared: bool = False) -> bool:
    """Locks an open file as lock_file does, without waiting; returns False where the file system has no locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        lock_file(descriptor, wait=False, shared=shared)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(error.errno, "another process holds the lock") from None
        return False
    return True


def lock_file(descriptor: int, *, wait: bool, shared: bool = False) -> None:
    """Locks an open file for this process, not for workers that it starts, until the file is closed.

    Args:
        wait: for another process that holds it; on Windows 10 seconds.
        shared: with others who want no more than that, which takes a file open for reading; on Windows with none.

    Raises:
        OSError: another process holds the lock (EACCES or EAGAIN), or the file system has no locks.
    """
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.lockf(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
