"""Lists without a header: `path label` and the few other shapes that the field has. What is none of them is refused."""

import csv
import os
import re
from collections.abc import Sequence

from nlvideo.data.lists.columns import DELIMITERS, split_line
from nlvideo.data.lists.list_rows import ListRow, split_labels
from nlvideo.data.lists.list_source import INTEGER, MULTI_LABEL_ADVICE, ListSource, has_video_suffix
from nlvideo.data.shards.video_file import exists

SEPARATORS = {"\t": "tab", ",": "comma", ";": "semicolon", " ": "space"}
SHAPES = "`path label`, or for a folder of frames `folder number_of_frames label`"


def find_delimiter(source: ListSource, lines: Sequence[str]) -> str:
    """Returns what separates the columns of a list: what makes most of its first lines paths and labels."""

    def fit(delimiter: str) -> int:
        return sum(_fit(source, line, delimiter) for line in lines)

    return max(DELIMITERS, key=fit)  # of equal ones the first


def _fit(source: ListSource, line: str, delimiter: str) -> int:
    """Returns how much the parts of a line look like a path with labels: 0 not at all, 4 for a video and numbers."""
    try:
        path, *rest = split_row(source, line, delimiter)
    except csv.Error:
        return 0
    if not path or not any(rest):
        return 0
    video = has_video_suffix(path) or exists(source.full_path(path))
    return 1 + 2 * video + all(INTEGER.fullmatch(cell) is not None for cell in rest)


def split_row(source: ListSource, text: str, delimiter: str) -> list[str]:
    """Returns path and other cells of a line.

    In a line separated by spaces, the path is the longest beginning that exists and that a label or numbers follow;
    else all up to the last word with a video's suffix; else all before the last words that are whole numbers.

    Raises:
        csv.Error: a quote that is never closed.
    """
    text = text.strip()
    if delimiter != " ":
        return split_line(text, delimiter)
    if text.startswith('"'):
        return [cell for cell in next(csv.reader([text], delimiter=" ", strict=True)) if cell]
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    if len(ends) < 2:
        return [text]
    for end in reversed(ends[:-1]):
        suffixed, rest = has_video_suffix(text[:end]), text[end:].split()
        # A suffix saves asking the disk where the whole line but its last word is a path, as in most lists.
        if len(rest) == 1 and (suffixed or end == ends[0]):
            return [text[:end], *rest]
        fits = len(rest) == 1 or suffixed or all(INTEGER.fullmatch(word) for word in rest)
        if fits and exists(source.full_path(text[:end])):
            return [text[:end], *rest]
    for end in reversed(ends[:-1]):
        if has_video_suffix(text[:end]):
            return [text[:end], *text[end:].split()]
    numbers = 0
    for word in reversed(text.split()[1:]):
        if not INTEGER.fullmatch(word):
            break
        numbers += 1
    end = ends[-1 - numbers]
    return [text[:end], *text[end:].split()]


class PlainReader:
    """Reads rows of the known shapes."""

    def __init__(self, source: ListSource, delimiter: str):
        self.source, self.delimiter = source, delimiter
        self.counted: bool | None = None  # whether folders come with their number of frames, as the first one shows
        self.what = f"no header, separated by {SEPARATORS[delimiter]}s"

    def row(self, line: int, cells: list[str]) -> ListRow:
        """Returns what a row says.

        Args:
            cells: the path and at least one more, as split_row returns them.

        Raises:
            UserError: a row of none of the known shapes.
        """
        source, text = self.source, self.delimiter.join(cells)
        path, *rest = cells
        while len(rest) > 1 and not rest[-1]:  # a delimiter at the end of the line
            rest.pop()
        if not path or not rest:
            raise source.error(line, f"{text!r} is not {SHAPES}.")
        if len(rest) == 1:
            self._note_count(line, text, path, False)
            return ListRow(path, split_labels(source, rest[0], line), line)
        if all(INTEGER.fullmatch(cell) for cell in rest):
            rest = self._labels_of_numbers(line, text, path, rest)
            if len(rest) > 1 and not source.multi_label:
                raise source.error(line, f"{text!r} has several labels; {MULTI_LABEL_ADVICE}.")
            return ListRow(path, tuple(rest), line)
        joined = " ".join(rest)
        if self.delimiter == " " and joined in source.known:
            return ListRow(path, (joined,), line)
        if source.multi_label and source.known.issuperset(rest):
            return ListRow(path, tuple(rest), line)
        raise source.error(
            line, f"{text!r} is not {SHAPES}; other columns need a header that names them, such as path,label,fold."
        )

    def _labels_of_numbers(self, line: int, text: str, path: str, rest: list[str]) -> list[str]:
        """Returns the labels in two or more numbers, of which the first may count a folder's frames."""
        if not self._is_folder(path):
            return rest
        self._note_count(line, text, path, True)
        if len(rest) == 3 and (rest[0] == "0" or not self.source.multi_label):
            if rest[0] != "0":
                raise self.source.error(
                    line,
                    f"{text!r}: frames from an offset of {rest[0]} on cannot be read, only whole folders; if these "
                    f"are several labels, write a header and one column of labels (`path,labels`, `{path},1;3`).",
                )
            return rest[2:]
        return rest[1:]

    def _is_folder(self, path: str) -> bool:
        full = self.source.full_path(path)
        return os.path.isdir(full) or not (has_video_suffix(path) or exists(full))

    def _note_count(self, line: int, text: str, path: str, counted: bool) -> None:
        """Raises UserError if folders come both with and without their number of frames."""
        if has_video_suffix(path):
            return
        if self.counted not in (None, counted):
            shape = "`path number_of_frames label`" if self.counted else "`path label`"
            raise self.source.error(line, f"{text!r} is not {shape}, as the first folder's line is.")
        if self.counted is None:
            self.counted = counted
