"""The annotation files of published data sets, as they are distributed.

Kinetics, ActivityNet, HACS, and everything else that comes as a list or as a folder tree, are read by path_list.py.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nlvideo.data.lists.charades import read_charades
from nlvideo.data.lists.text_file import lines_of_text, read_json
from nlvideo.data.lists.video_table import TableBuilder, VideoTable
from nlvideo.runtime.errors import UserError, UserFileNotFoundError

SPLIT_MARKS = {True: "1", False: "2"}  # HMDB51's for training and for testing; 0 is neither


class LabelledVideo(NamedTuple):
    """A video, the name of its class, and where the list says so, for messages."""

    name: str
    label: str
    place: str


def read_videos(
    kind: str,
    root: str,
    source: str,
    videos: str,
    classes: Sequence[str] | None,
    num_classes: int | None,
    *,
    training: bool,
) -> VideoTable:
    """Returns the videos of an annotation file.

    Args:
        kind: one of FORMATS but "list", which path_list.py reads.
        root: folder of the data set.
        source: the file or folder, relative to it; for hmdb51 the files of one split as `folder/*_test_split1.txt`.
        videos: folder that the videos' paths start from, relative to it.
        classes: class names in the order of the targets. None: those that occur, in sorted order.
        num_classes: how many classes there are, where nothing names them.
        training: hmdb51: which of a split's two parts.

    Raises:
        UserError: no such file, or a malformed line; names it.
    """
    source, root = str(Path(root, source)), str(Path(root, videos))
    if kind == "charades":
        return read_charades(root, Path(source), classes, num_classes)
    rows = list(ROWS[kind](source, training))
    if not rows:
        raise UserError(f"{source} lists no video.")
    classes = sorted({row.label for row in rows}) if classes is None else classes
    target, builder = {name: i for i, name in enumerate(classes)}, TableBuilder()
    for row in rows:
        if row.label not in target:
            raise UserError(f"{row.place}: {row.label!r} is none of the {len(classes)} classes.")
        builder.add(row.name)
    targets = np.array([target[row.label] for row in rows], np.int64)
    note = f"{Path(source).name}: {kind}; {len(rows)} videos of {len(classes)} classes"
    return builder.table(root, Path(source), classes, targets, note=note)


def _ucf101(source: str, _training: bool) -> Iterator[LabelledVideo]:
    """Yields the lines `Class/video.avi [number]` of trainlist01.txt and testlist01.txt."""
    for number, line in enumerate(lines_of_text(Path(source)), 1):
        if not line.strip():
            continue
        name, _, last = line.strip().rpartition(" ")
        name = name if name and last.isdigit() else line.strip()
        label, slash, _ = name.partition("/")
        if not slash:
            raise UserError(f"{source}, line {number}: {line.strip()!r} is not `Class/video`.")
        yield LabelledVideo(name, label, f"{source}, line {number}")


def _hmdb51(source: str, training: bool) -> Iterator[LabelledVideo]:
    """Yields the lines `video.avi 1` (training) or `video.avi 2` (testing) of CLASS_test_split1.txt, all classes."""
    files = sorted(Path(source).parent.glob(Path(source).name))
    if not files:
        raise UserFileNotFoundError(f"No file is called {source}; give a split as folder/*_test_split1.txt.")
    for file in files:
        label = re.sub(r"_test_split\d+\.txt$", "", file.name)
        if label == file.name:
            raise UserError(f"{file} is not called CLASS_test_splitN.txt.")
        for number, line in enumerate(lines_of_text(file), 1):
            words = line.split()
            if words and (len(words) != 2 or words[1] not in ("0", "1", "2")):
                raise UserError(f"{file}, line {number}: {line.strip()!r} is not `video 0`, `video 1` or `video 2`.")
            if words and words[1] == SPLIT_MARKS[training]:
                yield LabelledVideo(f"{label}/{words[0]}", label, f"{file}, line {number}")


def _something(source: str, _training: bool) -> Iterator[LabelledVideo]:
    """Yields the entries {"id": ..., "template": ...} of something-something-v2-train.json."""
    entries = read_json(Path(source))
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not (entry.get("id") and isinstance(entry.get("template"), str)):
            raise UserError(f"{source}: {str(entry)[:60]} has no id or no template; the test list has no labels.")
        label = entry["template"].replace("[", "").replace("]", "")
        yield LabelledVideo(f"{entry['id']}.webm", label, f"{source}, {entry['id']}")


ROWS = {"ucf101": _ucf101, "hmdb51": _hmdb51, "something": _something}
FORMATS = ("list", "charades", *ROWS)
MULTI_LABEL_FORMATS = ("charades",)
