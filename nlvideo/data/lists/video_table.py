"""Videos and their classes in one compact table, whatever list they were read from."""

import array
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nlvideo.data.lists.actions import Segments
from nlvideo.runtime.errors import UserFileNotFoundError


@dataclass(frozen=True)
class VideoTable:
    """Videos and their classes. All paths are in one array of bytes, which workers share without copies.

    Attributes:
        root: folder that relative paths start from.
        source: the list or folder that the table was read from.
        classes: class names; a target is an index into them.
        targets: (videos,) int64; (videos, classes) bool where a video may show several actions or none.
        segments: of such videos, when their actions take place.
    """

    root: str
    source: str
    classes: tuple[str, ...]
    targets: np.ndarray
    _text: np.ndarray  # all paths, concatenated, UTF-8, uint8
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
        moved = np.array([classes.index(name) for name in self.classes])  # new index of each old one
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
        """Raises UserFileNotFoundError if none of the videos exists."""
        if not any(os.path.exists(self.path(i)) for i in range(len(self))):
            raise UserFileNotFoundError(
                f"{self.source}: none of its {len(self)} videos exists; the first would be {self.path(0)}. "
                f"Check data.root and data.videos, which lead to {self.root}."
            )


class TableBuilder:
    """Builds a table row by row, without an object for each row."""

    def __init__(self) -> None:
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
