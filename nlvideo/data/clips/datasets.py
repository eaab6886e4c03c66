"""Videos as training clips, as centre clips, and as all their test views.

N batch, C channels, T frames, H height, W width, V views.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nlvideo.data.clips import sampling
from nlvideo.data.clips.worker_watch import Watch
from nlvideo.data.decoding.opening import open_video
from nlvideo.data.decoding.video import DecodeError, SlowVideo, Video
from nlvideo.data.lists.path_list import VideoTable

MAX_ATTEMPTS = 20  # replacements for one sample; so many bad videos in a row mean a bad collection


class Failure(NamedTuple):
    """A video that a sample was to come from and that could not be decoded."""

    video: int  # index in the table
    epoch: int  # of the sample; 0 outside training
    reason: str
    replaced_by: int | None  # the video taken instead; None where there is no replacement
    slow: bool = False  # it took longer than allowed


class Clip(NamedTuple):
    """One sample; `failures` tells what was tried before it."""

    frames: Tensor  # (T, H, W, C) uint8; T = 0 if there is none
    target: int | np.ndarray  # (classes,) bool where a clip may show several actions or none
    video: int  # index in the table
    failures: list[Failure]


class Batch(NamedTuple):
    clips: Tensor  # (N, C, T, H, W) uint8, channels last in memory
    targets: Tensor  # (N,) int64; (N, classes) bool
    videos: Tensor  # (N,) int64, indices in the table
    failures: list[Failure]


class Opener:
    """Opens videos for the data sets below: with which decoder, and how long one may take.

    Args:
        decoder: a key of nlvideo.data.decoding.opening.DECODERS.
        time_limit: seconds that a video may take, seen between packets; None is no limit. A worker that hangs, where
            nothing is seen, ends itself a little later, and `watch` tells at which video.
        frame_rate: frames a second of folders of pictures.
    """

    def __init__(self, decoder: str = "pyav", time_limit: float | None = None, frame_rate: float = 30.0):
        self.decoder, self.time_limit, self.frame_rate = decoder, time_limit, frame_rate
        self.watch = Watch(None if time_limit is None else 1.5 * time_limit + 5)

    @contextmanager
    def __call__(self, path: str) -> Iterator[Video]:
        with self.watch.at(path), open_video(path, self.decoder, self.time_limit, self.frame_rate) as video:
            yield video


class TrainClips(Dataset):
    """Random clips of a table's videos; sample (epoch, video) is a function of these two and the seed alone.

    Each clip is num_frames frames from a random window, its short side drawn evenly from scale_range, cropped at
    random to crop_size and, if `flip`, mirrored with probability 1/2 (Sec. 4.1).

    A video that cannot be decoded is replaced by another one, drawn from the sample's own random numbers. So is one
    that takes too long, if `skip_slow`, else that raises SlowVideo. Those marked in `skipped`, (videos,) bool, are not
    even opened.
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
        opener: Opener | None = None,
        skip_slow: bool = False,
        skipped: Tensor | None = None,
    ):
        self.table, self.seed = table, seed
        self.opener, self.skip_slow = opener or Opener(), skip_slow
        self.skipped = torch.zeros(len(table), dtype=torch.bool) if skipped is None else skipped
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
                if self.skipped[video]:
                    failures.append(Failure(video, epoch, "skipped, because it took too long before", None, True))
                    continue
                frames, target = self._read(video, rng)
            except (DecodeError, SlowVideo) as error:
                slow = isinstance(error, SlowVideo)
                if slow and not self.skip_slow:
                    raise
                failures.append(Failure(video, epoch, error.reason, None, slow))
            else:
                failures = [failure._replace(replaced_by=video) for failure in failures]
                return Clip(frames, target, video, failures)
        last = f"{self.table.path(failures[-1].video)}: {failures[-1].reason}"
        raise RuntimeError(f"{MAX_ATTEMPTS} videos in a row could not be decoded, the last: {last}")

    def draw(self, epoch: int, wanted: int, attempt: int = 0) -> "Drawn":
        """Returns what sample (epoch, wanted) takes; `attempt` counts the videos that could not be decoded before."""
        rng = sampling.sample_rng(self.seed, epoch, wanted, attempt)
        video = int(rng.integers(len(self.table))) if attempt else wanted
        with self.opener(self.table.path(video)) as opened:
            return self._draw(opened, rng)

    def _draw(self, video: Video, rng: np.random.Generator) -> "Drawn":
        start = sampling.sample_start(rng, video.num_frames, self.num_frames, self.frame_stride)
        short_side = int(rng.integers(self.scale_range[0], self.scale_range[1], endpoint=True))
        height, width = sampling.resized_size(video.height, video.width, short_side)
        top = int(rng.integers(0, height - self.crop_size, endpoint=True))
        left = int(rng.integers(0, width - self.crop_size, endpoint=True))
        return Drawn(start, (height, width), (top, left), self.flip and rng.random() < 0.5)

    def _read(self, index: int, rng: np.random.Generator) -> tuple[Tensor, int | np.ndarray]:
        with self.opener(self.table.path(index)) as video:
            drawn = self._draw(video, rng)
            wanted = sampling.clip_indices(drawn.start, video.num_frames, self.num_frames, self.frame_stride)
            clip = _read_clip(video, wanted, drawn.size, (*drawn.offset, self.crop_size, self.crop_size))
            # a clip shows its window, as far as there is video
            end = min(drawn.start + self.num_frames * self.frame_stride, video.num_frames)
            target = self.table.clip_target(index, drawn.start / video.fps, end / video.fps)
        return clip.flip(2) if drawn.mirrored else clip, target


