"""Video data: what the config names, as tables and loaders."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from nlvideo.config.schema import DataConfig
from nlvideo.data.clips.datasets import Batch, CenterClips, MultiViews, Opener, TrainClips, VideoViews, collate
from nlvideo.data.clips.loading import Loading, Share, batches_of_steps, each_video, watched
from nlvideo.data.lists.path_list import VideoTable
from nlvideo.data.lists.published import read_published_classes, read_videos
from nlvideo.data.synthetic.writing import write_set
from nlvideo.data.synthetic.relations import LONG_RANGE_OPTIONS
from nlvideo.runtime.errors import RunFailed, UserError


def prepare_data(data: DataConfig) -> None:
    """Writes a synthetic set if the config asks for one and it is not there yet."""
    if data.synthetic is not None:
        settings = dataclasses.asdict(data.synthetic)
        if data.synthetic.kind != "long_range":
            for key in LONG_RANGE_OPTIONS:
                del settings[key]
        write_set(settings.pop("kind"), data.root, **settings)


def class_names(data: DataConfig) -> list[str] | None:
    """Returns the names in data.classes, None if there is no such file.

    Raises:
        UserError: the file and data.num_classes disagree.
    """
    if data.classes is None:
        return None
    names = read_published_classes(data.format, Path(data.root, data.classes))
    if data.num_classes not in (None, len(names)):
        raise UserError(f"data.num_classes={data.num_classes}, but data.classes={data.classes} names {len(names)}.")
    return names


def read_train_table(data: DataConfig) -> VideoTable:
    """Returns the training videos; their classes are what the network learns."""
    table = _read(data, data.train, class_names(data), training=True)
    if data.num_classes not in (None, len(table.classes)):
        raise UserError(f"data.num_classes={data.num_classes}, but {table.source} has {len(table.classes)} classes.")
    if data.format == "list" and data.classes is None and data.num_classes is None:
        empty = np.flatnonzero(np.bincount(table.targets, minlength=len(table.classes)) == 0)
        if len(empty):
            raise UserError(
                f"{table.source} has no video of class {', '.join(map(str, empty[:5]))} but of higher ones up to "
                f"{len(table.classes) - 1}; if that is meant, give data.num_classes={len(table.classes)}."
            )
    table.check_files()
    return table


def read_val_table(data: DataConfig, classes: Sequence[str]) -> VideoTable:
    """Returns the validation videos, their targets being indices into `classes`, the network's.

    A class file with the same names in another order is followed by name.

    Raises:
        UserError: a class file with other names, or another number of classes.
    """
    classes, named = tuple(classes), class_names(data)
    if named is None and data.num_classes not in (None, len(classes)):
        raise UserError(f"data.num_classes={data.num_classes}, but the network has {len(classes)} classes.")
    if named is not None and sorted(named) != sorted(classes):
        strange = [name for name in named if name not in classes]
        lacking = [name for name in classes if name not in named]
        raise UserError(
            f"data.classes={data.classes} names {len(named)} classes, the network has {len(classes)}: "
            f"{_listing(strange)} are not of the network, {_listing(lacking)} are not in the file."
        )
    table = _read(data, data.val, classes if named is None else named, training=False)
    if table.classes != classes:
        table = table.with_classes(classes)
    table.check_files()
    return table


def _read(data: DataConfig, source: str, classes: Sequence[str] | None, *, training: bool) -> VideoTable:
    kind, classes = data.format, None if classes is None else list(classes)
    return read_videos(kind, data.root, source, data.videos, classes, data.num_classes, training=training)


def _listing(names: list[str]) -> str:
    return f"{len(names)}" + (f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "")


def train_clips(data: DataConfig, table: VideoTable, skipped: Tensor, *, seed: int) -> TrainClips:
    """Returns the training samples, see train_batches."""
    return TrainClips(
        table,
        num_frames=data.num_frames,
        frame_stride=data.frame_stride,
        scale_range=tuple(data.scale_range),
        crop_size=data.crop_size,
        flip=data.flip,
        seed=seed,
        opener=_opener(data),
        skip_slow=data.skip_slow,
        skipped=skipped,
    )


def train_batches(
    data: DataConfig, table: VideoTable, share: Share, skipped: Tensor, *, seed: int, first_step: int, last_step: int
) -> Iterator[list[Batch]]:
    """Returns the Batches of the steps first_step .. last_step - 1 of this process, one list of passes a step.

    Args:
        skipped: (videos,) bool in shared memory: videos that took too long; read before each video is opened, and
            marked here if a worker hangs and data.skip_slow allows it.

    Raises:
        RunFailed: a video took too long or a worker died at it; with the video, the worker and its stack.
    """
    dataset = train_clips(data, table, skipped, seed=seed)
    return batches_of_steps(dataset, share, _loading(data), seed=seed, first_step=first_step, last_step=last_step)


def center_batches(data: DataConfig, table: VideoTable, batch_size: int, *, rank: int, size: int) -> Iterator[Batch]:
    """Returns Batches with the centre clip of every size-th video; no video is repeated to fill up."""
    dataset = CenterClips(
        table,
        num_frames=data.num_frames,
        frame_stride=data.frame_stride,
        short_side=data.test.short_side,
        crop_size=data.crop_size,
        opener=_opener(data),
        skip_slow=data.skip_slow,
    )
    videos = range(rank, len(table), size)
    return watched(dataset, _loading(data), batch_size=batch_size, sampler=videos, collate_fn=collate)


def video_views(data: DataConfig, table: VideoTable, videos: Sequence[int]) -> Iterator[VideoViews]:
    """Returns the VideoViews of the videos with these indices, in their order."""
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
        opener=_opener(data),
        skip_slow=data.skip_slow,
    )
    return each_video(dataset, videos, _loading(data))


def _opener(data: DataConfig) -> Opener:
    return Opener(data.decoder, data.time_limit_seconds, data.frame_rate)


def _loading(data: DataConfig) -> Loading:
    return Loading(data.num_workers, data.start_method)
