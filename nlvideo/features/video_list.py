"""Which videos features are wanted of: a list, a folder or one file, and under which name each is kept."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from nlvideo.data.lists.columns import (
    END_COLUMNS,
    ID_COLUMN,
    PATH_COLUMNS,
    START_COLUMNS,
    csv_rows,
    find_header,
    seconds_between,
)
from nlvideo.data.lists.folder_tree import left_out, videos_below
from nlvideo.data.lists.list_source import ListSource, has_video_suffix
from nlvideo.data.lists.path_list import read_table
from nlvideo.data.lists.plain_rows import find_delimiter, split_row
from nlvideo.data.lists.text_file import list_lines
from nlvideo.data.shards.video_file import exists, reason_in_tar, split_member
from nlvideo.data.stores.addresses import is_address
from nlvideo.runtime.errors import UserError, UserFileNotFoundError

LOCAL_ONLY = "nlvideo-extract reads files of this machine; copy the videos first."
NUM_LINES_LOOKED_AT = 20  # that show what separates columns


class ListedVideo(NamedTuple):
    """A video, or a part of one in seconds, and the name of its features, without an ending."""

    path: str
    name: str
    part: tuple[float, float] | None = None


def listed_videos(videos: str, root: str | None = None) -> tuple[list[ListedVideo], str]:
    """Returns the videos that a list, a folder or one file names, and a line on what was understood.

    A folder stands for all videos below it. Of a list only paths matter, and a start and an end where columns have
    these names: lines may hold labels, or a path alone.

    Args:
        videos: the place.
        root: folder that the paths of a list start from; None: the list's own.

    Raises:
        UserError: no such place, no videos there, or a line without a video.
    """
    for key, place in (("videos", videos), ("data.root", root or "")):
        if is_address(place):
            raise UserError(f"{key}={place}: {LOCAL_ONLY}")
    if not exists(videos):
        raise UserFileNotFoundError(f"videos={videos} does not exist{reason_in_tar(videos)}.")
    if os.path.isdir(videos):
        return _videos_of_folder(Path(videos))
    if has_video_suffix(videos) or split_member(videos):
        return [ListedVideo(videos, _stem(os.path.basename(videos)))], "1 video"
    return _videos_of_list(Path(videos), root)


def _videos_of_folder(folder: Path) -> tuple[list[ListedVideo], str]:
    below = sorted(videos_below(folder))
    if not below and folder.absolute() in videos_below(folder.absolute().parent):  # of pictures
        return [ListedVideo(str(folder), folder.absolute().name)], "1 folder of frames"
    if not below:
        raise UserError(f"videos={folder}: the folder holds no video and no frames.")
    rest = left_out(folder)
    note = f"{len(below)} videos below {folder}{f'; {rest}' if rest else ''}"
    return _named([(str(path), str(path.relative_to(folder)), None) for path in below]), note


def _videos_of_list(place: Path, root: str | None) -> tuple[list[ListedVideo], str]:
    source = ListSource(place, str(place.parent) if root is None else root)
    rows = _official_rows(source) if place.suffix.lower() == ".json" else _rows(source)
    found = list(dict.fromkeys((source.full_path(name), name, part) for name, part in rows))
    if not found:
        raise UserError(f"videos={place} lists no video.")
    if any(is_address(path) for path, _, _ in found):
        raise UserError(f"videos={place} names videos in stores: {LOCAL_ONLY}")
    if not any(exists(path) for path, _, _ in found):
        raise UserFileNotFoundError(
            f"videos={place}: none of its {len(found)} videos exists; the first would be {found[0][0]}"
            f"{reason_in_tar(found[0][0])}. Check data.root, the folder that its paths start from."
        )
    return _named(found), f"{len(found)} videos of {place.name}"


Row = tuple[str, tuple[float, float] | None]  # the path as written, and the part


def _official_rows(source: ListSource) -> list[Row]:
    table = read_table(source.root, str(source.place.absolute()), None)
    return [(table.name(i), table.part(i)) for i in range(len(table))]


def _rows(source: ListSource) -> list[Row]:
    lines = [(number, line.strip()) for number, line in enumerate(list_lines(source.place), 1) if line.strip()]
    if not lines:
        return []
    header = find_header(lines[0][1], lines[0][0])
    if header is not None and ID_COLUMN in header.names and header.column(PATH_COLUMNS) is None:
        return _official_rows(source)
    if header is not None:
        columns = [header.column(known) for known in (PATH_COLUMNS, START_COLUMNS, END_COLUMNS)]
        return [
            _row_of_columns(source, line, cells, columns)
            for line, cells in csv_rows(source, list_lines(source.place), header.delimiter)
            if line > header.line
        ]
    if lines[0][1].lower() in PATH_COLUMNS:  # a header of one column
        lines = lines[1:]
    delimiter = find_delimiter(source, [text for _, text in lines[:NUM_LINES_LOOKED_AT]])
    return [(_path_in(source, number, text, delimiter), None) for number, text in lines]


def _row_of_columns(source: ListSource, line: int, cells: list[str], columns: list[int | None]) -> Row:
    path, start, end = (None if i is None or i >= len(cells) else cells[i] for i in columns)
    if not path:
        raise source.error(line, "the path is empty.")
    return path, seconds_between(source, line, start, end) if start and end else None


def _path_in(source: ListSource, number: int, text: str, delimiter: str) -> str:
    """Returns the path in a line without a header: all of it, or what stands before its labels."""
    if has_video_suffix(text) or exists(source.full_path(text)):
        return text
    path = split_row(source, text, delimiter)[0]
    if not has_video_suffix(path) and not exists(source.full_path(path)):
        raise source.error(number, f"{text!r} names no video.")
    return path


def _named(found: list[tuple[str, str, tuple[float, float] | None]]) -> list[ListedVideo]:
    """Names features as the videos are, without their endings; where two would be the same, with them."""
    plain = [_inside(name) for _, name, _ in found]
    endings = Counter(_stem(name) for name in dict.fromkeys(plain))
    return [
        ListedVideo(path, f"{_stem(name) if endings[_stem(name)] == 1 else name}{_part_name(part)}", part)
        for (path, _, part), name in zip(found, plain, strict=True)
    ]


def _inside(name: str) -> str:
    """Returns a path that stays below the folder it is joined to."""
    parts = [part for part in Path(name).parts if part not in (Path(name).anchor, "..")]
    return str(Path(*parts))


def _stem(name: str) -> str:
    return os.path.splitext(name)[0] if has_video_suffix(name) else name


def _part_name(part: tuple[float, float] | None) -> str:
    return "" if part is None else f"#{part[0]:.10g}-{part[1]:.10g}"
