"""What every decoder gives: an open video, its number of frames, and any part of any of them.

A crop of the resized frame is made from the part of the source frame that it needs, not from the whole frame.
F frames, H height, W width; colours are RGB.
"""

import abc
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from nlvideo.runtime.torch_private import resize_antialiased

OpenVideo = TypeVar("OpenVideo", bound="Video")

TOLERANCE = 1 / 32  # of an output pixel: how far a crop may lie from where it should


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


class Span(NamedTuple):
    """One axis of a crop: the source pixels first .. stop - 1 hold what `length` output pixels are made of.

    Resized by size / total, these source pixels become an output whose first `skip` pixels are not part of the crop.
    Size and total are those of the whole axis, or of the region that is cut out before.
    """

    first: int
    stop: int
    skip: int
    length: int
    size: int  # output pixels
    total: int  # source pixels


class Crop(NamedTuple):
    """A part of the frame that is resized to `size`, in output pixels."""

    size: tuple[int, int]  # height, width of the whole resized frame
    top: int
    left: int
    height: int
    width: int

    @property
    def output(self) -> tuple[int, int]:
        return self.height, self.width

    def spans(self, height: int, width: int) -> tuple[Span, Span]:
        """Returns the rows and columns that it needs of an upright frame of this size."""
        return (
            span(self.top, self.height, self.size[0], height),
            span(self.left, self.width, self.size[1], width),
        )

    def __str__(self) -> str:
        return f"resized to {self.size[1]}x{self.size[0]}, crop from x {self.left}, y {self.top}"


class Region(NamedTuple):
    """A part of the frame, in its own pixels, that is cut out and then resized: nothing outside of it is looked at.

    It is grown to even rows and columns, as colour planes have half the resolution.
    """

    frame: tuple[int, int]  # height, width of the frame that the region was chosen in
    top: int
    left: int
    height: int
    width: int
    output: tuple[int, int]  # height, width that it is resized to

    def spans(self, height: int, width: int) -> tuple[Span, Span]:
        """Returns the rows and columns of an upright frame of this size, in which the region lies where it did."""
        return (
            _grown_span(self.top, self.height, self.frame[0], self.output[0], height),
            _grown_span(self.left, self.width, self.frame[1], self.output[1], width),
        )

    def __str__(self) -> str:
        place = f"{self.width}x{self.height} from x {self.left}, y {self.top} of {self.frame[1]}x{self.frame[0]}"
        return f"{place}, resized to {self.output[1]}x{self.output[0]}"


class CropSource(NamedTuple):
    """The source pixels of some frames that a crop is made of."""

    frames: Tensor  # (frames, rows, columns, 3) uint8
    rows: Span
    columns: Span