class Drawn(NamedTuple):
    """The random choices of a training sample."""

    start: int  # first frame
    size: tuple[int, int]  # height, width of the resized frame
    offset: tuple[int, int]  # top, left of the crop in it
    mirrored: bool

    def __str__(self) -> str:
        (height, width), (top, left) = self.size, self.offset
        end = ", mirrored" if self.mirrored else ""
        return f"from frame {self.start}, resized to {width}x{height}, crop from x {left}, y {top}{end}"


class CenterClips(Dataset):
    """One clip of each video, from the middle of it in time and space: the quick validation during training.

    An undecodable video gives a clip without frames (T = 0) and its failure. So does one that takes too long, if
    `skip_slow`, else that raises SlowVideo. The target is the whole video's, also where it holds several actions.
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
            with self.opener(self.table.path(index)) as video:
                (wanted,) = sampling.view_indices("uniform", 1, video.num_frames, self.num_frames, self.frame_stride)
                size = sampling.resized_size(video.height, video.width, self.short_side)
                ((top, left),) = sampling.crop_offsets(1, *size, self.crop_size)
                clip = _read_clip(video, wanted, size, (top, left, self.crop_size, self.crop_size))
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
        """Yields clips (views, C, T, H, W) uint8, views_per_step at a time, ordered by clip, then by crop."""
        views = [(c, top, left) for c in range(len(self.frame_index)) for top, left in self.crops]
        height, width = self.crop_size
        for first in range(0, len(views), views_per_step):
            chunk = [
                self.frames[self.frame_index[c], top : top + height, left : left + width]
                for c, top, left in views[first : first + views_per_step]
            ]
            yield torch.stack(chunk).permute(0, 4, 1, 2, 3)


def without_views(video: int, reason: str) -> VideoViews:
    """Returns what stands for a video that gave no frames."""
    return VideoViews(torch.empty(0), torch.empty(0), [], (0, 0), video, [Failure(video, 0, reason, None)])


class MultiViews(Dataset):
    """Every test view of each video: num_clips clips in time, each with num_crops crops (Sec. 4.1).

    The video is opened and decoded once, its frames in rising order. One that takes too long is a failure if
    `skip_slow`, else it raises SlowVideo.

    Args:
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
            with self.opener(self.table.path(index)) as video:
                return self.views(video, index)
        except (DecodeError, SlowVideo) as error:
            if isinstance(error, SlowVideo) and not self.skip_slow:
                raise
            return without_views(index, error.reason)

    def views(self, video: Video, index: int = 0) -> VideoViews:
        """Returns the views of an open video."""
        wanted = sampling.view_indices(
            self.clip_sampling, self.num_clips, video.num_frames, self.num_frames, self.frame_stride, video.fps
        )
        return views_of(video, wanted, self.short_side, self.crop_size, self.num_crops, index)


def views_of(
    video: Video, wanted: np.ndarray, short_side: int, crop_size: int | None, num_crops: int, index: int = 0
) -> VideoViews:
    """Returns the views of clips with the frames `wanted` (num_clips, T), every frame decoded once."""
    unique, position = np.unique(wanted, return_inverse=True)
    size = sampling.resized_size(video.height, video.width, short_side)
    frames = video.read(unique, size)
    crop = size if crop_size is None else (crop_size, crop_size)
    crops = [(0, 0)] if crop_size is None else sampling.crop_offsets(num_crops, *size, crop_size)
    return VideoViews(frames, torch.from_numpy(position.reshape(wanted.shape)), crops, crop, index, [])


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
        torch.from_numpy(np.array([s.target for s in whole])),
        torch.tensor([s.video for s in whole]),
        [failure for s in samples for failure in s.failures],
    )
