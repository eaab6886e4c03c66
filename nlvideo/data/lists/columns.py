"""Lists with a header: the names of the columns decide, wherever they stand; other columns are ignored and named."""

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nlvideo.data.lists.list_rows import ListRow, split_labels
from nlvideo.data.lists.list_source import ListSource, has_video_suffix, is_number

# Of several columns of one meaning the first here is read.
PATH_COLUMNS = "path video_path filepath file_path file filename file_name video video_name clip_path name".split()
LABEL_COLUMNS = "label class target labels label_id class_id category action class_name label_name".split()
PLURAL_COLUMNS = ("labels",)
START_COLUMNS = "start start_time time_start t_start begin start_seconds start_sec".split()
END_COLUMNS = "end end_time time_end t_end stop end_seconds end_sec".split()
# Known, and not needed: the index that pandas writes, and how many frames a folder of frames has.
UNUSED_COLUMNS = ["", "unnamed:_0", "num_frames", "n_frames", "nframes", "total_frames", "frame_count", "frames"]
ID_COLUMN = "youtube_id"  # of official lists, see official.py
DELIMITERS = "\t,; "


@dataclass(frozen=True)
class Header:
    """The first line of a list.

    Attributes:
        line: its number.
        delimiter: what separates its columns and those of all rows.
        written: the columns' names as written.
        names: the same in lower case with underscores.
    """

    line: int
    delimiter: str
    written: tuple[str, ...]
    names: tuple[str, ...]

    def column(self, known: Iterable[str]) -> int | None:
        """Returns which column has the first of these names that is there."""
        return next((self.names.index(name) for name in known if name in self.names), None)


def find_header(text: str, line: int) -> Header | None:
    """Returns the header that the first line of a list is, None if it is a row.

    It is one if it names a path, and besides a label, or else no number.
    """
    if any(map(has_video_suffix, re.split(r"""[,;\t "']+""", text))):
        return None
    for delimiter in DELIMITERS:
        if delimiter == " " and re.search(r"[,;\t]", text):
            continue
        try:
            written = tuple(split_line(text, delimiter))
        except csv.Error:  # which the reader of the rows explains
            continue
        names = tuple("_".join(name.lower().replace("-", " ").split()) for name in written)
        if len(names) < 2 or not any(name in PATH_COLUMNS or name == ID_COLUMN for name in names):
            continue
        labelled = any(name in LABEL_COLUMNS for name in names)
        if labelled or not any(map(is_number, names)):
            return Header(line, delimiter, written, names)
    return None


def split_line(text: str, delimiter: str) -> list[str]:
    """Returns the cells of one line, without the spaces around them."""
    rows = list(csv.reader([text.rstrip("\r\n")], delimiter=delimiter, skipinitialspace=True))
    return [cell.strip() for cell in rows[0]] if rows else []


def csv_rows(source: ListSource, lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of the first line and the cells of each row that is not empty.

    Raises:
        UserError: a quote that is never closed, or that something follows.
    """
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            unclosed = "unexpected end" in str(error) or "field limit" in str(error)
            reason = "a quote that opens here is never closed" if unclosed else f"not a row of csv: {error}"
            raise source.error(line, f"{reason}.") from None
        if any(cells):
            yield line, cells


def seconds_between(source: ListSource, line: int, start: str, end: str) -> tuple[float, float]:
    """Returns a part of a video from its start and end as written.

    Raises:
        UserError: no numbers; a negative start; an end that is not after the start.
    """
    for text in (start, end):
        if not is_number(text):
            raise source.error(line, f"{text!r} is not a number of seconds.")
    if not 0 <= float(start) < float(end):
        raise source.error(line, f"the part from {start} to {end} s must start at 0 or later and end after its start.")
    return float(start), float(end)


class ColumnReader:
    """Reads the rows below a header.

    Args:
        labelled: False: labels are not read, and there need be none.

    Raises:
        UserError: no column with paths or with labels; a start without an end; one name twice.
    """

    def __init__(self, source: ListSource, header: Header, *, labelled: bool = True):
        path, label = header.column(PATH_COLUMNS), header.column(LABEL_COLUMNS) if labelled else None
        start, end = header.column(START_COLUMNS), header.column(END_COLUMNS)
        there = ", ".join(filter(None, header.written))
        if path is None or label is None and labelled:
            lacking = "path, such as path, video" if path is None else "label, such as label, class, target"
            raise source.error(header.line, f"of the columns {there}, none is called like a {lacking}.")
        if (start is None) != (end is None):
            raise source.error(header.line, f"the columns {there} have only one of a start and an end.")
        read = [column for column in (path, label, start, end) if column is not None]
        for column in read:
            if header.names.count(header.names[column]) > 1:
                raise source.error(header.line, f"the column {header.written[column]} stands there twice.")
        self.source, self.header = source, header
        self.path, self.label, self.start, self.end = path, label, start, end
        ignored = [
            name
            for i, name in enumerate(header.written)
            if i not in read and header.names[i] not in UNUSED_COLUMNS
        ]  # fmt: skip
        self.what = f"columns {', '.join(header.written[column] for column in read)}"
        self.what += f" (ignored: {', '.join(ignored)})" if ignored else ""

    def row(self, line: int, cells: list[str]) -> ListRow:
        """Returns what a row says.

        Raises:
            UserError: too few or too many cells, no path, or a label or a part that is none.
        """
        source, number = self.source, len(self.header.names)
        if len(cells) < number or any(cells[number:]):
            text = self.header.delimiter.join(cells)
            raise source.error(line, f"{text!r} has {len(cells)} columns, the header {number}.")
        path = cells[self.path]
        if not path:
            raise source.error(line, "the path is empty.")
        return ListRow(path, self._labels(line, cells), line, self._part(line, cells))

    def _labels(self, line: int, cells: list[str]) -> tuple[str, ...]:
        if self.label is None:
            return ()
        plural = self.header.names[self.label] in PLURAL_COLUMNS
        return split_labels(self.source, cells[self.label], line, plural=plural)

    def _part(self, line: int, cells: list[str]) -> tuple[float, float] | None:
        if self.start is None or self.end is None:
            return None
        start, end = cells[self.start], cells[self.end]
        return seconds_between(self.source, line, start, end) if start or end else None
