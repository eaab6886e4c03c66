"""Videos as training clips, as centre clips, and as all their test views.

N batch, C channels, T frames, H height, W width, V views.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nlvideo.data import sampling
from nlvideo.data.annotations import VideoTable
from nlvideo.data.decode import open_video
from nlvideo.data.video import DecodeError, Video

MAX_ATTEMPTS = 20  # replacements for one sample; so many bad videos in a row mean a bad collection


class Clip(NamedTuple):
    """One sample. `failures` names the videos that could not be decoded on the way to it, with their reasons."""

    frames: Tensor  # (T, H, W, C) uint8
    target: int
    video: int  # index in the table
    failures: list[DecodeError]


class Batch(NamedTuple):
    clips: Tensor  # (N, C, T, H, W) uint8, channels last in memory
    targets: Tensor  # (N,) int64
    videos: Tensor  # (N,) int64, indices in the table
    failures: list[DecodeError]


class TrainClips(Dataset):
    """Random clips of a table's videos; sample (epoch, video) is a function of these two and the seed alone.

    Each clip is num_frames frames from a random window, its short side drawn evenly from scale_range, cropped at
    random to crop_size and, if `flip`, mirrored with probability 1/2 (Sec. 4.1).

    A video that cannot be decoded is replaced by another one, drawn from the sample's own random numbers.
    """

    def __init__(
        self,
        table: VideoTable,
        *,
        num_frames: int,
        frame_stride: int,
        scale_range: tuple[int, int],
        crop_size: int,
        flip: bool,
        seed: int,
    ):
        self.table, self.seed = table, seed
        self.num_frames, self.frame_stride = num_frames, frame_stride
        self.scale_range, self.crop_size, self.flip = scale_range, crop_size, flip

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: tuple[int, int]) -> Clip:
        epoch, wanted = key
        video, failures = wanted, []
        for attempt in range(MAX_ATTEMPTS):
            rng = sampling.sample_rng(self.seed, epoch, wanted, attempt)
            if attempt:
                video = int(rng.integers(len(self.table)))
            try:
                return Clip(self._read(video, rng), int(self.table.targets[video]), video, failures)
            except DecodeError as error:
                failures.append(error)
        raise RuntimeError(f"{MAX_ATTEMPTS} videos in a row could not be decoded, the last: {failures[-1]}")

    def _read(self, index: int, rng: np.random.Generator) -> Tensor:
        with open_video(self.table.path(index)) as video:
            start = sampling.sample_start(rng, video.num_frames, self.num_frames, self.frame_stride)
            wanted = sampling.clip_indices(start, video.num_frames, self.num_frames, self.frame_stride)
            short_side = int(rng.integers(self.scale_range[0], self.scale_range[1], endpoint=True))
            height, width = sampling.resized_size(video.height, video.width, short_side)
            top = int(rng.integers(0, height - self.crop_size, endpoint=True))
            left = int(rng.integers(0, width - self.crop_size, endpoint=True))
            mirrored = self.flip and rng.random() < 0.5
            clip = _read_clip(video, wanted, (height, width), (top, left, self.crop_size, self.crop_size))
        return clip.flip(2) if mirrored else clip


class CenterClips(Dataset):
    """One clip of each video, from the middle of it in time and space: the quick validation during training.

    An undecodable video gives a clip without frames (T = 0) and its failure.
    """

    def __init__(self, table: VideoTable, *, num_frames: int, frame_stride: int, short_side: int, crop_size: int):
        self.table = table
        self.num_frames, self.frame_stride = num_frames, frame_stride
        self.short_side, self.crop_size = short_side, crop_size

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Clip:
        target = int(self.table.targets[index])
        try:
            with open_video(self.table.path(index)) as video:
                (start,) = sampling.clip_starts("uniform", 1, video.num_frames, self.num_frames, self.frame_stride)
                wanted = sampling.clip_indices(start, video.num_frames, self.num_frames, self.frame_stride)
                size = sampling.resized_size(video.height, video.width, self.short_side)
                ((top, left),) = sampling.crop_offsets(1, *size, self.crop_size)
                clip = _read_clip(video, wanted, size, (top, left, self.crop_size, self.crop_size))
        except DecodeError as error:
            empty = torch.empty(0, self.crop_size, self.crop_size, 3, dtype=torch.uint8)
            return Clip(empty, target, index, [error])
        return Clip(clip, target, index, [])


class VideoViews(NamedTuple):
    """All test views of one video. The frames are stored once; a view says which of them and which part."""

    frames: Tensor  # (F, H, W, C) uint8, every frame that any view needs
    frame_index: Tensor  # (num_clips, T) int64, into frames
    crops: list[tuple[int, int]]  # (top, left) of each crop
    crop_size: int
    target: int
    video: int
    failures: list[DecodeError]

    @property
    def num_views(self) -> int:
        return len(self.frame_index) * len(self.crops)

    def chunks(self, views_per_step: int) -> Iterator[Tensor]:
        """Yields clips (views, C, T, H, W) uint8, views_per_step at a time, ordered by clip, then by crop."""
        views = [(c, top, left) for c in range(len(self.frame_index)) for top, left in self.crops]
        for first in range(0, len(views), views_per_step):
            chunk = [
                self.frames[self.frame_index[c], top : top + self.crop_size, left : left + self.crop_size]
                for c, top, left in views[first : first + views_per_step]
            ]
            yield torch.stack(chunk).permute(0, 4, 1, 2, 3)


class MultiViews(Dataset):
    """Every test view of each video: num_clips clips in time, each with num_crops crops (Sec. 4.1).

    The video is opened and decoded once, its frames in rising order.
    """

    def __init__(
        self,
        table: VideoTable,
        *,
        num_frames: int,
        frame_stride: int,
        num_clips: int,
        num_crops: int,
        clip_sampling: str,
        short_side: int,
        crop_size: int,
    ):
        self.table = table
        self.num_frames, self.frame_stride = num_frames, frame_stride
        self.num_clips, self.num_crops, self.clip_sampling = num_clips, num_crops, clip_sampling
        self.short_side, self.crop_size = short_side, crop_size

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> VideoViews:
        target = int(self.table.targets[index])
        try:
            with open_video(self.table.path(index)) as video:
                starts = sampling.clip_starts(
                    self.clip_sampling, self.num_clips, video.num_frames, self.num_frames, self.frame_stride
                )
                wanted = np.stack(
                    [sampling.clip_indices(s, video.num_frames, self.num_frames, self.frame_stride) for s in starts]
                )
                unique, position = np.unique(wanted, return_inverse=True)
                size = sampling.resized_size(video.height, video.width, self.short_side)
                frames = video.read(unique, size)
        except DecodeError as error:
            return VideoViews(torch.empty(0), torch.empty(0), [], self.crop_size, target, index, [error])
        crops = sampling.crop_offsets(self.num_crops, *size, self.crop_size)
        frame_index = torch.from_numpy(position.reshape(wanted.shape))
        return VideoViews(frames, frame_index, crops, self.crop_size, target, index, [])


def _read_clip(video: Video, wanted: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int]) -> Tensor:
    """Returns the wanted frames (T, H, W, C); each is decoded once, also where the clip loops."""
    unique, position = np.unique(wanted, return_inverse=True)
    frames = video.read(unique, size, box)
    return frames if np.array_equal(unique, wanted) else frames[torch.from_numpy(position)]


def collate(samples: list[Clip]) -> Batch:
    """Returns the samples as a batch; clips without frames are left out, their failures are kept."""
    whole = [sample for sample in samples if len(sample.frames)]
    # Frames come with their colours innermost, so the permuted stack is channels_last_3d without a copy.
    clips = torch.stack([s.frames for s in whole]).permute(0, 4, 1, 2, 3) if whole else torch.empty(0)
    return Batch(
        clips,
        torch.tensor([s.target for s in whole]),
        torch.tensor([s.video for s in whole]),
        [failure for s in samples for failure in s.failures],
    )
