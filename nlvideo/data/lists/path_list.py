"""Reads a list of videos: with a header, without one, in an official form, or a folder tree."""

import csv
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nlvideo.data.lists.columns import ID_COLUMN, PATH_COLUMNS, ColumnReader, Header, csv_rows, find_header
from nlvideo.data.lists.folder_tree import read_tree
from nlvideo.data.lists.list_rows import ListRow, build_table
from nlvideo.data.lists.list_source import INTEGER, ListSource, has_video_suffix
from nlvideo.data.lists.official import read_official_csv, read_official_json
from nlvideo.data.lists.plain_rows import PlainReader, find_delimiter, split_row
from nlvideo.data.lists.text_file import list_lines
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.data.shards.video_file import exists
from nlvideo.data.stores.addresses import is_address, joined
from nlvideo.data.stores.local_copy import local_copy
from nlvideo.runtime.errors import UserFileNotFoundError

NUM_FIRST_LINES = 20  # that show what separates columns


def read_table(
    root: str,
    source: str,
    classes: Sequence[str] | None,
    num_classes: int | None = None,
    videos: str = "",
    *,
    multi_label: bool = False,
    training: bool | None = None,
) -> VideoTable:
    """Returns the videos of a list file or of a folder tree `class/video.mp4`.

    A list has a header, whose names decide; or `path label` lines, or one of the few other shapes that plain_rows.py
    knows; or it is a csv or json of Kinetics, ActivityNet or HACS (official.py). A path is a file or a folder of
    frames. Labels are numbers, or names, whose sorted order gives them numbers where `classes` does not.

    Args:
        root: folder of the data set; `source`, `videos` and, with it, the list's paths are relative to it unless
            absolute. Each of them may be an address in a store.
        source: the list file, or the folder whose sub-folders are the classes.
        classes: class names in the order of the labels. None: the tree's folders or the list's names in sorted
            order, or for labels that are numbers these numbers as names.
        num_classes: of a list with numbers for labels and without class names; None: its highest label + 1.
        videos: folder that a list's paths start from.
        multi_label: a video may have several labels, or none.
        training: of a file with several parts, read the one for training, or for validation; None: all of it.

    Raises:
        UserError: no such list or folder; an empty list; a row that is not understood; a label out of range; a folder
            that is not a class.
    """
    known = None if classes is None else tuple(classes)
    folder, given = joined(root, videos), joined(root, source)
    with local_copy(given, "list") as place:
        local = ListSource(
            place, folder if is_address(folder) else str(Path(folder)), known, num_classes, multi_label, training
        )
        table = _read(local, root)
    return replace(table, source=given) if is_address(given) else table


def _read(read: ListSource, root: str) -> VideoTable:
    place = read.place
    if place.is_dir():
        return read_tree(read)
    if not place.is_file():
        raise UserFileNotFoundError(f"The list {place} does not exist (data.root={root}).")
    if place.suffix.lower() == ".json":
        return read_official_json(read)
    first = list(itertools.islice(filled_lines(place), NUM_FIRST_LINES))
    header = find_header(first[0][1], first[0][0]) if first else None
    if header is None:
        plain = PlainReader(read, find_delimiter(read, [text for _, text in first]))
        return build_table(read, _plain_rows(read, plain, first), plain.what)
    if ID_COLUMN in header.names and header.column(PATH_COLUMNS) is None:
        return read_official_csv(read, header)
    columns = ColumnReader(read, header)
    return build_table(read, rows_below(read, columns), columns.what)


def filled_lines(place: Path) -> Iterator[tuple[int, str]]:
    """Yields number and text of the lines that are not empty."""
    return ((number, line) for number, line in enumerate(list_lines(place), 1) if line.strip())


def rows_below(source: ListSource, columns: ColumnReader) -> Iterator[ListRow]:
    """Yields the rows below a header."""
    header: Header = columns.header
    if header.delimiter == " " and len(header.names) == 2 and columns.path == 0:
        # Paths may hold spaces, which the rows without a header know how to find.
        plain = PlainReader(source, " ")
        yield from _spaced_rows(source, plain, header.line)
        return
    for line, cells in csv_rows(source, list_lines(source.place), header.delimiter):
        if line > header.line:
            yield columns.row(line, cells)


def _plain_rows(source: ListSource, plain: PlainReader, first: list[tuple[int, str]]) -> Iterator[ListRow]:
    rows = (
        _spaced_rows(source, plain)
        if plain.delimiter == " "
        else (plain.row(*row) for row in csv_rows(source, list_lines(source.place), plain.delimiter))
    )
    for i, row in enumerate(rows):
        if i == 0 and _is_header(source, row, len(first)):
            text = first[0][1].strip()
            raise source.error(
                row.line,
                f"{text!r} is neither a video nor a known header; a header has the columns path and label.",
            )
        yield row


def _is_header(source: ListSource, row: ListRow, num_lines: int) -> bool:
    """Returns whether a first row is the header of columns with other names, which would become a class."""
    words = not any(INTEGER.fullmatch(label) for label in row.labels)
    strange = not has_video_suffix(row.path) and not {"/", os.sep} & set(row.path)
    return num_lines > 1 and words and strange and not exists(source.full_path(row.path))


def _spaced_rows(source: ListSource, plain: PlainReader, after: int = 0) -> Iterator[ListRow]:
    """Yields the rows of a list separated by spaces, those below the line `after`."""
    for line, text in filled_lines(source.place):
        if line <= after:
            continue
        try:
            cells = split_row(source, text, " ")
        except csv.Error:
            raise source.error(line, f"{text.strip()!r} has a quote that is never closed.") from None
        yield plain.row(line, cells)
