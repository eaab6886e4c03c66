"""Seconds of a stream: by the times that it states where they rise, else by when its frames arrive."""

from collections.abc import Iterator
from typing import NamedTuple

import av

LARGEST_STEP = 10.0  # seconds between two frames; a larger one is taken for a clock that was set anew


class TimedFrame(NamedTuple):
    frame: av.VideoFrame
    seconds: float  # since the first frame of the stream
    arrival: float  # when it came, by the clock of the machine


class StreamTimes:
    """Turns the times that frames state into seconds since the first one, which rise or stay and go on over cuts."""

    def __init__(self) -> None:
        self._origin: float | None = None
        self._last = 0.0
        self._stated: float | None = None

    def restart(self) -> None:
        """Says that the next frame is of a new connection, whose times start anywhere."""
        self._stated = None

    def seconds(self, stated: float | None, arrival: float) -> float:
        """Returns the seconds of a frame.

        Args:
            stated: by the stream, None if it does not say.
            arrival: of a clock that rises.
        """
        if self._origin is None:
            self._origin = arrival
        step = None if stated is None or self._stated is None else stated - self._stated
        self._stated = stated
        if step is not None and 0 < step <= LARGEST_STEP:
            self._last += step
        else:
            self._last = max(self._last, arrival - self._origin)
        return self._last


class FrameRate:
    """Takes frames by time: which is shown at 0, 1, 2, ... / clip_fps seconds of a connection; of None, all.

    A frame is shown until the next one, but no longer than LARGEST_STEP or 1 / clip_fps seconds, whichever is more:
    where a stream pauses, the seconds are counted anew.
    """

    def __init__(self, clip_fps: float | None):
        self._step = None if clip_fps is None else 1 / clip_fps
        self._shown: TimedFrame | None = None
        self._first, self._ticks = 0.0, 0

    def restart(self) -> None:
        self._shown = None

    def taken(self, frame: TimedFrame) -> Iterator[TimedFrame]:
        """Yields the frames that are due before this one is shown."""
        if self._step is None:
            yield frame
            return
        if self._shown is None:
            self._first, self._ticks = frame.seconds, 0
        shown, self._shown = self._shown, frame
        if shown is None:
            return
        latest = shown.seconds + max(LARGEST_STEP, self._step)
        while (time := self._first + self._ticks * self._step) < min(frame.seconds, latest) - 1e-6:
            yield shown._replace(seconds=time)
            self._ticks += 1
        if frame.seconds > latest:
            self._first, self._ticks = frame.seconds, 0
