"""The field's lists of videos, read into one compact table."""

import array
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nlvideo.data.decoding.frame_folder import SUFFIXES as PICTURE_SUFFIXES
from nlvideo.data.lists.actions import Segments
from nlvideo.runtime.errors import UserError, UserFileNotFoundError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mkv", ".webm", ".avi", ".mov", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts")
_ROW = re.compile(r"\s*(.*\S)[\s,]\s*(-?\d+)\s*")  # path, then a space, comma or tab, then the label
_COUNTED = re.compile(r"(.*\S)[\s,]\s*\d+")  # path, then a number of frames


@dataclass(frozen=True)
class VideoTable:
    """Videos and their classes. The paths stand in one array of bytes, so that workers share it without copies.

    Attributes:
        root: folder that relative paths start from.
        source: the list or folder the table was read from.
        classes: class names; a target is an index into them.
        targets: (videos,) int64; (videos, classes) bool where a video may hold several actions or none.
        segments: of such videos, when their actions take place.
    """

    root: str
    source: str
    classes: tuple[str, ...]
    targets: np.ndarray
    _text: np.ndarray  # all paths one after the other, UTF-8, uint8
    _ends: np.ndarray  # (videos,) int64, where each path ends in _text
    segments: Segments | None = None

    @property
    def multi_label(self) -> bool:
        return self.segments is not None

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        """Returns the path as the list gives it."""
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._text[start : self._ends[index]].tobytes())

    def names(self) -> list[str]:
        return [self.name(i) for i in range(len(self))]

    def path(self, index: int) -> str:
        return os.path.join(self.root, self.name(index))

    def digest(self) -> str:
        """Returns a SHA-256 over the videos' names, their targets and the class names."""
        sha = hashlib.sha256("\n".join(self.classes).encode())
        for part in (self._text, self._ends, self.targets):
            sha.update(part.tobytes())
        if self.segments is not None:
            for part in (self.segments.ends, self.segments.classes, self.segments.times, self.segments.lengths):
                sha.update(part.tobytes())
        return sha.hexdigest()

    def with_classes(self, classes: tuple[str, ...]) -> "VideoTable":
        """Returns the table for the same class names in another order."""
        assert sorted(classes) == sorted(self.classes)
        moved = np.array([classes.index(name) for name in self.classes])  # of each old index, the new one
        if self.segments is None:
            return replace(self, classes=classes, targets=moved[self.targets])
        segments = replace(self.segments, classes=moved[self.segments.classes])
        return replace(self, classes=classes, targets=segments.video_targets(), segments=segments)

    def clip_target(self, video: int, start: float, end: float) -> int | np.ndarray:
        """Returns what a clip from start to end, in seconds, shows: the class, or (classes,) bool."""
        if self.segments is None:
            return int(self.targets[video])
        return self.segments.overlapping(video, start, end)

    def target_names(self, video: int) -> str:
        """Returns the names of the video's classes, separated by semicolons where there may be several."""
        if self.segments is None:
            return self.classes[self.targets[video]]
        return ";".join(self.classes[k] for k in np.flatnonzero(self.targets[video]))

    def missing(self) -> list[str]:
        """Returns the paths of the videos that do not exist."""
        return [path for path in map(self.path, range(len(self))) if not os.path.exists(path)]

    def check_files(self) -> None:
        """Raises UserFileNotFoundError if not one of the videos exists."""
        if not any(os.path.exists(self.path(i)) for i in range(len(self))):
            raise UserFileNotFoundError(
                f"{self.source} names no existing file: none of its {len(self)} videos is there, the first would be "
                f"{self.path(0)}. Check data.root and data.videos, which lead to {self.root}."
            )


