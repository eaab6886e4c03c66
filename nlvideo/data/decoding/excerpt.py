"""A part of a video, or a video at another frame rate, that is read as if it were a file of its own."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from nlvideo.data.decoding.video import Crop, CropSource, DecodeError, Region, Video

ROUNDING = 1e-6  # frames: times that are written with few digits still mean the frame that they name


def frames_within(num_frames: int, fps: float, start: float, end: float) -> tuple[int, int]:
    """Returns the first frame that begins at or after `start` seconds and the first at or after `end`.

    At least one frame: where none begins between the two, the one that is shown at `start`.
    """
    first, stop = (min(math.ceil(second * fps - ROUNDING), num_frames) for second in (start, end))
    if first >= stop:
        first = min(int(start * fps + ROUNDING), num_frames - 1)
        stop = first + 1
    return first, stop


def frames_at_rate(num_frames: int, fps: float, clip_fps: float) -> np.ndarray:
    """Returns which of num_frames frames at `fps` is shown at 0, 1, 2, ... / clip_fps seconds, at least one."""
    count = max(1, math.ceil(num_frames * clip_fps / fps - ROUNDING))
    return np.minimum((np.arange(count) * (fps / clip_fps) + ROUNDING).astype(np.int64), num_frames - 1)


def frames_taken(num_frames: int, fps: float, part: tuple[float, float] | None, clip_fps: float | None) -> int:
    """Returns how many frames an Excerpt of such a video has; 0 if the part begins past its end."""
    if part is not None:
        if part[0] * fps >= num_frames + ROUNDING:
            return 0
        first, stop = frames_within(num_frames, fps, *part)
        num_frames = stop - first
    return num_frames if clip_fps is None else len(frames_at_rate(num_frames, fps, clip_fps))


class Excerpt(Video):
    """Some frames of a video in ascending order, possibly repeated.

    Args:
        video: closed with this one.
        part: start and end in seconds; None is the whole video.
        clip_fps: frames per second that are taken; None is the video's own.

    Raises:
        DecodeError: the part begins past the end of the video.
    """

    def __init__(self, video: Video, part: tuple[float, float] | None, clip_fps: float | None):
        self._video, self.path = video, video.path
        self.height, self.width, self.fps = video.height, video.width, clip_fps or video.fps
        first, stop = 0, video.num_frames
        if part is not None:
            if part[0] * video.fps >= video.num_frames + ROUNDING:
                length = video.num_frames / video.fps
                raise DecodeError(self.path, f"the part from {part[0]:g} s on begins past its end at {length:.2f} s")
            first, stop = frames_within(video.num_frames, video.fps, *part)
        taken = np.arange(stop - first) if clip_fps is None else frames_at_rate(stop - first, video.fps, clip_fps)
        self._frames = first + taken
        self.num_frames = len(self._frames)

    def close(self) -> None:
        self._video.close()

    def _read_parts(self, indices: np.ndarray, crop: Crop | Region) -> Iterator[CropSource]:
        frames, counts = np.unique(self._frames[indices], return_counts=True)
        done = 0
        for source in self._video._read_parts(frames, crop):
            repeats = torch.from_numpy(counts[done : done + len(source.frames)])
            done += len(source.frames)
            yield source if repeats.max() == 1 else source._replace(frames=source.frames.repeat_interleave(repeats, 0))
