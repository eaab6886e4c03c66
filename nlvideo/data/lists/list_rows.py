"""From rows with labels as they are written, numbers or names, to a table with targets."""

import array
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from nlvideo.data.lists.list_source import INTEGER, MULTI_LABEL_ADVICE, ListSource, is_number
from nlvideo.data.lists.video_table import TableBuilder, VideoTable
from nlvideo.runtime.errors import UserError


class ListRow(NamedTuple):
    """A row of a list: a video, or a part of one in seconds, and its labels as written."""

    path: str
    labels: tuple[str, ...]
    line: int  # 0 where the file has no lines
    part: tuple[float, float] | None = None


def build_table(source: ListSource, rows: Iterable[ListRow], what: str, remarks: Sequence[str] = ()) -> VideoTable:
    """Returns the table of these rows, whose labels are all numbers or all names.

    Names are the classes given, or, if none are, the sorted names are the classes.

    Args:
        what: what kind of list it is, for the note.
        remarks: further parts of the note.

    Raises:
        UserError: no rows; a label that is not a class; numbers and names in one list.
    """
    builder, labels = TableBuilder(), _Labels()
    for row in rows:
        builder.add(row.path, row.part)
        labels.add(row)
    if not len(builder):
        raise UserError(f"{source.place} lists no video.")
    classes, numbers, kind = labels.resolve(source, builder)
    targets = labels.targets(numbers, len(classes), source.multi_label)
    several = ", multi-label" if source.multi_label else ""
    count = f"{len(builder)} {'videos' if not builder.has_parts else 'parts of videos'} of {len(classes)} classes"
    note = "; ".join([f"{source.place.name}: {what}", f"{count}{several} ({kind})", *remarks])
    return builder.table(source.root, source.place, classes, targets, note=note)


def split_labels(source: ListSource, cell: str, line: int, *, plural: bool = False) -> tuple[str, ...]:
    """Returns the labels in one cell, which may be several for multi-label data, such as `1;3`, `1 3` or `run|jump`.

    Args:
        plural: the column is for several labels.

    Raises:
        UserError: none or several where there has to be one.
    """
    if INTEGER.fullmatch(cell) or cell in source.known:
        return (cell,)
    if cell.startswith("[") and cell.endswith("]"):
        raise source.error(line, f"the labels {cell!r} are not written as in `1;3`.")
    found = [piece.strip() for piece in re.split(r"[;|]", cell) if piece.strip()]
    numbers = re.split(r"[\s,;|]+", cell)
    numeric = all(INTEGER.fullmatch(number) for number in numbers)
    if numeric:
        found = numbers
    if source.multi_label:
        return tuple(found)
    if not cell:
        raise source.error(line, "the label is empty.")
    if len(found) > 1 and (plural or numeric):
        raise source.error(line, f"{cell!r} is several labels; {MULTI_LABEL_ADVICE}.")
    return (cell,)


class _Labels:
    """The labels of all rows: each different text once, and which of them the rows have."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}  # text -> its index among the different texts
        self.first: list[tuple[int, int]] = []  # of each text: row and line where it stands first
        self.held, self.ends = array.array("q"), array.array("q")

    def add(self, row: ListRow) -> None:
        for text in row.labels:
            index = self.numbers.setdefault(text, len(self.numbers))
            if index == len(self.first):
                self.first.append((len(self.ends), row.line))
            self.held.append(index)
        self.ends.append(len(self.held))

    def resolve(self, source: ListSource, builder: TableBuilder) -> tuple[Sequence[str], list[int], str]:
        """Returns the classes, the class of each text, and how it was found."""
        texts, classes = list(self.numbers), source.classes
        numeric = [INTEGER.fullmatch(text) is not None for text in texts]
        if all(numeric):
            return self._numbered(source, builder)
        if classes is None:
            self._check_names(source, builder, texts, numeric)
            classes = sorted(texts)
        place = {name: i for i, name in enumerate(classes)}
        unknown = [text for text in texts if text not in place]
        if unknown:
            # Of numbers and names together, a name is the one that needs explaining.
            text = min(unknown, key=lambda text: INTEGER.fullmatch(text) is not None)
            near = difflib.get_close_matches(text, classes, 3)
            advice = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
            raise self._error(source, builder, text, f"is none of the {len(classes)} classes{advice}")
        kind = "names sorted" if source.classes is None else "by their names"
        return classes, [place[text] for text in texts], kind

    def _numbered(self, source: ListSource, builder: TableBuilder) -> tuple[Sequence[str], list[int], str]:
        values, classes = list(map(int, self.numbers)), source.classes
        if classes is None:
            count = max(values, default=-1) + 1 if source.num_classes is None else source.num_classes
            classes = [str(i) for i in range(count)]
        for text, value in zip(self.numbers, values, strict=True):
            if not 0 <= value < len(classes):
                raise self._error(
                    source,
                    builder,
                    text,
                    f"is out of range; there are {len(classes)} classes, so labels go from 0 to {len(classes) - 1}.",
                )
        return classes, values, "labels are numbers"

    def _check_names(self, source: ListSource, builder: TableBuilder, texts: list[str], numeric: list[bool]) -> None:
        """Raises UserError if some labels are numbers and some are names, or numbers that are not whole."""
        odd = [text for text in texts if is_number(text) and not INTEGER.fullmatch(text)]
        if odd:
            raise self._error(source, builder, odd[0], "is neither a whole number nor a name.")
        other = next((text for text, one in zip(texts, numeric, strict=True) if one != numeric[0]), None)
        if other is not None:
            this, before = ("a name", "numbers") if numeric[0] else ("a number", "names")
            message = f"is {this}, but labels before it are {before}; data.classes=FILE can name them all."
            raise self._error(source, builder, other, message)

    def _error(self, source: ListSource, builder: TableBuilder, text: str, message: str) -> UserError:
        row, line = self.first[self.numbers[text]]
        shown = text if INTEGER.fullmatch(text) else repr(text)
        place = f"{source.place}, line {line}" if line else f"{source.place}"
        return UserError(f"{place}: label {shown} of {builder.name(row)} {message}")

    def targets(self, numbers: list[int], num_classes: int, multi_label: bool) -> np.ndarray:
        """Returns (rows,) int64, or (rows, num_classes) bool."""
        held = np.array(numbers, np.int64)[np.array(self.held)] if self.held else np.zeros(0, np.int64)
        if not multi_label:
            return held
        targets = np.zeros((len(self.ends), num_classes), bool)
        targets[np.repeat(np.arange(len(self.ends)), np.diff(np.array(self.ends), prepend=0)), held] = True
        return targets
