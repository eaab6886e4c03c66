"""The field's lists of videos, read into one compact table."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mkv", ".webm", ".avi", ".mov", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts")
_ROW = re.compile(r"(.*?)\s*[\s,]\s*(-?\d+)")  # path, then a space, comma or tab, then the label


@dataclass(frozen=True)
class VideoTable:
    """Videos and their classes. The paths stand in one array of bytes, so that workers share it without copies.

    Attributes:
        root: folder that relative paths start from.
        source: the list or folder the table was read from.
        classes: class names; a target is an index into them.
        targets: (videos,) int64.
    """

    root: str
    source: str
    classes: tuple[str, ...]
    targets: np.ndarray
    _text: np.ndarray  # all paths one after the other, UTF-8, uint8
    _ends: np.ndarray  # (videos,) int64, where each path ends in _text

    @classmethod
    def build(cls, root: str, source: str, classes: Sequence[str], names: list[str], targets: list[int]):
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        text = np.frombuffer(b"".join(encoded), np.uint8)
        return cls(root, source, tuple(classes), np.array(targets, np.int64), text, ends)

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        """Returns the path as the list gives it."""
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._text[start : self._ends[index]].tobytes())

    def path(self, index: int) -> str:
        return os.path.join(self.root, self.name(index))

    def digest(self) -> str:
        """Returns a SHA-256 over the videos' names, their targets and the class names."""
        sha = hashlib.sha256("\n".join(self.classes).encode())
        for array in (self._text, self._ends, self.targets):
            sha.update(array.tobytes())
        return sha.hexdigest()

    def check_files(self) -> None:
        """Raises FileNotFoundError if not one of the videos exists."""
        if not any(os.path.exists(self.path(i)) for i in range(len(self))):
            raise FileNotFoundError(
                f"{self.source} names no existing file: none of its {len(self)} videos is there, the first would be "
                f"{self.path(0)}. Check data.root={self.root}."
            )


def read_table(root: str, source: str, classes: Sequence[str] | None, num_classes: int | None = None) -> VideoTable:
    """Returns the videos of a list file or of a folder tree `class/video.mp4`.

    A list has one `path label` a line, separated by a space, a comma or a tab; paths may hold spaces; a first line
    without a number at its end is a header.

    Args:
        root: folder of the data set; `source` and the list's paths are relative to it unless absolute.
        source: the list file, or the folder whose sub-folders are the classes.
        classes: class names in the order of the labels. None: the tree's folders in sorted order, or for a list
            the labels themselves as names.
        num_classes: how many classes a list without class names has; None: its highest label + 1.

    Raises:
        FileNotFoundError: no such list or folder.
        ValueError: an empty list, a line that is none, a label out of range, a folder that is no class.
    """
    place = Path(root, source)
    if place.is_dir():
        return _read_tree(place, classes)
    if not place.is_file():
        raise FileNotFoundError(f"The list {place} does not exist (data.root={root}).")
    names, targets, lines = [], [], []
    try:
        text = place.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not a text file in UTF-8: {error.reason} at byte {error.start}.") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _ROW.fullmatch(line.strip())
        if match is None:
            if number == 1 and not any(suffix in line.lower() for suffix in VIDEO_SUFFIXES):
                continue  # the header
            raise ValueError(f"{place}, line {number}: {line.strip()!r} is not `path label` with an integer label.")
        names.append(match[1].strip('"'))
        targets.append(int(match[2]))
        lines.append(number)
    if not names:
        raise ValueError(f"{place} lists no video.")
    if classes is None:
        classes = [str(i) for i in range(max(targets) + 1 if num_classes is None else num_classes)]
    for name, target, number in zip(names, targets, lines, strict=True):
        if not 0 <= target < len(classes):
            raise ValueError(
                f"{place}, line {number}: label {target} of {name} is out of range; there are {len(classes)} classes, "
                f"so labels go from 0 to {len(classes) - 1}."
            )
    return VideoTable.build(str(root), str(place), classes, names, targets)


def _read_tree(place: Path, classes: Sequence[str] | None) -> VideoTable:
    folders = sorted(entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise ValueError(f"{place} has no sub-folders; expected one for each class.")
    classes = folders if classes is None else classes
    label = {name: i for i, name in enumerate(classes)}
    strange = [name for name in folders if name not in label]
    if strange:
        raise ValueError(f"{place}: the folders {', '.join(strange[:5])} are none of the {len(classes)} classes.")
    names, targets = [], []
    for folder in folders:
        for file in sorted((place / folder).rglob("*")):
            if file.suffix.lower() in VIDEO_SUFFIXES and not file.name.startswith("."):
                names.append(str(file.relative_to(place)))
                targets.append(label[folder])
    if not names:
        raise ValueError(f"{place} holds no video with one of the endings {' '.join(VIDEO_SUFFIXES)}.")
    return VideoTable.build(str(place), str(place), classes, names, targets)


def read_classes(path: str | Path) -> list[str]:
    """Returns the class names of a file with one name a line, in the order of the labels.

    Raises:
        FileNotFoundError, ValueError: no such file; an empty one; a name that stands twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The class file {path} does not exist (data.classes).")
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"The class file {path} is empty.")
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()
    if twice:
        raise ValueError(f"The class file {path} names {', '.join(sorted(twice))} more than once.")
    return names
