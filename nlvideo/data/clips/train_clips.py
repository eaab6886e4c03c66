"""Training clips: a random window, crop, flip and augmentation of each video.

C channels, T frames, H height, W width.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nlvideo.data.clips import sampling
from nlvideo.data.clips.augmentation import Augmentation
from nlvideo.data.clips.batch import Clip, Failure, SampleKey
from nlvideo.data.decoding.opening import Opener
from nlvideo.data.decoding.video import Crop, DecodeError, Region, SlowVideo, Video
from nlvideo.data.lists.video_table import VideoTable

MAX_ATTEMPTS = 20  # replacements for one sample; that many bad videos in a row mean a bad collection


class Drawn(NamedTuple):
    """The random choices of a training clip."""

    start: int  # first frame
    crop: Crop | Region
    mirrored: bool
    augment_seed: int = 0  # what the augmentation draws from

    def __str__(self) -> str:
        return f"from frame {self.start}, {self.crop}{', mirrored' if self.mirrored else ''}"


class TrainClips(Dataset):
    """Random clips of a table's videos; clip (epoch, video, copy, clip) is a function of these and the seed alone.

    Each clip is num_frames frames from a random window, its short side drawn uniformly from scale_range, cropped at
    random to crop_size and, if `flip`, mirrored with probability 1/2 (Sec. 4.1). Then it is augmented.

    Of one draw of a video, (epoch, video, copy), there can be several clips: all else is drawn for each, their windows
    are near that of clip 0 (sampling.near_start). Asked for together, they take one opening and one decode.

    A video that cannot be decoded is replaced by another one, for all clips of the draw, drawn from its own random
    numbers. So is one that takes too long if `skip_slow`; otherwise it raises SlowVideo.

    Args:
        scale_range: smallest and largest short side, both included.
        crop_area: instead of scale_range: smallest and largest share of the frame that is resized to the crop.
        opener: opens the videos.
        skipped: (videos,) bool: videos that are replaced without being opened.
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
        crop_area: tuple[float, float] | None = None,
        augmentation: Augmentation | None = None,
        opener: Opener | None = None,
        skip_slow: bool = False,
        skipped: Tensor | None = None,
    ):
        self.table, self.seed = table, seed
        self.opener, self.skip_slow = opener or Opener(), skip_slow
        self.skipped = torch.zeros(len(table), dtype=torch.bool) if skipped is None else skipped
        self.num_frames, self.frame_stride = num_frames, frame_stride
        self.scale_range, self.crop_size, self.flip = scale_range, crop_size, flip
        self.crop_area, self.augmentation = crop_area, augmentation

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: SampleKey | tuple[int, int]) -> Clip:
        return self._sample([SampleKey(*key)])[0]

    def __getitems__(self, keys: Sequence[SampleKey]) -> list[Clip]:
        """Returns the clips of a batch, as the DataLoader asks for them: neighbours of one draw are read together."""
        return [clip for _, of_draw in groupby(keys, lambda key: key.draw) for clip in self._sample(list(of_draw))]

    def _sample(self, keys: Sequence[SampleKey]) -> list[Clip]:
        """Returns clips of one draw."""
        epoch, wanted, copy = keys[0].draw
        video, failures, clips = wanted, [], [key.clip for key in keys]
        for attempt in range(MAX_ATTEMPTS):
            rngs = {clip: sampling.sample_rng(self.seed, epoch, wanted, attempt, copy, clip) for clip in {0, *clips}}
            if attempt:
                video = int(rngs[0].integers(len(self.table)))
            try:
                if self.skipped[video]:
                    failures.append(Failure(video, epoch, "skipped, because it took too long before", None, True))
                    continue
                read = self._read(video, rngs, clips)
            except (DecodeError, SlowVideo) as error:
                slow = isinstance(error, SlowVideo)
                if slow and not self.skip_slow:
                    raise
                failures.append(Failure(video, epoch, error.reason, None, slow))
            else:
                found = [Clip(*of_clip, video, [], key.place) for of_clip, key in zip(read, keys, strict=True)]
                found[0].failures.extend(failure._replace(replaced_by=video) for failure in failures)
                return found
        last = f"{self.table.path(failures[-1].video)}: {failures[-1].reason}"
        raise RuntimeError(f"{MAX_ATTEMPTS} videos in a row could not be decoded, the last: {last}")

    def draw(self, epoch: int, wanted: int, attempt: int = 0, clip: int = 0) -> Drawn:
        """Returns what a clip takes; `attempt` counts the videos that could not be decoded before."""
        rngs = {i: sampling.sample_rng(self.seed, epoch, wanted, attempt, clip=i) for i in {0, clip}}
        video = int(rngs[0].integers(len(self.table))) if attempt else wanted
        with self.opener(self.table.path(video), self.table.part(video)) as opened:
            return self._draw(opened, rngs, [clip])[0]

    def _draw(self, video: Video, rngs: Mapping[int, np.random.Generator], clips: Sequence[int]) -> list[Drawn]:
        """Returns what each of some clips of a draw takes.

        Args:
            rngs: {clip: its random numbers} of these clips and of clip 0, near whose window theirs are.
        """
        lengths = video.num_frames, self.num_frames, self.frame_stride
        first, found = sampling.sample_start(rngs[0], *lengths), []
        for clip in clips:
            rng = rngs[clip]
            start = sampling.near_start(rng, first, *lengths) if clip else first
            crop = self._draw_crop(video, rng)
            mirrored = self.flip and rng.random() < 0.5
            found.append(Drawn(start, crop, mirrored, int(rng.integers(1 << 63)) if self.augmentation else 0))
        return found

    def _draw_crop(self, video: Video, rng: np.random.Generator) -> Crop | Region:
        if self.crop_area is not None:
            box = sampling.sample_box(rng, video.height, video.width, self.crop_area)
            return Region((video.height, video.width), *box, (self.crop_size, self.crop_size))
        short_side = int(rng.integers(self.scale_range[0], self.scale_range[1], endpoint=True))
        height, width = sampling.resized_size(video.height, video.width, short_side)
        top = int(rng.integers(0, height - self.crop_size, endpoint=True))
        left = int(rng.integers(0, width - self.crop_size, endpoint=True))
        return Crop((height, width), top, left, self.crop_size, self.crop_size)

    def _read(
        self, index: int, rngs: Mapping[int, np.random.Generator], clips: Sequence[int]
    ) -> list[tuple[Tensor, int | np.ndarray]]:
        """Returns frames and target of each of some clips of a draw."""
        with self.opener(self.table.path(index), self.table.part(index)) as video:
            drawn = self._draw(video, rngs, clips)
            lengths = video.num_frames, self.num_frames, self.frame_stride
            read = video.read_clips([(sampling.clip_indices(d.start, *lengths), d.crop) for d in drawn])
            targets = [self._target(index, video, d.start) for d in drawn]
        return [(self._changed(*of_clip), target) for *of_clip, target in zip(read, drawn, targets, strict=True)]

    def _target(self, index: int, video: Video, start: int) -> int | np.ndarray:
        # a clip shows its window, as far as the video goes
        end = min(start + self.num_frames * self.frame_stride, video.num_frames)
        return self.table.clip_target(index, start / video.fps, end / video.fps)

    def _changed(self, clip: Tensor, drawn: Drawn) -> Tensor:
        clip = clip.flip(2) if drawn.mirrored else clip
        return self.augmentation(clip, drawn.augment_seed) if self.augmentation else clip
