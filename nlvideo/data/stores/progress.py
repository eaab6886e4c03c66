"""Watches a download while it comes: whether it is wanted, how fast it is, and how long it may become."""

import time
from collections.abc import Callable
from typing import Any

SLOW_SECONDS, SLOW_BYTES = 120.0, 64_000  # a download that gets fewer bytes in so long is given up


class BrokenDownload(Exception):
    """What came is not the whole object; says why."""


class UnknownLength(Exception):
    """The server says neither how long an object is nor its MD5: nobody could tell a part from the whole."""


class Stopped(Exception):
    """Nobody wants the object any more."""


def progress(size: int | None, hashed: bool, stopped: Callable[[], bool]) -> Any:
    """Returns a callback of fsspec for one download; its `expected` is what the object's bytes must be, if known.

    Args:
        size: bytes of the object; None: as the answer says that brings it.
        hashed: whether its MD5 is known.
    """
    from fsspec.callbacks import Callback

    class Progress(Callback):
        def __init__(self) -> None:
            super().__init__()
            self.expected, self.came = size, 0
            self.since, self.came_before = time.monotonic(), 0

        def set_size(self, size: int | None) -> None:
            self.expected = size if self.expected is None else self.expected

        def relative_update(self, inc: int = 1) -> None:
            if stopped():
                raise Stopped
            self.came += inc
            if self.expected is None and not hashed:
                raise UnknownLength
            if self.expected is not None and self.came > self.expected:
                raise BrokenDownload(f"more than its {self.expected} bytes came")
            if (now := time.monotonic()) - self.since > SLOW_SECONDS:
                if (new := self.came - self.came_before) < SLOW_BYTES:
                    raise BrokenDownload(f"only {new} bytes came in {now - self.since:.0f} s")
                self.since, self.came_before = now, self.came

    return Progress()
