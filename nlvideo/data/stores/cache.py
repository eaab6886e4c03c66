"""The cache of a node: objects of stores as files, each fetched once for all ranks and workers."""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nlvideo.data.stores.addresses import split_shard
from nlvideo.data.stores.entries import CacheEntry, clear
from nlvideo.data.stores.space import Space
from nlvideo.data.stores.store import ObjectFacts, StoreFailed, download, object_facts, with_retries
from nlvideo.data.stores.traffic import Traffic
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.files import make_folder

ROOM_SECONDS, LOOK_SECONDS = 120.0, 2.0  # that a fetch waits for others to close their videos, and between its looks
FULL = (errno.ENOSPC, errno.EDQUOT)


def default_folder() -> Path:
    """Returns where the cache lies unless data.cache_dir says so."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "nlvideo", "videos")


class Cache:
    """Files of objects in a folder that any number of runs share.

    Entries that are open are never removed. What an entry holds is believed: a changed object under the same address is
    not noticed.

    Args:
        gigabytes: 1e9 bytes that it may hold; of several runs the smallest number counts.
        num_workers: of the loader that uses it.
    """

    def __init__(self, folder: Path, gigabytes: float, num_workers: int = 0):
        self.folder, self.gigabytes = folder, gigabytes
        self.space, self.traffic = Space(folder, int(gigabytes * 1e9)), Traffic(num_workers)

    def check(self) -> None:
        """Makes the folder, and removes what is too much and what killed processes have left.

        Raises:
            UserError: the folder cannot be written.
        """
        if sys.platform == "win32":
            raise UserError("Data in a store need locks of open files, which Windows lacks; use WSL.")
        make_folder(self.folder, f"data.cache_dir={self.folder}")
        try:
            self.space.count()
        except OSError as error:  # file systems without locks, too
            raise UserError(self._unusable(error)) from None

    def _unusable(self, error: OSError) -> str:
        return f"data.cache_dir={self.folder} cannot be used: {_reason(error)}."

    @contextmanager
    def file(self, address: str) -> Iterator[str]:
        """Yields the path of an object's file, or of a member in a shard's, which stays until the block ends.

        Raises:
            MissingObject: the store has no such object.
            StoreFailed: it does not give it, or there is no room for it.
        """
        name, started = split_shard(address).object, time.monotonic()
        entry = CacheEntry(self.folder, name)
        try:
            hit = (lock := self._shared(entry)) is not None
            while lock is None:
                self.fetch(name)
                lock = self._shared(entry)
        except OSError as error:
            raise StoreFailed(f"{name}: {self._unusable(error)}") from None
        try:
            try:
                self.space.note_use(entry.folder)
            except OSError as error:
                raise StoreFailed(f"{name}: {self._unusable(error)}") from None
            waited = time.monotonic() - started
            self.traffic.add(opens=1, hits=hit, waited_seconds=0.0 if hit else waited)
            yield self.place(address)
        finally:
            os.close(lock)

    def _shared(self, entry: CacheEntry) -> int | None:
        """Returns the lock of an entry that is there, None if it is not."""
        if entry.record() is None:
            return None
        lock = entry.lock(exclusive=False, wait=True)
        if lock is not None and entry.record() is None:
            os.close(lock)
            return None
        return lock

    def place(self, address: str) -> str:
        """Returns where the file of an object, or of a member in a shard's, is or would be."""
        place = split_shard(address)
        file = CacheEntry(self.folder, place.object).file
        return str(file) if place.member is None else f"{file}/{place.member.lstrip('/')}"

    def holds(self, address: str) -> bool:
        return CacheEntry(self.folder, split_shard(address).object).record() is not None

    def fetch(
        self, address: str, *, tries: int | None = None, wait: bool = True, stopped: Callable[[], bool] = lambda: False
    ) -> int:
        """Makes an object an entry, unless it is one; returns its bytes. Others that fetch it are waited for.

        Args:
            tries: see with_retries.
            wait: for others that fetch it, and for room where all that could be removed is open; otherwise nothing is
                fetched then.

        Raises:
            MissingObject, StoreFailed, Stopped: see with_retries; there is no room for it.
        """
        entry = CacheEntry(self.folder, address)
        lock = entry.lock(exclusive=True, wait=wait)
        if lock is None:
            return 0
        try:
            record = entry.record()  # after waiting for another process
            if record is not None:
                return record.size
            clear(entry.folder)
            size = self._fetch_into(
                entry,
                lambda fetch: with_retries(address, fetch, tries=tries, stopped=stopped, folder=self.folder),
                lambda: self._fetch_once(entry, wait, stopped),
            )
        finally:
            os.close(lock)
        self.traffic.add(fetches=1, fetched_bytes=size)
        return size

    def _fetch_into(
        self, entry: CacheEntry, retried: Callable[[Callable[[], int]], int], fetch: Callable[[], int]
    ) -> int:
        """Fetches an object whose lock this process holds. If the disk is full, other entries make room once."""
        for last_try in (False, True):
            try:
                return retried(fetch)
            except OSError as error:
                if error.errno not in FULL or last_try:
                    what = "is full" if error.errno in FULL else f"cannot be written: {_reason(error)}"
                    raise StoreFailed(
                        f"{entry.address} cannot be fetched: the disk of data.cache_dir={self.folder} {what}."
                    ) from None
        raise AssertionError("the last try returns or raises")

    def _fetch_once(self, entry: CacheEntry, wait: bool, stopped: Callable[[], bool]) -> int:
        facts = object_facts(entry.address)
        taken, kept = facts.size or 0, False
        part = self._take(entry, taken, wait)
        try:
            size, md5 = download(entry.address, part, facts, stopped)
            if facts.size is None:
                part = part.replace(self._take(entry, size, wait))
                taken = size
            entry.keep(part, size, facts.version, md5)
            kept = True
            self.space.note_use(entry.folder)
            return size
        except OSError as error:
            if error.errno in FULL:
                self.space.free(taken)
            raise
        finally:
            if not kept:
                self.space.give_back(taken, entry.folder)

    def _take(self, entry: CacheEntry, size: int, wait: bool) -> Path:
        """Returns an empty file with room for an object; where all entries are open, it waits until some are not."""
        part, address = entry.part(size), entry.address
        end = time.monotonic() + (ROOM_SECONDS if wait else 0)
        while not self.space.take(size, part):
            if size > self.space.limit:
                raise StoreFailed(f"{address} has {size / 1e9:.4g} GB, more than data.cache_gb={self.gigabytes:g}.")
            if time.monotonic() >= end:
                raise StoreFailed(
                    f"{address}: data.cache_gb={self.gigabytes:g} has no room for its {size / 1e9:.4g} GB beside what "
                    "is open. Give it more, or use fewer workers."
                )
            time.sleep(min(LOOK_SECONDS, max(0.0, end - time.monotonic())))
        return part


def _reason(error: OSError) -> str:
    return error.strerror or str(error).rstrip(".")  # the second of a UserError


def facts_with_retries(address: str) -> ObjectFacts:
    """Returns what a store says of an object; raises as with_retries."""
    return with_retries(address, lambda: object_facts(address))
