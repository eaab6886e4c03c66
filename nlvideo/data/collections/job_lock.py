"""One process at a time in each part of a job over a collection."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nlvideo.runtime.errors import UserFileExistsError
from nlvideo.runtime.folder_lock import lock_if_possible, open_lock, open_to_lock

SECOND_LOOK = 0.05  # seconds, after which nobody holds a lock who only looked at it


@contextmanager
def job_lock(folder: Path, stem: str, which: str) -> Iterator[bool]:
    """Keeps other processes out of a part of a job, and out of all that share items with it, for the block.

    Parts of one division (1/4 and 2/4) share none; the whole job ("1/1") and parts of other divisions do.

    Args:
        folder: of the job.
        stem: of the names of its files.
        which: the part, "i/n".

    Yields:
        Whether this process is surely alone in its part; not so where the file system has no locks.

    Raises:
        UserFileExistsError: another process is in the part, or in one that shares items with it.
        UserPermissionError: a file of locks is another user's.
    """
    number, of = which.split("/")
    lock = open_lock(folder / f".{stem}.{number}-of-{of}.lock")
    try:
        alone = _is_free(lock, folder, which)
        for file in folder.glob(f".{stem}.*-of-*.lock"):
            other, other_of = file.name.split(".")[-2].split("-of-")
            if other_of != of:
                _look(file, folder, f"{other}/{other_of}")
        yield alone
    finally:
        os.close(lock)


def _look(file: Path, folder: Path, which: str) -> None:
    """Finds out whether a part is free, together with others that look at the same moment."""
    descriptor = open_to_lock(file, os.O_RDONLY)
    try:
        _is_free(descriptor, folder, which, shared=True)
    finally:
        os.close(descriptor)


def _is_free(lock: int, folder: Path, which: str, *, shared: bool = False) -> bool:
    """Takes a lock and returns True; False where there are none."""
    try:
        return lock_if_possible(lock, shared=shared)
    except BlockingIOError:
        time.sleep(SECOND_LOOK)
    try:
        return lock_if_possible(lock, shared=shared)
    except BlockingIOError:
        raise UserFileExistsError(f"{folder} is in use by another process (--shard {which}).") from None
