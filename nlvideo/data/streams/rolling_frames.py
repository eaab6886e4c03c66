"""The last frames of a stream, which one thread puts in and another takes when it has time.

H height, W width.
"""

import threading
from collections import deque
from typing import NamedTuple

from torch import Tensor


class StreamFrame(NamedTuple):
    pixels: Tensor  # (H, W, 3) uint8, resized
    number: int  # among all frames of the stream
    seconds: float  # of the stream
    arrival: float  # time.time()


class RollingFrames:
    """Holds the last `length` frames; older ones are gone, whether somebody took them or not."""

    def __init__(self, length: int):
        self.length = length
        self._frames: deque[StreamFrame] = deque(maxlen=length)
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None

    def put(self, frame: StreamFrame) -> None:
        with self._changed:
            if self._frames and self._frames[-1].pixels.shape != frame.pixels.shape:
                self._frames.clear()
            self._frames.append(frame)
            self._changed.notify()

    def clear(self) -> None:
        """Forgets all frames: the next ones do not follow on them."""
        with self._changed:
            self._frames.clear()

    def end(self, error: BaseException | None) -> None:
        """Says that no frames will come any more.

        Args:
            error: why; None: the stream is over.
        """
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def window(self, last: StreamFrame | None, every: int | float) -> list[StreamFrame] | None:
        """Waits for the newest window that ends `every` or more after a frame; None once the stream is over.

        A window that is due when the stream ends is still given.

        Args:
            last: frame; None: any window.
            every: frames (int) or seconds (float).

        Raises:
            whatever `end` was given.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._is_due(last, every))
            if self._is_due(last, every):
                return list(self._frames)
            if self._error is not None:
                raise self._error
            return None

    def _is_due(self, last: StreamFrame | None, every: int | float) -> bool:
        if len(self._frames) < self.length:
            return False
        if last is None:
            return True
        newest = self._frames[-1]
        if isinstance(every, int):
            return newest.number - last.number >= every
        return newest.number > last.number and newest.seconds - last.seconds >= every - 1e-6
