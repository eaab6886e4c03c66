"""Which frames and which part of them a training clip takes: integers in, integers out.

A clip's window is num_frames * frame_stride consecutive frames (64 for 32 frames with stride 2); the clip takes the
first of every frame_stride frames of it. A video that is shorter than the window is looped (authors' code,
customized_video_io.cc).
"""

import numpy as np


def sample_rng(seed: int, epoch: int, video: int, attempt: int = 0) -> np.random.Generator:
    """Returns the random numbers of one training sample, the same in any worker, rank or resumed run."""
    return np.random.default_rng([seed, epoch, video, attempt])


def clip_indices(start: int, num_video_frames: int, num_frames: int, frame_stride: int) -> np.ndarray:
    """Returns the clip's frame indices (num_frames,), looping over a video that is shorter than its window."""
    return (start + np.arange(num_frames) * frame_stride) % num_video_frames


def sample_start(rng: np.random.Generator, num_video_frames: int, num_frames: int, frame_stride: int) -> int:
    """Returns a start drawn evenly from all that keep the window inside the video; 0 if there is none."""
    return int(rng.integers(0, max(num_video_frames - num_frames * frame_stride, 0), endpoint=True))


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Returns (height, width) scaled so that the shorter one is short_side."""
    if height <= width:
        return short_side, round(width * short_side / height)
    return round(height * short_side / width), short_side
