"""Video data: tables, data sets and loaders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader

from nlvideo.data.annotations import VideoTable, read_classes, read_table
from nlvideo.data.dataset import CenterClips, MultiViews, TrainClips, collate
from nlvideo.data.synthetic import write_motion_set

if TYPE_CHECKING:
    from nlvideo.config import DataConfig


def prepare_data(data: DataConfig) -> None:
    """Writes a synthetic set if the config asks for one and it is not there yet."""
    if data.synthetic is not None:
        s = data.synthetic
        write_motion_set(
            data.root,
            num_train=s.num_train,
            num_val=s.num_val,
            num_frames=s.num_frames,
            height=s.height,
            seed=s.seed,
        )


def class_names(data: DataConfig) -> list[str] | None:
    """Returns the names in data.classes, None if there is no such file.

    Raises:
        ValueError: the file and data.num_classes disagree.
    """
    if data.classes is None:
        return None
    names = read_classes(Path(data.root, data.classes))
    if data.num_classes not in (None, len(names)):
        raise ValueError(f"data.num_classes={data.num_classes}, but data.classes={data.classes} names {len(names)}.")
    return names


def read_train_table(data: DataConfig) -> VideoTable:
    """Returns the training videos; their classes are what the network learns."""
    table = read_table(data.root, data.train, class_names(data), data.num_classes)
    if data.num_classes not in (None, len(table.classes)):
        raise ValueError(f"data.num_classes={data.num_classes}, but {table.source} has {len(table.classes)} classes.")
    if data.classes is None and data.num_classes is None:
        empty = np.flatnonzero(np.bincount(table.targets, minlength=len(table.classes)) == 0)
        if len(empty):
            raise ValueError(
                f"{table.source} has no video of class {', '.join(map(str, empty[:5]))} but of higher ones up to "
                f"{len(table.classes) - 1}; if that is meant, give data.num_classes={len(table.classes)}."
            )
    table.check_files()
    return table


def read_val_table(data: DataConfig, classes: Sequence[str]) -> VideoTable:
    """Returns the validation videos, their targets being indices into `classes`."""
    named = class_names(data)
    if named is not None and named != list(classes):
        raise ValueError(
            f"data.classes={data.classes} names {len(named)} classes in another order or with other names than the "
            f"{len(classes)} of the network, which are {', '.join(classes[:5])}, ..."
        )
    if named is None and data.num_classes not in (None, len(classes)):
        raise ValueError(f"data.num_classes={data.num_classes}, but the network has {len(classes)} classes.")
    table = read_table(data.root, data.val, classes)
    table.check_files()
    return table


class StepSampler:
    """Yields what this process reads for each step, as lists of (epoch, video), from `first_step` on.

    The clips of all steps are one endless stream: every video once in the order drawn for epoch 0, then for
    epoch 1, and so on. Step s takes the batch_size next ones of it, and each process an equal part of those, so
    the data of a step do not depend on the number of processes, and any step can be the first.
    """

    def __init__(
        self, num_videos: int, batch_size: int, *, seed: int, first_step: int, last_step: int, rank: int, size: int
    ):
        self.num_videos, self.batch_size, self.seed = num_videos, batch_size, seed
        self.first_step, self.last_step, self.rank, self.size = first_step, last_step, rank, size

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.size
        epoch, order = -1, None
        for step in range(self.first_step, self.last_step):
            first = step * self.batch_size + self.rank * share
            keys = []
            for position in range(first, first + share):
                if position // self.num_videos != epoch:
                    epoch = position // self.num_videos
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.num_videos)
                keys.append((epoch, int(order[position % self.num_videos])))
            yield keys


def build_train_loader(
    data: DataConfig,
    table: VideoTable,
    batch_size: int,
    *,
    seed: int,
    first_step: int,
    last_step: int,
    rank: int,
    size: int,
) -> DataLoader:
    """Returns a loader of Batches for the steps first_step .. last_step - 1 of this process.

    Args:
        batch_size: clips of a step over all processes.
        rank, size: this process among all.
    """
    dataset = TrainClips(
        table,
        num_frames=data.num_frames,
        frame_stride=data.frame_stride,
        scale_range=tuple(data.scale_range),
        crop_size=data.crop_size,
        flip=data.flip,
        seed=seed,
    )
    sampler = StepSampler(
        len(table), batch_size, seed=seed, first_step=first_step, last_step=last_step, rank=rank, size=size
    )
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, **_loading(data))


def build_center_loader(data: DataConfig, table: VideoTable, batch_size: int, *, rank: int, size: int) -> DataLoader:
    """Returns a loader of Batches with the centre clip of every size-th video; no video is repeated to fill up."""
    dataset = CenterClips(
        table,
        num_frames=data.num_frames,
        frame_stride=data.frame_stride,
        short_side=data.test.short_side,
        crop_size=data.crop_size,
    )
    videos = range(rank, len(table), size)
    return DataLoader(dataset, batch_size=batch_size, sampler=videos, collate_fn=collate, **_loading(data))


def build_view_loader(data: DataConfig, table: VideoTable, *, rank: int, size: int) -> DataLoader:
    """Returns a loader of VideoViews, one video each, of every size-th video; none is repeated to fill up."""
    test = data.test
    dataset = MultiViews(
        table,
        num_frames=data.num_frames,
        frame_stride=data.frame_stride,
        num_clips=test.num_clips,
        num_crops=test.num_crops,
        clip_sampling=test.clip_sampling,
        short_side=test.short_side,
        crop_size=test.crop_size,
    )
    return DataLoader(dataset, batch_size=None, sampler=range(rank, len(table), size), **_loading(data))


def _loading(data: DataConfig) -> dict:
    return {"num_workers": data.num_workers, "pin_memory": torch.cuda.is_available()}
