"""Videos that are frames in memory, or come frame by frame from a program.

T frames, H height, W width; colours are RGB.
"""

import numbers
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlvideo.data.decoding.excerpt import ROUNDING
from nlvideo.data.decoding.video import Crop, CropSource, Region, Video, resize_part
from nlvideo.runtime.errors import UserError

LOWEST_RATE, HIGHEST_RATE = 1e-6, 1e9  # frames a second: beyond, times of frames leave the range of numbers
MAX_COLLECTED = 4 << 30  # bytes of the frames of an iterator that are held together
READ_CHUNK = 8  # frames that are resized together, which stay in the cache


class Frames:
    """Frames in memory, or an iterable of frames, with their rate: a video for whatever takes one.

    Args:
        frames: a NumPy array or torch tensor (T, H, W, 3) uint8, RGB; or an iterable of frames (H, W, 3) uint8 of one
            size, each of which is copied before the next is asked for.
        fps: frames per second.
        name: for messages.

    Attributes:
        is_array: all frames are there. Otherwise they come once, one after the other.

    Raises:
        UserError: another shape or type, no frames, or a rate that is no number from LOWEST_RATE to HIGHEST_RATE.
    """

    def __init__(self, frames: Any, fps: float, name: str = "frames in memory"):
        is_number = isinstance(fps, int | float | numbers.Real) and not isinstance(fps, bool)
        if not is_number or not LOWEST_RATE <= fps <= HIGHEST_RATE:
            said = f"{fps!r:.40}"
            raise UserError(f"Frames(..., fps={said}): a number from {LOWEST_RATE:g} to {HIGHEST_RATE:g} is wanted.")
        self.fps, self.name = float(fps), name
        self.is_array = isinstance(frames, np.ndarray | Tensor)
        if self.is_array:
            _check(frames, 4, "frames")
            frames = frames.detach().cpu().numpy() if isinstance(frames, Tensor) else frames
        elif isinstance(frames, str | bytes) or not isinstance(frames, Iterable):
            kind = type(frames).__name__
            raise UserError(
                f"Frames({kind}): give an array (T, H, W, 3) uint8 or an iterable of frames (H, W, 3) uint8."
            )
        self._frames = frames

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the frames (H, W, 3) uint8, each of which may be overwritten by the next.

        Raises:
            UserError: one of another type or size than the first, or none.
        """
        first = None
        for number, frame in enumerate(self._frames):
            _check(frame, 3, f"frame {number}")
            pixels = frame.detach().cpu().numpy() if isinstance(frame, Tensor) else frame
            first = first or pixels.shape
            if pixels.shape != first:
                raise UserError(f"{self.name}: frame {number} is {pixels.shape}, the first {first}; give one size.")
            yield pixels
        if first is None:
            raise UserError(f"{self.name}: the iterable gives no frames; one that has been used up gives none.")

    def video(self) -> "ArrayVideo":
        """Returns all frames as a video.

        Raises:
            UserError: an iterable gives more than MAX_COLLECTED bytes.
        """
        if self.is_array:
            return ArrayVideo(self._frames, self.fps, self.name)
        held, size = list[np.ndarray](), 0
        for frame in self:
            size += frame.nbytes
            if size > MAX_COLLECTED:
                raise UserError(
                    f"{self.name}: the first {len(held)} frames fill {MAX_COLLECTED / 2**30:g} GiB, and the scores "
                    "of a whole video need all of them; slide() needs a window at a time."
                )
            held.append(frame.copy())
        return ArrayVideo(held, self.fps, self.name)


def _check(frames: Any, dimensions: int, what: str) -> None:
    wanted = "(T, H, W, 3)" if dimensions == 4 else "(H, W, 3)"
    if not isinstance(frames, np.ndarray | Tensor):
        raise UserError(f"{what}: a {type(frames).__name__}, where an array {wanted} uint8 is wanted.")
    shape, dtype = tuple(frames.shape), str(frames.dtype).removeprefix("torch.")
    if isinstance(frames, Tensor) and (frames.layout != torch.strided or frames.is_meta):
        held = "meta" if frames.is_meta else str(frames.layout).removeprefix("torch.")
        raise UserError(f"{what}: a tensor that is {held}, where one that holds all values is wanted.")
    if dtype != "uint8" or len(shape) != dimensions or shape[-1] != 3 or 0 in shape:
        raise UserError(f"{what}: an array {shape} {dtype}, where {wanted} uint8 is wanted, none of them 0.")


class ArrayVideo(Video):
    """Frames in memory.

    Args:
        frames: (T, H, W, 3) uint8, or T of (H, W, 3); not copied.
    """

    def __init__(self, frames: Sequence[np.ndarray] | np.ndarray, fps: float, name: str = "frames in memory"):
        self._frames, self.fps, self.path = frames, fps, name
        self.num_frames = len(frames)
        self.height, self.width = frames[0].shape[:2]

    def close(self) -> None:
        pass  # the frames are the caller's

    def _read_parts(self, indices: np.ndarray, crop: Crop | Region) -> Iterator[CropSource]:
        rows, columns = crop.spans(self.height, self.width)
        for first in range(0, len(indices), READ_CHUNK):
            some = [self._frames[i] for i in indices[first : first + READ_CHUNK]]
            cut = [frame[rows.first : rows.stop, columns.first : columns.stop] for frame in some]
            # Without `out`, the colours of frames that were (3, H, W) would stay the first axis in memory, which the
            # resizing does not take.
            part = np.stack(cut, out=np.empty((len(cut), *cut[0].shape), np.uint8))
            yield CropSource(torch.from_numpy(part), rows, columns)


def resize_frame(frame: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Returns a copy of a frame (H, W, 3) uint8 in another size (height, width), the same as Video.stream gives."""
    out = torch.from_numpy(np.empty((1, *size, 3), np.uint8))
    source = torch.from_numpy(np.array(frame, order="C"))[None]
    resize_part(source, *Crop(size, 0, 0, *size).spans(*frame.shape[:2]), out)
    return out[0]


def at_rate(frames: Iterable[Tensor], fps: float, clip_fps: float | None) -> Iterator[Tensor]:
    """Yields which of the frames at `fps` is shown at 0, 1, 2, ... / clip_fps seconds, as an Excerpt does.

    Args:
        clip_fps: None: all frames.
    """
    taken = 0
    for number, frame in enumerate(frames):
        if clip_fps is None:
            yield frame
            continue
        while int(taken * (fps / clip_fps) + ROUNDING) == number:
            yield frame
            taken += 1
