"""What list is read, and what is known about it beforehand."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from nlvideo.data.stores.addresses import joined
from nlvideo.runtime.errors import UserError

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".f4v", ".mkv", ".webm", ".avi", ".divx", ".wmv", ".asf", ".flv", ".ogv"),
    *(".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".mxf", ".gif", ".dv", ".y4m"),
    *(".h264", ".264", ".h265", ".hevc"),
)
INTEGER = re.compile(r"-?\d+")
MULTI_LABEL_ADVICE = "if a video may show several classes, set data.multi_label=true"


@dataclass(frozen=True)
class ListSource:
    """A list file and what is known about its content.

    Attributes:
        place: the file.
        root: folder that the paths in it start from.
        classes: class names in the order of the targets; None: the list says which there are.
        num_classes: how many classes there are, where labels are numbers and nothing names them.
        multi_label: a video may show several classes or none.
        training: which part of a file with several: True training, False validation, None all of them.
    """

    place: Path
    root: str
    classes: Sequence[str] | None = None
    num_classes: int | None = None
    multi_label: bool = False
    training: bool | None = None

    @cached_property
    def known(self) -> frozenset[str]:
        """The names in `classes`, empty where there are none."""
        return frozenset(self.classes or ())

    def with_classes(self, classes: Sequence[str]) -> "ListSource":
        return replace(self, classes=tuple(classes))

    def error(self, line: int, message: str) -> UserError:
        return UserError(f"{self.place}, line {line}: {message}")

    def full_path(self, path: str) -> str:
        return joined(self.root, path)


def has_video_suffix(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES


def is_number(text: str) -> bool:
    """Returns whether a text is a number, whole or not; inf and nan are words."""
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) is not None
