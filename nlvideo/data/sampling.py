"""Which frames a clip takes and which part of them: integers in, integers out.

A clip's window is num_frames * frame_stride consecutive frames (64 for 32 frames with stride 2); the clip takes
the first of every frame_stride frames of it. Frames past the end of a short video start again at its first one
(authors' code, customized_video_io.cc).
"""

import numpy as np

CLIP_SAMPLINGS = ("uniform", "vnl")
NUM_CROPS = (1, 3)


def sample_rng(seed: int, epoch: int, video: int, attempt: int = 0) -> np.random.Generator:
    """Returns the random numbers of one training sample, the same in any worker, rank or resumed run."""
    return np.random.default_rng([seed, epoch, video, attempt])


def clip_indices(start: int, num_video_frames: int, num_frames: int, frame_stride: int) -> np.ndarray:
    """Returns the clip's frame indices (num_frames,), looping over a video that is shorter than its window."""
    return (start + np.arange(num_frames) * frame_stride) % num_video_frames


def sample_start(rng: np.random.Generator, num_video_frames: int, num_frames: int, frame_stride: int) -> int:
    """Returns a start drawn evenly from all that keep the window inside the video; 0 if there is none."""
    return int(rng.integers(0, max(num_video_frames - num_frames * frame_stride, 0), endpoint=True))


def clip_starts(sampling: str, num_clips: int, num_video_frames: int, num_frames: int, frame_stride: int) -> list[int]:
    """Returns the starts of num_clips test clips, ascending.

    "uniform" spreads them evenly from the first to the last start that keeps the window inside the video (one
    clip: the centre one). "vnl" is the authors' grid, floor(j * frames / clips), whose last clips run over the
    end and loop.
    """
    if sampling == "vnl":
        return [j * num_video_frames // num_clips for j in range(num_clips)]
    if sampling == "uniform":
        last = max(num_video_frames - num_frames * frame_stride, 0)
        if num_clips == 1:
            return [last // 2]
        return [(2 * j * last + num_clips - 1) // (2 * (num_clips - 1)) for j in range(num_clips)]  # rounds half up
    raise ValueError(f"clip sampling {sampling!r} is unknown. Choose from: {', '.join(CLIP_SAMPLINGS)}.")


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Returns (height, width) scaled so that the shorter one is short_side."""
    if height <= width:
        return short_side, round(width * short_side / height)
    return round(height * short_side / width), short_side


def crop_offsets(num_crops: int, height: int, width: int, crop_size: int) -> list[tuple[int, int]]:
    """Returns (top, left) of the test crops: the centre, or start, centre and end of the longer side (Sec. 4.1)."""
    top, left = (height - crop_size) // 2, (width - crop_size) // 2
    if num_crops == 1:
        return [(top, left)]
    if num_crops == 3:
        if height > width:
            return [(0, left), (top, left), (height - crop_size, left)]
        return [(top, 0), (top, left), (top, width - crop_size)]
    raise ValueError(f"{num_crops} test crops are not defined. Choose from: {', '.join(map(str, NUM_CROPS))}.")
