"""What loading gives: clips, batches of them, and the videos that failed on the way.

N batch, C channels, T frames, H height, W width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nlvideo.runtime.shared_memory import stack


class SampleKey(NamedTuple):
    """Which training clip is wanted. All but the place decide what it is, the place where it stands.

    The first three are a draw of a video, which gives one clip or more.
    """

    epoch: int  # the pass over the list
    video: int  # index in the table
    copy: int = 0  # how often the epoch has drawn the video before
    place: int = 0  # among the clips of all steps
    clip: int = 0  # of those that the draw gives

    @property
    def draw(self) -> tuple[int, int, int]:
        return self[:3]


class Failure(NamedTuple):
    """A video that a sample, all clips of a draw, was to come from and that could not be decoded."""

    video: int  # index in the table
    epoch: int  # of the sample; 0 outside training
    reason: str
    replaced_by: int | None  # the video taken instead; None where there is no replacement
    slow: bool = False  # it took longer than allowed


class Clip(NamedTuple):
    """One clip, and what was tried before it."""

    frames: Tensor  # (T, H, W, C) uint8; T = 0 if there is none
    target: int | np.ndarray  # (classes,) bool where a clip may show several actions or none
    video: int  # index in the table
    failures: list[Failure]  # of its draw; of clips that are read together, the first has them
    place: int = 0  # among the clips of all steps, that of the video that was wanted; in validation always 0


class Batch(NamedTuple):
    clips: Tensor  # (N, C, T, H, W) uint8, channels last in memory
    targets: Tensor  # (N,) int64; (N, classes) bool
    videos: Tensor  # (N,) int64, indices in the table
    failures: list[Failure]
    places: Tensor  # (N,) int64, of each clip among those of all steps; what mixes clips draws from them


def collate(samples: list[Clip]) -> Batch:
    """Returns the samples as a batch; clips without frames are left out, their failures are kept."""
    whole = [sample for sample in samples if len(sample.frames)]
    # The colours of a frame are innermost, so the permuted stack is channels_last_3d without a copy.
    clips = stack([s.frames for s in whole]).permute(0, 4, 1, 2, 3) if whole else torch.empty(0)
    return Batch(
        clips,
        torch.from_numpy(np.array([s.target for s in whole])),
        torch.tensor([s.video for s in whole]),
        [failure for s in samples for failure in s.failures],
        torch.tensor([s.place for s in whole], dtype=torch.int64),
    )


class Colours(NamedTuple):
    """Mean and standard deviation of red, green and blue, between 0 and 1, that clips are normalised with."""

    mean: Sequence[float]
    std: Sequence[float]


class Normalizer:
    """Turns uint8 clips (N, 3, T, H, W), RGB, into what a network takes, on its device and in its dtype."""

    def __init__(self, colours: Colours, device: torch.device, dtype: torch.dtype):
        self.mean, self.std = (torch.tensor(values, device=device) for values in colours)
        self.device, self.dtype = device, dtype

    def __call__(self, clips: Tensor) -> Tensor:
        return normalize(clips.to(self.device, non_blocking=True), self.mean, self.std, self.dtype)


def normalize(clips: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns (clips / 255 - mean) / std in `dtype`, on the clips' device and in their memory format.

    Args:
        clips: (N, 3, T, H, W) uint8, RGB.
        mean, std: (3,) of values between 0 and 1.
    """
    shape = (1, 3, 1, 1, 1)
    return (clips.to(dtype) - 255 * mean.to(clips.device, dtype).view(shape)) / (
        255 * std.to(clips.device, dtype).view(shape)
    )
