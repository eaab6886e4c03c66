"""Which frames and which part of them a training clip takes: numbers in, integers out.

A clip's window is num_frames * frame_stride consecutive frames (64 for 32 frames with stride 2); the clip takes the
first of every frame_stride frames of it. A video that is shorter than the window is looped (authors' code,
customized_video_io.cc).
"""

import math

import numpy as np

ASPECTS = (3 / 4, 4 / 3)  # width over height, as torchvision's RandomResizedCrop
MAX_TRIES = 10  # as there


def sample_rng(
    seed: int, epoch: int, video: int, attempt: int = 0, copy: int = 0, clip: int = 0
) -> np.random.Generator:
    """Returns the random numbers of one training clip, the same in any worker, rank or resumed run.

    Args:
        attempt: replacements of a video that cannot be decoded, so far.
        copy: how often the epoch has drawn the video before.
        clip: which of the clips that are drawn of the video together.
    """
    behind = [copy, clip] if clip else [copy] if copy else []  # lists of other lengths give other numbers
    return np.random.default_rng([seed, epoch, video, attempt, *behind])


def clip_indices(start: int, num_video_frames: int, num_frames: int, frame_stride: int) -> np.ndarray:
    """Returns the clip's frame indices (num_frames,), looping over a video that is shorter than its window."""
    return (start + np.arange(num_frames) * frame_stride) % num_video_frames


def sample_start(rng: np.random.Generator, num_video_frames: int, num_frames: int, frame_stride: int) -> int:
    """Returns a start drawn evenly from all that keep the window inside the video; 0 if there is none."""
    return int(rng.integers(0, max(num_video_frames - num_frames * frame_stride, 0), endpoint=True))


def near_start(rng: np.random.Generator, start: int, num_video_frames: int, num_frames: int, frame_stride: int) -> int:
    """Returns a start near another one, so that the two clips share most of their frames.

    The starts that sample_start draws from are parted into cells: whole strides from each other, within a quarter of a
    window. This draws evenly from the other start's cell. So if that was drawn evenly from all, this is, too.
    """
    last, cell = max(num_video_frames - num_frames * frame_stride, 0), max(num_frames // 4, 1) * frame_stride
    first = start // cell * cell + start % frame_stride
    stop = min(start // cell * cell + cell, last + 1)
    return first + frame_stride * int(rng.integers(0, (stop - 1 - first) // frame_stride, endpoint=True))


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Returns (height, width) scaled so that the shorter one is short_side."""
    if height <= width:
        return short_side, round(width * short_side / height)
    return round(height * short_side / width), short_side


def sample_box(
    rng: np.random.Generator, height: int, width: int, area: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Returns (top, left, height, width) of a part of a frame: its share of the area drawn evenly from the range
    `area`, its aspect evenly on a logarithmic scale from ASPECTS, its place evenly.

    As torchvision's RandomResizedCrop: what does not fit is drawn again, and after MAX_TRIES the part is the middle of
    the frame, as large as an allowed aspect lets it be.
    """
    low, high = ASPECTS
    for _ in range(MAX_TRIES):
        pixels = height * width * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
        across, down = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < across <= width and 0 < down <= height:
            top = int(rng.integers(0, height - down, endpoint=True))
            return top, int(rng.integers(0, width - across, endpoint=True)), down, across
    across, down = min(width, round(height * high)), min(height, round(width / low))
    return (height - down) // 2, (width - across) // 2, down, across
