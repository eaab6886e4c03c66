"""Who may write into a folder at one time: one command alone, or shards of one number of parts, each once."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from nlvideo.runtime.errors import UserFileExistsError
from nlvideo.runtime.folder_lock import lock_if_possible, open_lock

HAS_SHARED_LOCKS = sys.platform != "win32"  # there, a whole command and shards do not see each other
FIRST_SECONDS = 5.0  # that another shard may hold the folder alone, while it says how many parts there are


@contextmanager
def shard_lock(folder: Path, shard: str | None, when_alone: Callable[[], object]) -> Iterator[None]:
    """Keeps a folder, or one shard of it, for the block.

    A whole command holds `.lock` alone. Shards share it, and the first one there writes into it how many they are;
    besides, each holds a file of its own.

    Args:
        shard: I/N, or None for all of it.
        when_alone: is called while no other process can be in the folder, if none is.

    Raises:
        UserFileExistsError: another process has it, or shards of another number of parts.
    """
    in_use = UserFileExistsError(f"output={folder} is in use by another process.")
    with ExitStack() as stack:
        if shard is None:
            if not _locked(stack.enter_context(_opened(folder / ".lock"))):
                raise in_use
            when_alone()
        elif HAS_SHARED_LOCKS:
            common = stack.enter_context(_opened(folder / ".lock"))
            if _locked(common):
                when_alone()
                os.truncate(common, 0)
                os.write(common, shard.partition("/")[2].encode())
            if not _shared(common):
                raise in_use
            parts = os.pread(common, 20, 0).decode()  # closing the file elsewhere would give up the lock
            if parts != shard.partition("/")[2]:
                raise UserFileExistsError(f"output={folder} is in use by shards of {parts} parts; this is {shard}.")
        if shard is not None and not _locked(stack.enter_context(_opened(folder / f".lock{shard_suffix(shard)}"))):
            raise in_use
        yield


def shard_suffix(shard: str | None) -> str:
    """Returns what the names of the files end in that a shard has for itself; empty for a whole command."""
    return f".{shard.replace('/', '-of-')}" if shard else ""


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = open_lock(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Returns False if another process holds it; a file system without locks lets everybody in."""
    with suppress(BlockingIOError):
        lock_if_possible(descriptor)
        return True
    return False


def _shared(descriptor: int) -> bool:
    """Returns False if another process keeps it for itself."""
    deadline = time.monotonic() + FIRST_SECONDS
    while True:
        with suppress(BlockingIOError):
            lock_if_possible(descriptor, shared=True)
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