def span(offset: int, length: int, size: int, total: int) -> Span:
    """Returns what the output pixels offset .. offset + length - 1 of `size` need of the `total` source pixels.

    Output pixel k lies at (k + 1/2) * scale - 1/2 of the source, so a part that starts at `first` gives the same grid
    only if first / scale is whole. This takes the last start before the crop for which it is whole to within
    TOLERANCE, and which is even, as colour planes have half the resolution. 0 always qualifies.
    """
    scale = total / size
    margin = max(1.0, scale)  # half the width of the antialiasing filter
    stop = math.ceil((offset + length) * scale + margin) + 1
    latest = max(0, int(offset * scale - margin))
    first = next(s for s in range(latest // 2 * 2, -1, -2) if abs(s / scale - round(s / scale)) <= TOLERANCE)
    return Span(first, min(total, stop + stop % 2), offset - round(first / scale), length, size, total)


def _grown_span(offset: int, length: int, chosen_in: int, output: int, total: int) -> Span:
    """Returns the `length` pixels from `offset` on of a frame of `chosen_in` as those of one of `total` pixels."""
    first, stop = offset * total // chosen_in // 2 * 2, -(-(offset + length) * total // chosen_in)
    stop = min(total, stop + stop % 2)
    return Span(first, stop, 0, output, output, stop - first)


def resize_part(part: Tensor, rows: Span, columns: Span, out: Tensor) -> None:
    """Writes the crop (F, rows.length, columns.length, 3) of a part of the source (F, H, W, 3) to `out`, uint8.

    Bilinear with antialiasing, as `F.interpolate(..., mode="bilinear", antialias=True)` resizes the whole frame.
    """
    spans = (rows, columns)
    made = [s.skip + s.length for s in spans]
    if any(s.size != s.total for s in spans):
        scales = [s.size / s.total for s in spans]
        if rows.skip == columns.skip == 0:
            resize_antialiased(part.permute(0, 3, 1, 2), made, scales, out=out.permute(0, 3, 1, 2))
            return
        part = resize_antialiased(part.permute(0, 3, 1, 2), made, scales).permute(0, 2, 3, 1)
    out.copy_(part[:, rows.skip : made[0], columns.skip : made[1]])


class Video(abc.ABC):
    """An open video file or frame folder; use it in a `with` statement.

    Frames are upright: what the file's metadata say about turning and mirroring is applied. Stored pixels are taken
    as they are, also where they are not meant to be square, as FFmpeg's scale filter does.

    Attributes:
        num_frames: frames that it holds, counted, not estimated from rate and duration.
        height, width: of the first frame, in pixels.
        fps: average frames per second; 30 where the file does not say.
    """

    path: str
    num_frames: int
    fps: float = 30.0
    height: int
    width: int

    def __enter__(self: "OpenVideo") -> "OpenVideo":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abc.abstractmethod
    def close(self) -> None:
        """Closes the file."""

    @abc.abstractmethod
    def _read_parts(self, indices: np.ndarray, crop: Crop | Region) -> Iterator[CropSource]:
        """Yields what the crop needs of the wanted frames, a few at a time and in order. What was yielded may be
        overwritten by the next."""

    def read(
        self, indices: Sequence[int] | np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int] | None = None
    ) -> Tensor:
        """Returns frames (F, height, width, 3) uint8, RGB: resized to `size`, then cropped to `box`.

        The reference is every frame converted whole, resized bilinearly with antialiasing and then cropped. A frame of
        another size than the first is resized from its own.

        Args:
            indices: ascending frame indices without repetition, each below num_frames.
            size: (height, width) of the whole resized frame.
            box: (top, left, height, width) inside the resized frame; None for all of it.

        Raises:
            DecodeError: a wanted frame does not come or is corrupt.
            SlowVideo: it took longer than allowed.
        """
        top, left, height, width = box or (0, 0, *size)
        assert 0 <= top <= size[0] - height and 0 <= left <= size[1] - width, f"{box} is not inside {size}"
        return self._read_crop(np.asarray(indices), Crop(size, top, left, height, width))

    def stream(self, indices: np.ndarray, size: tuple[int, int]) -> Iterator[Tensor]:
        """Yields what `read` returns, a few frames at a time and in one pass, so that memory does not grow with their
        number."""
        for part, rows, columns in self._read_parts(indices, Crop(size, 0, 0, *size)):
            frames = torch.empty(len(part), *size, 3, dtype=torch.uint8)
            resize_part(part, rows, columns, frames)
            yield frames

    def read_clip(self, wanted: np.ndarray, crop: Crop | Region) -> Tensor:
        """Returns a crop of the wanted frames (T, height, width, 3) as `read` does, in any order and with repetitions:
        a clip that loops over a short video decodes each frame once."""
        unique, position = np.unique(wanted, return_inverse=True)
        frames = self._read_crop(unique, crop)
        return frames if np.array_equal(unique, wanted) else frames[torch.from_numpy(position)]

    def read_clips(self, clips: Sequence[tuple[np.ndarray, Crop | Region]]) -> list[Tensor]:
        """Returns what `read_clip` does for each (wanted, crop), and decodes and converts each frame once for all.

        Whole frames are converted, of which crops that differ together need most as a rule.
        """
        if len(clips) == 1:
            return [self.read_clip(*clips[0])]
        union = np.unique(np.concatenate([wanted for wanted, _ in clips]))
        shared = [_SharedClip(union, wanted, crop) for wanted, crop in clips]
        done = 0
        for source in self._read_parts(union, Crop((self.height, self.width), 0, 0, self.height, self.width)):
            for clip in shared:
                clip.take(source.frames, done)
            done += len(source.frames)
        return [clip.whole() for clip in shared]

    def whole_frames(self, indices: np.ndarray) -> Iterator[Tensor]:
        """Yields wanted frames (H, W, 3) uint8, RGB, one by one and each decoded once, however many they are.

        Each has its own size. It is overwritten by those that follow.

        Args:
            indices: ascending frame indices without repetition, each below num_frames.

        Raises:
            DecodeError, SlowVideo: as `read`.
        """
        for part in self._read_parts(indices, Crop((self.height, self.width), 0, 0, self.height, self.width)):
            yield from part.frames

    def _read_crop(self, indices: np.ndarray, crop: Crop | Region) -> Tensor:
        assert len(indices) and (np.diff(indices) > 0).all() and 0 <= indices[0] and indices[-1] < self.num_frames
        frames, done = _room(len(indices), crop), 0
        for part, rows, columns in self._read_parts(indices, crop):
            resize_part(part, rows, columns, frames[done : done + len(part)])
            done += len(part)
        return frames


class _SharedClip:
    """What one clip takes of the frames that are decoded for several.

    Args:
        union: ascending indices of the frames that are decoded.
        wanted: those of the clip, in any order and with repetitions.
    """

    def __init__(self, union: np.ndarray, wanted: np.ndarray, crop: Crop | Region):
        unique, position = np.unique(wanted, return_inverse=True)
        self._order = None if np.array_equal(unique, wanted) else torch.from_numpy(position)
        self._places = np.searchsorted(union, unique)
        self._crop, self._frames = crop, _room(len(unique), crop)

    def take(self, frames: Tensor, first: int) -> None:
        """Takes its part of whole frames (F, H, W, 3), of which the first is union[first]."""
        start, stop = np.searchsorted(self._places, [first, first + len(frames)])
        if start == stop:
            return
        rows, columns = self._crop.spans(*frames.shape[1:3])
        part = frames[:, rows.first : rows.stop, columns.first : columns.stop]
        if stop - start < len(frames):
            part = part[torch.from_numpy(self._places[start:stop] - first)]
        resize_part(part, rows, columns, self._frames[start:stop])

    def whole(self) -> Tensor:
        return self._frames if self._order is None else self._frames[self._order]


def _room(count: int, crop: Crop | Region) -> Tensor:
    # NumPy asks for large pages, which saves a thousand page faults and more
    return torch.from_numpy(np.empty((count, *crop.output, 3), np.uint8))


class Deadline:
    """A time limit on one video, checked between packets; None is no limit."""

    def __init__(self, path: str, seconds: float | None):
        self.path, self.seconds = path, seconds
        self.end = None if seconds is None else time.monotonic() + seconds

    def check(self) -> None:
        """Raises SlowVideo when the time is over."""
        if self.end is not None and self.seconds is not None and time.monotonic() > self.end:
            raise SlowVideo(self.path, self.seconds)
