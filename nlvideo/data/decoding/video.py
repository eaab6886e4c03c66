"""What every decoder gives: an open video, its number of frames, and any of them."""

import abc
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from nlvideo.data.decoding.crop_window import Span, resize_part, span


class DecodeError(RuntimeError):
    """A video, or the frames wanted of it, cannot be decoded. Has `path` and `reason`."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self):  # two arguments, so that workers can send it to the parent
        return DecodeError, (self.path, self.reason)


class SlowVideo(RuntimeError):
    """Decoding a video took longer than allowed. Has `path`, `seconds`, the limit, and `reason`."""

    def __init__(self, path: str, seconds: float):
        self.path, self.seconds = path, seconds
        self.reason = f"decoding takes longer than data.time_limit_seconds={seconds:g}"
        super().__init__(f"{path}: {self.reason}")

    def __reduce__(self):
        return SlowVideo, (self.path, self.seconds)


class Video(abc.ABC):
    """An open video file or frame folder; use it in a `with` statement.

    Frames are upright: a rotation in the file's metadata is applied. Pixels are taken as square.

    Attributes:
        num_frames: frames that it holds, counted, not guessed from rate and duration.
        height, width: of a frame, in pixels.
        fps: average frames a second; 30 where nothing tells.
    """

    path: str
    num_frames: int
    fps: float = 30.0
    height: int
    width: int

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @abc.abstractmethod
    def close(self) -> None:
        """Closes the file."""

    @abc.abstractmethod
    def _read_parts(self, indices: np.ndarray, rows: Span, columns: Span) -> Iterator[Tensor]:
        """Yields (frames, rows, columns, 3) uint8: the source pixels of the two spans, of some wanted frames after
        the other; what was yielded may be overwritten by the next."""

    def read(
        self, indices: Sequence[int] | np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int] | None = None
    ) -> Tensor:
        """Returns frames (F, height, width, 3) uint8, RGB: resized to `size`, of which the part in `box` is kept.

        What stands for the result is every frame converted whole, resized bilinearly with antialiasing and then
        cropped; it is made from the window alone, see nlvideo/data/decoding/crop_window.py.

        Args:
            indices: ascending frame indices without repetition, each below num_frames.
            size: (height, width) of the whole resized frame.
            box: (top, left, height, width) inside the resized frame; None for all of it.

        Raises:
            DecodeError: a wanted frame does not come or is damaged.
            SlowVideo: it took longer than allowed.
        """
        indices = np.asarray(indices)
        assert len(indices) and (np.diff(indices) > 0).all() and 0 <= indices[0] and indices[-1] < self.num_frames
        top, left, height, width = box or (0, 0, *size)
        assert 0 <= top <= size[0] - height and 0 <= left <= size[1] - width, f"{box} is not inside {size}"
        rows, columns = span(top, height, size[0], self.height), span(left, width, size[1], self.width)
        # NumPy asks for large pages, which saves a thousand page faults and more
        frames, done = torch.from_numpy(np.empty((len(indices), height, width, 3), np.uint8)), 0
        for part in self._read_parts(indices, rows, columns):
            resize_part(part, rows, columns, frames[done : done + len(part)])
            done += len(part)
        return frames


class Deadline:
    """A time limit on one video, asked between packets; None is no limit."""

    def __init__(self, path: str, seconds: float | None):
        self.path, self.seconds = path, seconds
        self.end = None if seconds is None else time.monotonic() + seconds

    def check(self) -> None:
        """Raises SlowVideo when the time is over."""
        if self.end is not None and time.monotonic() > self.end:
            raise SlowVideo(self.path, self.seconds)