def read_table(
    root: str, source: str, classes: Sequence[str] | None, num_classes: int | None = None, videos: str = ""
) -> VideoTable:
    """Returns the videos of a list file or of a folder tree `class/video.mp4`.

    A list has one `path label` a line, separated by a space, a comma or a tab, as PySlowFast and mmaction2 have it;
    paths may hold spaces; a first line without a number at its end is a header. A path is a file or a folder of
    frames; with these mmaction2's lists have `path number_of_frames label`, which is known by the first line.

    Args:
        root: folder of the data set; `source`, `videos` and, with it, the list's paths are relative to it unless
            absolute.
        source: the list file, or the folder whose sub-folders are the classes.
        classes: class names in the order of the labels. None: the tree's folders in sorted order, or for a list
            the labels themselves as names.
        num_classes: how many classes a list without class names has; None: its highest label + 1.
        videos: folder that a list's paths start from.

    Raises:
        UserError: no such list or folder.
        UserError: an empty list, a line that is none, a label out of range, a folder that is no class.
    """
    place = Path(root, source)
    if place.is_dir():
        return _read_tree(place, classes)
    if not place.is_file():
        raise UserFileNotFoundError(f"The list {place} does not exist (data.root={root}).")
    columns, root = Columns(), str(Path(root, videos))
    try:
        with open(place, encoding="utf-8-sig") as file:
            _read_rows(file, place, root, columns)
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not a text file in UTF-8: {error.reason} at byte {error.start}.") from None
    if not columns.targets:
        raise UserError(f"{place} lists no video.")
    if classes is None:
        classes = [str(i) for i in range(max(columns.targets) + 1 if num_classes is None else num_classes)]
    table = columns.table(root, place, classes)
    outside = np.flatnonzero((table.targets < 0) | (table.targets >= len(classes)))
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"{place}, line {columns.lines[row]}: label {table.targets[row]} of {table.name(row)} is out of range; "
            f"there are {len(classes)} classes, so labels go from 0 to {len(classes) - 1}."
        )
    return table


class Columns:
    """A table that grows row by row, without an object for each."""

    def __init__(self):
        self.text, self.ends = bytearray(), array.array("q")
        self.targets, self.lines = array.array("q"), array.array("q")

    def add(self, name: str, target: int, line: int = 0) -> None:
        self.text += os.fsencode(name)
        self.ends.append(len(self.text))
        self.targets.append(target)
        self.lines.append(line)

    def table(
        self, root: str | Path, source: Path, classes: Sequence[str], segments: Segments | None = None
    ) -> VideoTable:
        targets = np.array(self.targets) if segments is None else segments.video_targets()
        arrays = (targets, np.frombuffer(bytes(self.text), np.uint8), np.array(self.ends))
        return VideoTable(str(root), str(source), tuple(classes), *arrays, segments)


def _read_rows(file: Iterable[str], place: Path, root: str, columns: Columns) -> None:
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
                    f"{place}, line {number}: {line.strip()!r} is not `path number_of_frames label` as the first line."
                )
            name = path[1].rstrip(", \t")
        columns.add(name.strip('"'), int(match[2]), number)


def _read_tree(place: Path, classes: Sequence[str] | None) -> VideoTable:
    folders = sorted(entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise UserError(f"{place} has no sub-folders; expected one for each class.")
    classes = folders if classes is None else classes
    label = {name: i for i, name in enumerate(classes)}
    strange = [name for name in folders if name not in label]
    if strange:
        raise UserError(f"{place}: the folders {', '.join(strange[:5])} are none of the {len(classes)} classes.")
    columns = Columns()
    for folder in folders:
        for video in sorted(videos_below(place / folder)):
            columns.add(str(video.relative_to(place)), label[folder])
    if not columns.targets:
        raise UserError(
            f"{place} holds no video with one of the endings {' '.join(VIDEO_SUFFIXES)} and no folder of frames."
        )
    return columns.table(place, place, classes)


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
        UserError: no such file; an empty one; a name that stands twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserFileNotFoundError(f"The class file {path} does not exist (data.classes).")
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not names:
        raise UserError(f"The class file {path} is empty.")
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()
    if twice:
        raise UserError(f"The class file {path} names {', '.join(sorted(twice))} more than once.")
    return names
