"""Charades's lists: videos with several actions or none, and when each takes place."""

import array
import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nlvideo.data.lists.actions import Segments
from nlvideo.data.lists.text_file import lines_of_text
from nlvideo.data.lists.video_table import TableBuilder, VideoTable, first_three
from nlvideo.runtime.errors import UserError

CHARADES_COLUMNS = ("id", "actions")


def read_charades(root: str, source: Path, classes: Sequence[str] | None, num_classes: int | None) -> VideoTable:
    """Returns Charades's videos: a csv with a column `actions` of "c092 11.90 21.20;c147 0.00 12.60" or nothing.

    The videos are root/ID.mp4, or folders root/ID of frames if one is there. A class is known by its
    number, the first word of its name.
    """
    rows = _rows(source)
    ids = [row["id"] for row in rows]
    suffix = "" if any(Path(root, name).is_dir() for name in ids) else ".mp4"
    found = [_actions(row["actions"] or "", f"{source}, {row['id']}") for row in rows]
    lengths = np.array([_length(row.get("length") or "", f"{source}, {row['id']}, length") for row in rows])
    if classes is None:
        highest = max((number for actions in found for number, _, _ in actions), default=-1)
        classes = [f"c{i:03}" for i in range(num_classes or highest + 1)]
    target = {name.split()[0]: i for i, name in enumerate(classes)}
    builder, ends, numbers, times = TableBuilder(), array.array("q"), array.array("q"), array.array("d")
    for row, actions in zip(rows, found, strict=True):
        builder.add(f"{row['id']}{suffix}")
        for number, start, end in actions:
            if f"c{number:03}" not in target:
                raise UserError(f"{source}, {row['id']}: c{number:03} is none of the {len(classes)} classes.")
            numbers.append(target[f"c{number:03}"])
            times.extend((start, end))
        ends.append(len(numbers))
    segments = Segments(
        np.array(ends), np.array(numbers, np.int64), np.array(times).reshape(-1, 2), lengths, len(classes)
    )
    note = f"{source.name}: Charades; {len(rows)} videos of {len(classes)} classes, multi-label"
    reversed_ones = [
        f"{name} c{number:03} {start:g} {end:g}"
        for name, actions in zip(ids, found, strict=True)
        for number, start, end in actions
        if end < start
    ]
    if reversed_ones:
        note += f"; {first_three(reversed_ones, 'actions that end before they start, at no time')}"
    return builder.table(root, source, classes, segments.video_targets(), segments=segments, note=note)


def _rows(source: Path) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(lines_of_text(source), strict=True))
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
    return rows


def _actions(text: str, place: str) -> list[tuple[int, float, float]]:
    """Returns (class number, start, end) of "c092 11.90 21.20;c147 0.00 12.60".

    In a few rows of the official list an action ends before it starts: the video has it, but no moment does.
    """
    actions = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        words = part.split()
        if len(words) != 3 or not re.fullmatch(r"c\d{3}", words[0]):
            raise UserError(f"{place}: {part!r} is not an action as in `c092 11.90 21.20`.")
        start, end = (_number(word, f"{place}, {part!r}") for word in words[1:])
        actions.append((int(words[0][1:]), start, end))
    return actions


def _number(word: str, place: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{place}: {word!r} is not a number of seconds.")
    return number


def _length(word: str, place: str) -> float:
    return math.nan if word.strip().lower() in ("", "nan") else _number(word, place)
