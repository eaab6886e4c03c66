"""Lists with one `path label` a line, and folder trees `class/video.mp4`."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from nlvideo.data.decoding.frame_folder import SUFFIXES as PICTURE_SUFFIXES
from nlvideo.data.lists.video_table import TableBuilder, VideoTable
from nlvideo.runtime.errors import UserError, UserFileNotFoundError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mkv", ".webm", ".avi", ".mov", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts")
_ROW = re.compile(r"\s*(.*\S)[\s,]\s*(-?\d+)\s*")  # path, then a space, comma or tab, then the label
_COUNTED = re.compile(r"(.*\S)[\s,]\s*\d+")  # path, then a number of frames


def read_table(
    root: str, source: str, classes: Sequence[str] | None, num_classes: int | None = None, videos: str = ""
) -> VideoTable:
    """Returns the videos of a list file or of a folder tree `class/video.mp4`.

    A list has one `path label` a line, separated by a space, a comma or a tab, as PySlowFast and mmaction2 have it.
    Paths may contain spaces. A first line that does not end with a number is a header. A path is a file or a folder
    of frames; for these, mmaction2's lists have `path number_of_frames label`, which the first line shows.

    Args:
        root: folder of the data set; `source`, `videos` and, with it, the list's paths are relative to it unless
            absolute.
        source: the list file, or the folder whose sub-folders are the classes.
        classes: class names in the order of the labels. None: the tree's folders in sorted order, or for a list
            the labels themselves as names.
        num_classes: of a list without class names; None: its highest label + 1.
        videos: folder that a list's paths start from.

    Raises:
        UserError: no such list or folder; an empty list; a malformed line; a label out of range; a folder that is
            not a class.
    """
    place = Path(root, source)
    if place.is_dir():
        return _read_tree(place, classes)
    if not place.is_file():
        raise UserFileNotFoundError(f"The list {place} does not exist (data.root={root}).")
    builder, root = TableBuilder(), str(Path(root, videos))
    try:
        with open(place, encoding="utf-8-sig") as file:
            _read_rows(file, place, root, builder)
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not a UTF-8 text file: {error.reason} at byte {error.start}.") from None
    if not builder.targets:
        raise UserError(f"{place} lists no video.")
    if classes is None:
        classes = [str(i) for i in range(max(builder.targets) + 1 if num_classes is None else num_classes)]
    table = builder.table(root, place, classes)
    outside = np.flatnonzero((table.targets < 0) | (table.targets >= len(classes)))
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"{place}, line {builder.lines[row]}: label {table.targets[row]} of {table.name(row)} is out of range; "
            f"there are {len(classes)} classes, so labels go from 0 to {len(classes) - 1}."
        )
    return table


def _read_rows(file: Iterable[str], place: Path, root: str, builder: TableBuilder) -> None:
    counted = None  # whether a number of frames stands between path and label, as the first row shows
    for number, line in enumerate(file, 1):
        match = _ROW.fullmatch(line)
        if match is None:
            if not line.strip() or (number == 1 and not any(suffix in line.lower() for suffix in VIDEO_SUFFIXES)):
                continue  # empty, or the header
            raise UserError(f"{place}, line {number}: {line.strip()!r} is not `path label` with an integer label.")
        name = match[1].rstrip(", \t")
        if counted is None:
            counted = _COUNTED.fullmatch(name) is not None and not Path(root, name).exists()
        if counted:
            path = _COUNTED.fullmatch(name)
            if path is None:
                raise UserError(
                    f"{place}, line {number}: {line.strip()!r} is not `path number_of_frames label`, as the first "
                    "line is."
                )
            name = path[1].rstrip(", \t")
        builder.add(name.strip('"'), int(match[2]), number)


def _read_tree(place: Path, classes: Sequence[str] | None) -> VideoTable:
    folders = sorted(entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise UserError(f"{place} has no sub-folders; expected one for each class.")
    classes = folders if classes is None else classes
    label = {name: i for i, name in enumerate(classes)}
    unknown = [name for name in folders if name not in label]
    if unknown:
        raise UserError(f"{place}: the folders {', '.join(unknown[:5])} are not among the {len(classes)} classes.")
    builder = TableBuilder()
    for folder in folders:
        for video in sorted(videos_below(place / folder)):
            builder.add(str(video.relative_to(place)), label[folder])
    if not builder.targets:
        raise UserError(
            f"{place} holds no video with one of the suffixes {' '.join(VIDEO_SUFFIXES)} and no folder of frames."
        )
    return builder.table(place, place, classes)


def videos_below(folder: Path) -> Iterator[Path]:
    """Yields the video files below a folder, and the folders below it that hold frames as pictures."""
    for below, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = [name for name in files if not name.startswith(".")]
        yield from (Path(below, name) for name in shown if Path(name).suffix.lower() in VIDEO_SUFFIXES)
        if Path(below) != folder and any(Path(name).suffix.lower() in PICTURE_SUFFIXES for name in shown):
            yield Path(below)


def read_classes(path: str | Path) -> list[str]:
    """Returns the class names of a file with one name a line, in the order of the labels.

    Raises:
        UserError: no such file; an empty one; a name that occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserFileNotFoundError(f"The class file {path} does not exist (data.classes).")
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not names:
        raise UserError(f"The class file {path} is empty.")
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if twice:
        raise UserError(f"The class file {path} names {', '.join(sorted(twice))} more than once.")
    return names
