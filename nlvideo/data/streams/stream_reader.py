"""The thread that reads a stream: decodes, resizes, and connects again where it breaks off."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np
import torch

from nlvideo.data.clips.sampling import resized_size
from nlvideo.data.decoding.conversion import Converter
from nlvideo.data.decoding.orientation import Orientation, orientation_of
from nlvideo.data.decoding.video import Crop, resize_part
from nlvideo.data.streams.rolling_frames import RollingFrames, StreamFrame
from nlvideo.data.streams.stream_input import STANDARD_INPUT, STREAM_FAILURES, StreamBroke, open_stream, reason_of
from nlvideo.data.streams.stream_times import FrameRate, StreamTimes, TimedFrame

FIRST_WAIT, LONGEST_WAIT = 0.5, 10.0  # seconds before a connection is tried again, doubled each time
END_WAIT = 0.2  # seconds that the thread is waited for: it may be inside a read that nothing wakes


class StreamReader:
    """Reads a stream in a thread and keeps its last frames; use it in a `with` statement.

    The first connection is tried once, and the standard input is opened once.

    Args:
        address: as open_stream takes it.
        short_side: that frames are resized to.
        length: frames that are kept.
        clip_fps: frames a second to take by time; None: all.
        reconnect_seconds: how long a stream that broke off is tried again; None: without end.
        note: is called with a line when it breaks off.

    Attributes:
        frames: the last ones, and what ended the stream.
        num_frames: that came in all, those not taken by clip_fps among them.
        num_damaged: packets that are marked as damaged, do not decode, or give damaged frames, which are left out.
        num_reconnects: how often a connection was made after the first.
    """

    def __init__(
        self,
        address: str,
        short_side: int,
        length: int,
        clip_fps: float | None,
        reconnect_seconds: float | None,
        note: Callable[[str], None],
    ):
        self.address, self.reconnect_seconds = address, reconnect_seconds
        self.frames = RollingFrames(length)
        self.num_frames = self.num_damaged = self.num_reconnects = 0
        self._note, self._times, self._rate = note, StreamTimes(), FrameRate(clip_fps)
        self._resizer, self._number, self._latest = FrameResizer(short_side), 0, 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)

    def __enter__(self) -> "StreamReader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(END_WAIT)

    def _run(self) -> None:
        try:
            self._read_connections()
        except BaseException as error:  # the other thread raises it
            self.frames.end(error)
        else:
            self.frames.end(None)

    def _read_connections(self) -> None:
        """Reads until the stream is over.

        Raises:
            StreamBroke: it broke off, and does not come back in time.
        """
        wait = FIRST_WAIT
        while not self._stopping.is_set():
            before, reason = self.num_frames, "it ended"
            try:
                if self._read_connection():
                    return
            except StreamBroke as error:
                reason = error.reason
            if self._stopping.is_set():
                return
            if not self.num_frames or self.address == STANDARD_INPUT:
                raise StreamBroke(reason)
            if self.num_frames > before:
                self._note(f"{reason}; trying again")
                wait = FIRST_WAIT
            limit = self.reconnect_seconds
            left = float("inf") if limit is None else self._latest + limit - time.monotonic()
            if left <= 0:
                raise StreamBroke(f"{reason}; no frames for {limit:g} seconds")
            self._stopping.wait(min(wait, left))
            wait = min(2 * wait, LONGEST_WAIT)

    def _read_connection(self) -> bool:
        """Reads one connection to its end; returns whether the stream is over, and not cut."""
        container, stream = open_stream(self.address)
        self.num_reconnects += self.num_frames > 0
        self._times.restart()
        self._rate.restart()
        self.frames.clear()
        with container:
            # of what says how long it is, a clean end is the end
            whole = self.address == STANDARD_INPUT or container.size > 0
            for frame in self._decoded(container, stream):
                self._take(frame)
        return whole

    def _decoded(self, container: Any, stream: Any) -> Iterator[av.VideoFrame]:
        packets, good = container.demux(stream), False
        while not self._stopping.is_set():
            try:
                packet = next(packets, None)
            except STREAM_FAILURES as error:
                raise StreamBroke(reason_of(error)) from None
            if packet is None:
                return
            damaged = packet.is_corrupt
            try:
                frames = packet.decode()
            except STREAM_FAILURES:
                frames, damaged = [], True
            whole = [frame for frame in frames if not frame.is_corrupt]
            self.num_damaged += good and (damaged or len(whole) < len(frames))  # before the first keyframe all are
            good = good or bool(whole)
            yield from whole

    def _take(self, frame: av.VideoFrame) -> None:
        self._latest = time.monotonic()
        stated = None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
        self.num_frames += 1
        timed = TimedFrame(frame, self._times.seconds(stated, self._latest), time.time())
        for taken in self._rate.taken(timed):
            pixels = self._resizer(taken.frame)
            self.frames.put(StreamFrame(pixels, self._number, taken.seconds, taken.arrival))
            self._number += 1


class FrameResizer:
    """Turns decoded frames into upright RGB of a short side; buffers and tables are kept between frames."""

    def __init__(self, short_side: int):
        self._short_side = short_side
        self._convert = Converter(Orientation())

    def __call__(self, frame: av.VideoFrame) -> torch.Tensor:
        """Returns a frame (H, W, 3) uint8, the same as Video.stream gives of a file."""
        orientation = orientation_of(frame)
        if orientation != self._convert.orientation:
            self._convert = Converter(orientation)
        height, width = orientation.size(frame.height, frame.width)
        size = resized_size(height, width, self._short_side)
        rows, columns = Crop(size, 0, 0, *size).spans(height, width)
        pixels = np.empty((1, height, width, 3), np.uint8)
        self._convert(frame, rows, columns, pixels[0])
        out = torch.from_numpy(np.empty((1, *size, 3), np.uint8))
        resize_part(torch.from_numpy(pixels), rows, columns, out)
        return out[0]
