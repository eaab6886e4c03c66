"""Fetches what a worker will open next, while it decodes."""

import threading
from collections import deque
from collections.abc import Iterator

from nlvideo.data.stores.addresses import split_shard
from nlvideo.data.stores.cache import Cache

OBJECTS_AHEAD = 8  # that a process has fetched and not opened yet
SHARE_AHEAD = 0.25  # of the cache that these may take, over all processes


class Ahead:
    """A thread that makes objects entries of a cache in the order in which they will be opened.

    It decides when an object comes and nothing else. What it cannot fetch is left to who opens it, who says why.

    Args:
        addresses: in the order in which this process opens them; read by the thread.
        processes: that do the same on this node.
    """

    def __init__(self, cache: Cache, addresses: Iterator[str], processes: int):
        self._cache, self._addresses = cache, addresses
        self._budget = SHARE_AHEAD * cache.space.limit / max(1, processes)
        self._waiting: deque[tuple[str, int]] = deque()  # objects that are fetched and not opened, with their bytes
        self._last_opened = ""
        self._changed, self._stopped = threading.Condition(), False
        # A daemon: a worker ends when it is told to, also in the middle of a download; its lock dies with it.
        self._thread = threading.Thread(target=self._run, name="fetching ahead", daemon=True)
        self._thread.start()

    def opened(self, address: str) -> None:
        """Moves on to what comes after an object that is opened now."""
        wanted = split_shard(address).object
        if wanted == self._last_opened:  # the next video of the same shard, which is waited for once
            return
        self._last_opened = wanted
        with self._changed:
            names = [name for name, _ in self._waiting]
            if wanted in names:
                for _ in range(names.index(wanted) + 1):
                    self._waiting.popleft()
                self._changed.notify()

    def stop(self) -> None:
        """Ends the thread once it looks: at the next bytes of what it fetches."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _run(self) -> None:
        last = ""
        for address in self._addresses:
            name = split_shard(address).object
            if name == last:
                continue
            last = name
            with self._changed:
                self._waiting.append((name, 0))
                self._changed.wait_for(lambda: self._stopped or self._has_room())
                if self._stopped:
                    return
            size = self._fetch(name)
            with self._changed:
                if self._stopped:
                    return
                self._waiting = deque((other, size if other == name else old) for other, old in self._waiting)

    def _has_room(self) -> bool:
        return len(self._waiting) <= OBJECTS_AHEAD and sum(size for _, size in self._waiting) < self._budget

    def _fetch(self, name: str) -> int:
        try:
            if self._cache.holds(name):
                return 0
            return self._cache.fetch(name, tries=1, wait=False, stopped=lambda: self._stopped)
        except Exception:  # whatever it is, who opens the object will meet it and say so
            return 0
