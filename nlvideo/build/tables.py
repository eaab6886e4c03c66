"""Builds the tables of videos that a config names, after writing a synthetic set where it asks for one."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nlvideo.config.schema import DataConfig
from nlvideo.data.lists.class_file import read_classes
from nlvideo.data.lists.list_warnings import class_counts
from nlvideo.data.lists.path_list import read_table
from nlvideo.data.lists.published import read_videos
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.data.stores.addresses import is_address, joined
from nlvideo.data.stores.local_copy import local_copy
from nlvideo.data.synthetic.relations import LONG_RANGE_OPTIONS
from nlvideo.data.synthetic.writing import write_set
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.files import check_writable


def prepare_data(data: DataConfig) -> None:
    """Writes a synthetic set if the config asks for one and it is not there yet.

    Raises:
        UserError: data.root cannot be written, or holds something else.
    """
    if data.synthetic is None:
        return
    if is_address(data.root):
        raise UserError(f"data.root={data.root}: a synthetic set is written to a folder of this machine; give one.")
    check_writable(Path(data.root), "data.root")
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
    with local_copy(joined(data.root, data.classes), "class file") as file:
        names = read_classes(file)
    if data.num_classes not in (None, len(names)):
        raise UserError(f"data.num_classes={data.num_classes}, but data.classes={data.classes} names {len(names)}.")
    return names


def read_train_table(data: DataConfig) -> VideoTable:
    """Returns the training videos; their classes are what the network learns."""
    table = _read(data, data.train, class_names(data), training=True)
    if data.num_classes not in (None, len(table.classes)):
        raise UserError(f"data.num_classes={data.num_classes}, but {table.source} has {len(table.classes)} classes.")
    if len(table.classes) == 1 and not table.multi_label:
        raise UserError(
            f"{table.source} has videos of one class only, {table.classes[0]}: there is nothing to tell apart. If more "
            "classes are to come, set data.num_classes."
        )
    numbered = table.classes == tuple(map(str, range(len(table.classes))))  # classes that nothing names
    if data.format == "list" and data.classes is None and data.num_classes is None and numbered:
        empty = np.flatnonzero(class_counts(table) == 0)
        if len(empty):
            raise UserError(
                f"{table.source} has no video of class {', '.join(map(str, empty[:5]))} but of higher ones up to "
                f"{len(table.classes) - 1}; if that is intended, set data.num_classes={len(table.classes)}."
            )
    if data.balance != "none":
        check_balanced(data, table)
    return table.check_files()


def check_balanced(data: DataConfig, table: VideoTable) -> None:
    """Raises UserError if a class has no video: no balance could make it come as often as the others."""
    empty = [table.classes[k] for k in np.flatnonzero(class_counts(table) == 0)]
    if empty:
        raise UserError(
            f"data.balance={data.balance}: {table.source} has no video of {_listing(empty)} of its "
            f"{len(table.classes)} classes, so they cannot be drawn; give it some, or use data.balance=none."
        )


def read_val_table(data: DataConfig, classes: Sequence[str]) -> VideoTable:
    """Returns the validation videos, their targets being indices into `classes`, the network's.

    A class file with the same names in another order is matched by name.

    Raises:
        UserError: a class file with other names, or another number of classes.
    """
    classes, named = tuple(classes), class_names(data)
    if named is None and data.num_classes not in (None, len(classes)):
        raise UserError(f"data.num_classes={data.num_classes}, but the network has {len(classes)} classes.")
    if named is not None and sorted(named) != sorted(classes):
        unknown = [name for name in named if name not in classes]
        lacking = [name for name in classes if name not in named]
        raise UserError(
            f"data.classes={data.classes} names {len(named)} classes, the network has {len(classes)}: "
            f"{_listing(unknown)} are not the network's, {_listing(lacking)} are not in the file."
        )
    table = _read(data, data.val, classes if named is None else named, training=False)
    if table.classes != classes:
        table = table.with_classes(classes)
    return table.check_files()


def _read(data: DataConfig, source: str, classes: Sequence[str] | None, *, training: bool) -> VideoTable:
    known = None if classes is None else list(classes)
    if data.format == "list":
        return read_table(
            data.root,
            source,
            known,
            data.num_classes,
            data.videos,
            multi_label=data.is_multi_label,
            training=training,
        )
    return read_videos(data.format, data.root, source, data.videos, known, data.num_classes, training=training)


def _listing(names: list[str]) -> str:
    return f"{len(names)}" + (f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "")
