"""Videos for validation and evaluation: one centre clip, or all test views.

C channels, T frames, H height, W width.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nlvideo.data.clips.batch import Clip, Failure
from nlvideo.data.clips.sampling import resized_size
from nlvideo.data.clips.view_sampling import crop_offsets, view_indices
from nlvideo.data.decoding.opening import Opener
from nlvideo.data.decoding.video import Crop, DecodeError, SlowVideo, Video
from nlvideo.data.lists.video_table import VideoTable


class CenterClips(Dataset):
    """The centre clip of each video, in time and space: the quick validation during training.

    A video that cannot be decoded gives a clip without frames (T = 0) and its failure. So does one that takes too
    long if `skip_slow`; otherwise it raises SlowVideo. The target is the whole video's, also where it shows several
    actions.
    """

    def __init__(
        self,
        table: VideoTable,
        *,
        num_frames: int,
        frame_stride: int,
        short_side: int,
        crop_size: int,
        opener: Opener | None = None,
        skip_slow: bool = False,
    ):
        self.table, self.opener, self.skip_slow = table, opener or Opener(), skip_slow
        self.num_frames, self.frame_stride = num_frames, frame_stride
        self.short_side, self.crop_size = short_side, crop_size

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Clip:
        target = self.table.targets[index]
        try:
            with self.opener(self.table.path(index), self.table.part(index)) as video:
                (wanted,) = view_indices("uniform", 1, video.num_frames, self.num_frames, self.frame_stride)
                size = resized_size(video.height, video.width, self.short_side)
                ((top, left),) = crop_offsets(1, *size, self.crop_size)
                clip = video.read_clip(wanted, Crop(size, top, left, self.crop_size, self.crop_size))
        except (DecodeError, SlowVideo) as error:
            if isinstance(error, SlowVideo) and not self.skip_slow:
                raise
            empty = torch.empty(0, self.crop_size, self.crop_size, 3, dtype=torch.uint8)
            return Clip(empty, target, index, [Failure(index, 0, error.reason, None)])
        return Clip(clip, target, index, [])


class VideoViews(NamedTuple):
    """All test views of one video. The frames are stored once; a view says which of them and which part."""

    frames: Tensor  # (F, H, W, C) uint8, every frame that any view needs
    frame_index: Tensor  # (num_clips, T) int64, into frames
    crops: list[tuple[int, int]]  # (top, left) of each crop
    crop_size: tuple[int, int]  # height, width
    video: int
    failures: list[Failure]

    @property
    def num_views(self) -> int:
        return len(self.frame_index) * len(self.crops)

    def chunks(self, views_per_step: int) -> Iterator[Tensor]:
        """Yields clips (views, C, T, H, W) uint8, channels last in memory, on the device of the frames.

        They come views_per_step at a time, ordered by clip, then by crop.
        """
        views = [(c, top, left) for c in range(len(self.frame_index)) for top, left in self.crops]
        cut = self._cut_on_cpu if self.frames.device.type == "cpu" else self._cut_on_device
        for first in range(0, len(views), views_per_step):
            yield cut(views[first : first + views_per_step]).permute(0, 4, 1, 2, 3)

    def _cut_on_cpu(self, views: list[tuple[int, int, int]]) -> Tensor:
        """Returns views (clip, top, left) as (views, T, H, W, C)."""
        height, width = self.crop_size
        frames, wanted = self.frames.numpy(), self.frame_index.tolist()
        clips = np.empty((len(views), self.frame_index.shape[1], height, width, 3), np.uint8)
        for clip, (c, top, left) in zip(clips, views, strict=True):
            for t, i in enumerate(wanted[c]):  # frame by frame: indexing with an array takes five times as long
                clip[t] = frames[i, top : top + height, left : left + width]
        return torch.from_numpy(clips)

    def _cut_on_device(self, views: list[tuple[int, int, int]]) -> Tensor:
        """Returns the same on the device of the frames, without waiting for it."""
        height, width = self.crop_size
        clips = self.frames.new_empty(len(views), self.frame_index.shape[1], height, width, 3)
        for clip, (c, top, left) in zip(clips, views, strict=True):
            window = self.frames[:, top : top + height, left : left + width]
            torch.index_select(window, 0, self.frame_index[c], out=clip)
        return clips


def without_views(video: int, reason: str) -> VideoViews:
    """Returns what takes the place of the views of a video that gave no frames."""
    return VideoViews(torch.empty(0), torch.empty(0), [], (0, 0), video, [Failure(video, 0, reason, None)])


class MultiViews(Dataset):
    """Every test view of each video: num_clips clips in time, each with num_crops crops (Sec. 4.1).

    The video is opened and decoded once, its frames in ascending order. One that takes too long is a failure if
    `skip_slow`; otherwise it raises SlowVideo.

    Args:
        clip_sampling: one of view_sampling.CLIP_SAMPLINGS.
        crop_size: of the square crops; None: the whole frame.
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
        crop_size: int | None,
        opener: Opener | None = None,
        skip_slow: bool = False,
    ):
        self.table, self.opener, self.skip_slow = table, opener or Opener(), skip_slow
        self.num_frames, self.frame_stride = num_frames, frame_stride
        self.num_clips, self.num_crops, self.clip_sampling = num_clips, num_crops, clip_sampling
        self.short_side, self.crop_size = short_side, crop_size

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> VideoViews:
        try:
            with self.opener(self.table.path(index), self.table.part(index)) as video:
                return self.views(video, index)
        except (DecodeError, SlowVideo) as error:
            if isinstance(error, SlowVideo) and not self.skip_slow:
                raise
            return without_views(index, error.reason)

    def views(self, video: Video, index: int = 0) -> VideoViews:
        """Returns the views of an open video."""
        wanted = view_indices(
            self.clip_sampling, self.num_clips, video.num_frames, self.num_frames, self.frame_stride, video.fps
        )
        return views_of(video, wanted, self.short_side, self.crop_size, self.num_crops, index)


def views_of(
    video: Video, wanted: np.ndarray, short_side: int, crop_size: int | None, num_crops: int, index: int = 0
) -> VideoViews:
    """Returns the views of clips with the frames `wanted` (num_clips, T), every frame decoded once."""
    unique, position = np.unique(wanted, return_inverse=True)
    size = resized_size(video.height, video.width, short_side)
    frames = video.read(unique, size)
    frame_index = torch.from_numpy(position.reshape(wanted.shape))
    return VideoViews(frames, frame_index, *crops_of(size, crop_size, num_crops), index, [])


def crops_of(
    size: tuple[int, int], crop_size: int | None, num_crops: int
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Returns (top, left) of each crop of frames of this (height, width), and the crops' (height, width).

    Args:
        crop_size: of the square crops; None: the whole frame.
    """
    if crop_size is None:
        return [(0, 0)], size
    return crop_offsets(num_crops, *size, crop_size), (crop_size, crop_size)
