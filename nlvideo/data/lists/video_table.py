"""Videos and their classes in one compact table, whatever list they were read from."""

import array
import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nlvideo.data.lists.actions import Segments
from nlvideo.data.shards.video_file import Listing, reason_in_tar
from nlvideo.data.stores.addresses import check_address, is_address, joined, scheme_of
from nlvideo.data.stores.local_copy import is_there
from nlvideo.runtime.errors import UserFileNotFoundError

NUM_ASKED = 8  # of the videos in stores, before a run


@dataclass(frozen=True)
class VideoTable:
    """Videos and their classes. All paths are in one array of bytes, which workers share without copies.

    Attributes:
        root: folder that relative paths start from.
        source: the list or folder that the table was read from.
        classes: class names; a target is an index into them.
        targets: (videos,) int64; (videos, classes) bool where a video may show several classes or none.
        segments: of such videos, when their actions take place, if the list says so.
        parts: (videos, 2) float64, the seconds from start to end that a row is about; nan: the whole video. None: all
            of them are whole. One file may stand in many rows.
        note: one line on what was understood of the list, to be printed.
    """

    root: str
    source: str
    classes: tuple[str, ...]
    targets: np.ndarray
    _text: np.ndarray  # all paths, concatenated, UTF-8, uint8
    _ends: np.ndarray  # (videos,) int64, where each path ends in _text
    segments: Segments | None = None
    parts: np.ndarray | None = None
    note: str = ""

    @property
    def multi_label(self) -> bool:
        return self.targets.ndim == 2

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        """Returns the path as the list gives it."""
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._text[start : self._ends[index]].tobytes())

    def names(self) -> list[str]:
        return [self.name(i) for i in range(len(self))]

    def ids(self) -> list[str]:
        """Returns names that tell the rows apart: of a part of a video with its seconds, `long.mp4#3.5-9`."""
        parts = map(self.part, range(len(self)))
        return [f"{self.name(i)}#{p[0]:.10g}-{p[1]:.10g}" if p else self.name(i) for i, p in enumerate(parts)]

    def path(self, index: int) -> str:
        return joined(self.root, self.name(index))

    def has_addresses(self) -> bool:
        """Returns whether any video is in a store."""
        return is_address(self.root) or b"://" in self._text.tobytes()

    def part(self, index: int) -> tuple[float, float] | None:
        """Returns the seconds from start to end that a row is about, None for the whole video."""
        if self.parts is None or math.isnan(self.parts[index, 0]):
            return None
        start, end = self.parts[index].tolist()
        return start, end

    def digest(self) -> str:
        """Returns a SHA-256 over the videos' names, their parts and targets, and the class names."""
        sha = hashlib.sha256("\n".join(self.classes).encode())
        for part in (self._text, self._ends, self.targets):
            sha.update(part.tobytes())
        if self.segments is not None:
            for part in (self.segments.ends, self.segments.classes, self.segments.times, self.segments.lengths):
                sha.update(part.tobytes())
        if self.parts is not None:
            sha.update(self.parts.tobytes())
        return sha.hexdigest()

    def with_classes(self, classes: tuple[str, ...]) -> "VideoTable":
        """Returns the table for the same class names in another order."""
        assert sorted(classes) == sorted(self.classes)
        place = {name: i for i, name in enumerate(classes)}
        moved = np.array([place[name] for name in self.classes])  # new index of each old one
        if self.segments is not None:
            segments = replace(self.segments, classes=moved[self.segments.classes])
            return replace(self, classes=classes, targets=segments.video_targets(), segments=segments)
        if not self.multi_label:
            return replace(self, classes=classes, targets=moved[self.targets])
        targets = np.zeros_like(self.targets)
        targets[:, moved] = self.targets
        return replace(self, classes=classes, targets=targets)

    def clip_target(self, video: int, start: float, end: float) -> int | np.ndarray:
        """Returns what a clip from start to end, in seconds, shows: the class, or (classes,) bool.

        Where the list does not say when actions take place, every clip of a video shows all of its classes.
        """
        if self.segments is not None:
            return self.segments.overlapping(video, start, end)
        return self.targets[video] if self.multi_label else int(self.targets[video])

    def target_names(self, video: int) -> str:
        """Returns the names of the video's classes, separated by semicolons where there may be several."""
        if not self.multi_label:
            return self.classes[self.targets[video]]
        return ";".join(self.classes[k] for k in np.flatnonzero(self.targets[video]))

    def missing(self) -> list[str]:
        """Returns the paths of the videos that do not exist."""
        listing = Listing()
        paths = map(self.path, range(len(self)))
        return [path for path in paths if not (is_there(path) if is_address(path) else listing.has(path))]

    def check_files(self) -> "VideoTable":
        """Returns the table with a note that says how many of its files are missing and names the first three.

        A folder is listed once instead of asking for each of its files, which takes minutes on network disks. Of videos
        in stores, some are asked for until one is there.

        Raises:
            UserFileNotFoundError: none of the videos exists.
            UserError: an address that cannot be read.
            StoreFailed: a store does not answer, or gives no permission.
        """
        listing, names = Listing(), dict.fromkeys(self.names())
        in_stores = self._names_in_stores(names) if self.has_addresses() else []
        if in_stores:
            self._check_stores(in_stores)
            for name in in_stores:
                del names[name]
        missing = [name for name in names if not listing.has(os.path.join(self.root, name))]
        if len(missing) == len(names) and not in_stores:
            raise UserFileNotFoundError(
                f"{self.source}: none of its {len(self)} videos exists; the first would be {self.path(0)}"
                f"{reason_in_tar(self.path(0))}. "
                f"Check data.root and data.videos, which lead to {self.root}."
            )
        if not missing:
            return self
        why = reason_in_tar(os.path.join(self.root, missing[0]))  # which may be damaged rather than missing
        return replace(self, note=f"{self.note}; {first_three(missing, 'missing files')}{why}")

    def schemes(self) -> set[str]:
        """Returns those of the addresses of videos in stores: s3, gs, http, https."""
        if not self.has_addresses():
            return set()
        names = self._names_in_stores(self.names())
        return {scheme_of(name if "://" in name and is_address(name) else self.root) for name in names}

    def _names_in_stores(self, names: Iterable[str]) -> list[str]:
        remote = is_address(self.root)
        return [n for n in names if "://" in n and is_address(n) or remote and not os.path.isabs(n)]

    def _check_stores(self, names: Sequence[str]) -> None:
        """See check_files."""
        for address in {self.root, *(name for name in names if "://" in name)}:
            if is_address(address):
                check_address(address, self.source)
        asked = [joined(self.root, name) for name in names[:: -(-len(names) // NUM_ASKED)]]
        if not any(map(is_there, asked)):
            raise UserFileNotFoundError(
                f"{self.source}: of its {len(self)} videos, {len(asked)} were looked for and none exists; the first "
                f"would be {asked[0]}. Check data.root and data.videos, which lead to {self.root}."
            )


def first_three(items: Sequence[str], what: str) -> str:
    """Returns "WHAT: 5 (a, b, c, ...)" for a note."""
    return f"{what}: {len(items)} ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})"


class TableBuilder:
    """Collects rows for a table, without an object for each row."""

    def __init__(self) -> None:
        self.text, self.ends = bytearray(), array.array("q")
        self.parts, self.has_parts = array.array("d"), False

    def __len__(self) -> int:
        return len(self.ends)

    def add(self, name: str, part: tuple[float, float] | None = None) -> None:
        self.text += os.fsencode(name)
        self.ends.append(len(self.text))
        if part is not None and not self.has_parts:
            self.has_parts = True
            self.parts = array.array("d", [math.nan]) * (2 * (len(self) - 1))
        if self.has_parts:
            self.parts.extend((math.nan, math.nan) if part is None else part)

    def name(self, index: int) -> str:
        return os.fsdecode(bytes(self.text[self.ends[index - 1] if index else 0 : self.ends[index]]))

    def table(
        self,
        root: str,
        source: Path,
        classes: Sequence[str],
        targets: np.ndarray,
        *,
        segments: Segments | None = None,
        note: str = "",
    ) -> VideoTable:
        """Returns the table, `targets` being (videos,) int64 or (videos, classes) bool."""
        parts = np.array(self.parts).reshape(-1, 2) if self.has_parts else None
        arrays = (targets, np.frombuffer(bytes(self.text), np.uint8), np.array(self.ends))
        return VideoTable(root, str(source), tuple(classes), *arrays, segments, parts, note)
