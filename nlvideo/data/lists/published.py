"""The annotation files of published data sets, as they are distributed.

Kinetics, and everything else that comes as `path label` lines or as a folder tree, is read by path_list.py.
"""

import array
import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nlvideo.data.lists.actions import Segments
from nlvideo.data.lists.path_list import read_classes, read_table
from nlvideo.data.lists.video_table import TableBuilder, VideoTable
from nlvideo.runtime.errors import UserError, UserFileNotFoundError

CHARADES_COLUMNS = ("id", "actions")
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
        kind: one of FORMATS.
        root: folder of the data set.
        source: the file or folder, relative to it; for hmdb51 the files of one split as `folder/*_test_split1.txt`.
        videos: folder that the videos' paths start from, relative to it.
        classes: class names in the order of the targets. None: those that occur, in sorted order.
        num_classes: how many classes there are, where nothing names them.
        training: hmdb51: which of a split's two parts.

    Raises:
        UserError: no such file, or a malformed line; names it.
    """
    if kind == "list":
        return read_table(root, source, classes, num_classes, videos)
    source, root = str(Path(root, source)), str(Path(root, videos))
    if kind == "charades":
        return _read_charades(root, Path(source), classes, num_classes)
    rows = list(ROWS[kind](source, training))
    if not rows:
        raise UserError(f"{source} lists no video.")
    classes = sorted({row.label for row in rows}) if classes is None else classes
    target, builder = {name: i for i, name in enumerate(classes)}, TableBuilder()
    for row in rows:
        if row.label not in target:
            raise UserError(f"{row.place}: {row.label!r} is none of the {len(classes)} classes.")
        builder.add(row.name, target[row.label])
    return builder.table(root, Path(source), classes)


def read_published_classes(kind: str, path: Path) -> list[str]:
    """Returns the class names of a data set's own class file, in the order of their numbers.

    ucf101 and hmdb51 have `number name` lines, something a json of {name: number}, the others one name a line.
    """
    if kind == "something":
        numbers = _read_json(path)
        try:
            pairs = [(int(number), name) for name, number in numbers.items()]
        except (AttributeError, TypeError, ValueError):
            raise UserError(f'{path} is not {{"name": "number", ...}}.') from None
    elif kind in ("ucf101", "hmdb51"):
        lines = [line.split(maxsplit=1) for line in read_classes(path)]
        if any(len(line) != 2 or not line[0].isdigit() for line in lines):
            raise UserError(f"{path} does not consist of `number name` lines.")
        pairs = [(int(number), name) for number, name in lines]
    else:
        return read_classes(path)
    numbers = sorted(number for number, _ in pairs)
    if not numbers or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise UserError(f"The numbers of the {len(numbers)} classes in {path} are not one after the other.")
    return [name for _, name in sorted(pairs)]


def _read_charades(root: str, source: Path, classes: Sequence[str] | None, num_classes: int | None) -> VideoTable:
    """Returns Charades's videos: a csv with a column `actions` of "c092 11.90 21.20;c147 0.00 12.60" or nothing.

    The videos are root/ID.mp4, or folders root/ID of frames if one is there. A class is known by its
    number, the first word of its name.
    """
    try:
        rows = list(csv.DictReader(_lines(source), strict=True))
    except csv.Error as error:  # such as a quote that is never closed
        raise UserError(f"{source} is not a complete csv file: {error}.") from None
    if not rows:
        raise UserError(f"{source} lists no video.")
    lacking = [name for name in CHARADES_COLUMNS if name not in rows[0]]
    if lacking:
        raise UserError(f"{source} has no column {' and no '.join(lacking)}, as Charades's lists have.")
    ids = [row["id"] for row in rows]
    if "" in ids or len(set(ids)) < len(ids):
        twice = next(name for name in ids if not name or ids.count(name) > 1)
        raise UserError(f"{source}: the id {twice!r} is empty or stands there twice.")
    suffix = "" if any(Path(root, name).is_dir() for name in ids) else ".mp4"
    found = [_actions(row["actions"] or "", f"{source}, {row['id']}") for row in rows]
    if classes is None:
        highest = max((number for actions in found for number, _, _ in actions), default=-1)
        classes = [f"c{i:03}" for i in range(num_classes or highest + 1)]
    target = {name.split()[0]: i for i, name in enumerate(classes)}
    builder, ends, numbers, times = TableBuilder(), array.array("q"), array.array("q"), array.array("d")
    for row, actions in zip(rows, found, strict=True):
        builder.add(f"{row['id']}{suffix}", -1)
        for number, start, end in actions:
            if f"c{number:03}" not in target:
                raise UserError(f"{source}, {row['id']}: c{number:03} is none of the {len(classes)} classes.")
            numbers.append(target[f"c{number:03}"])
            times.extend((start, end))
        ends.append(len(numbers))
    lengths = np.array([_number(row.get("length") or "nan", f"{source}, {row['id']}, length") for row in rows])
    segments = Segments(
        np.array(ends), np.array(numbers, np.int64), np.array(times).reshape(-1, 2), lengths, len(classes)
    )
    return builder.table(root, source, classes, segments)


def _actions(text: str, place: str) -> list[tuple[int, float, float]]:
    """Returns (class number, start, end) of "c092 11.90 21.20;c147 0.00 12.60"."""
    actions = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        words = part.split()
        if len(words) != 3 or not re.fullmatch(r"c\d{3}", words[0]):
            raise UserError(f"{place}: {part!r} is not an action as in `c092 11.90 21.20`.")
        start, end = (_number(word, f"{place}, {part!r}") for word in words[1:])
        if not start <= end:
            raise UserError(f"{place}: {part!r} ends before it starts.")
        actions.append((int(words[0][1:]), start, end))
    return actions


def _number(word: str, place: str) -> float:
    try:
        number = float(word)
    except ValueError:
        raise UserError(f"{place}: {word!r} is not a number of seconds.") from None
    if math.isinf(number):
        raise UserError(f"{place}: {word!r} is not a number of seconds.")
    return number


def _ucf101(source: str, _training: bool) -> Iterator[LabelledVideo]:
    """Yields the lines `Class/video.avi [number]` of trainlist01.txt and testlist01.txt."""
    for number, line in enumerate(_lines(Path(source)), 1):
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
        for number, line in enumerate(_lines(file), 1):
            words = line.split()
            if words and (len(words) != 2 or words[1] not in ("0", "1", "2")):
                raise UserError(f"{file}, line {number}: {line.strip()!r} is not `video 0`, `video 1` or `video 2`.")
            if words and words[1] == SPLIT_MARKS[training]:
                yield LabelledVideo(f"{label}/{words[0]}", label, f"{file}, line {number}")


def _something(source: str, _training: bool) -> Iterator[LabelledVideo]:
    """Yields the entries {"id": ..., "template": ...} of something-something-v2-train.json."""
    entries = _read_json(Path(source))
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not (entry.get("id") and isinstance(entry.get("template"), str)):
            raise UserError(f"{source}: {str(entry)[:60]} has no id or no template; the test list has no labels.")
        label = entry["template"].replace("[", "").replace("]", "")
        yield LabelledVideo(f"{entry['id']}.webm", label, f"{source}, {entry['id']}")


def _read_json(path: Path):
    try:
        return json.loads("".join(_lines(path)))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not a json file: {error}.") from None


def _lines(path: Path) -> Iterable[str]:
    if not path.is_file():
        raise UserFileNotFoundError(f"The list {path} does not exist.")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.readlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8: {error.reason} at byte {error.start}.") from None


ROWS = {"ucf101": _ucf101, "hmdb51": _hmdb51, "something": _something}
FORMATS = ("list", "charades", *ROWS)
MULTI_LABEL_FORMATS = ("charades",)
