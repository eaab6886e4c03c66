"""Which videos features are wanted of: a list, a folder or one file."""

import csv
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from nlvideo.data.lists.columns import ID_COLUMN, PATH_COLUMNS, ColumnReader, find_header
from nlvideo.data.lists.folder_tree import left_out, videos_below
from nlvideo.data.lists.list_source import VIDEO_SUFFIXES, ListSource, has_video_suffix
from nlvideo.data.lists.path_list import NUM_FIRST_LINES, filled_lines, read_table, rows_below
from nlvideo.data.lists.plain_rows import find_delimiter, split_row
from nlvideo.data.lists.text_file import lines_of_text
from nlvideo.data.shards.video_file import exists, reason_in_tar, split_member
from nlvideo.data.stores.addresses import is_address
from nlvideo.features.names import FoundVideo, ListedVideo, named
from nlvideo.runtime.errors import UserError, UserFileNotFoundError

LOCAL_ONLY = "nlvideo-extract reads files of this machine; copy the videos first."


def listed_videos(videos: str, root: str | None = None) -> tuple[list[ListedVideo], str]:
    """Returns the videos that a list, a folder or one file names, and a line on what was understood.

    A folder stands for all videos below it. Of a list only paths matter, and a start and an end where columns have
    these names: lines may hold labels, or a path alone.

    Args:
        videos: the place.
        root: folder that the paths of a list start from; None: the list's own.

    Raises:
        UserError: no such place, no videos there, a line without a video, or two videos with one name.
    """
    for key, place in (("videos", videos), ("data.root", root or "")):
        if is_address(place):
            raise UserError(f"{key}={place}: {LOCAL_ONLY}")
    if not exists(videos):
        raise UserFileNotFoundError(f"videos={videos} does not exist{reason_in_tar(videos)}.")
    if os.path.isdir(videos):
        return _videos_of_folder(Path(videos))
    if has_video_suffix(videos) or split_member(videos):
        return named([FoundVideo(videos, os.path.basename(videos))]), "1 video"
    return _videos_of_list(Path(videos), root)


def _videos_of_folder(folder: Path) -> tuple[list[ListedVideo], str]:
    below = sorted(videos_below(folder))
    if not below and folder.absolute() in videos_below(folder.absolute().parent):  # of pictures
        return named([FoundVideo(str(folder), os.path.basename(os.path.abspath(folder)))]), "1 folder of frames"
    remark = f"; {rest}" if (rest := left_out(folder)) else ""
    if not below:
        raise UserError(f"videos={folder}: the folder holds no video and no frames{remark}.")
    note = f"{_count(len(below))} below {folder}{remark}"
    return named([FoundVideo(str(path), str(path.relative_to(folder))) for path in below]), note


def _videos_of_list(place: Path, root: str | None) -> tuple[list[ListedVideo], str]:
    # Labels are not read, and may be several.
    source = ListSource(place, str(place.parent) if root is None else root, multi_label=True)
    found = list(dict.fromkeys(_official(source) if place.suffix.lower() == ".json" else _found(source)))
    if not found:
        raise UserError(f"videos={place} lists no video.")
    if any(is_address(video.path) for video in found):
        raise UserError(f"videos={place} names videos in stores: {LOCAL_ONLY}")
    if not any(exists(video.path) for video in found):
        absolute = all(os.path.isabs(video.written) for video in found)
        advice = "" if absolute else " Check data.root, the folder that its paths start from."
        raise UserFileNotFoundError(
            f"videos={place}: none of its {len(found)} videos exists; the first would be {found[0].path}"
            f"{reason_in_tar(found[0].path)}.{advice}"
        )
    videos = named(found)
    return videos, f"{_count(len(videos))} of {place.name}{_comments(place)}"


def _count(videos: int) -> str:
    return "1 video" if videos == 1 else f"{videos} videos"


def _comments(place: Path) -> str:
    """Returns how many lines of a list are comments, as a remark: a video's name may begin with # too."""
    lines = 0 if place.suffix.lower() == ".json" else sum(line.startswith("#") for line in lines_of_text(place))
    return f"; {'1 comment' if lines == 1 else f'{lines} comments'} left out (lines with # in front)" if lines else ""


def _official(source: ListSource) -> Iterator[FoundVideo]:
    table = read_table(source.root, str(source.place.absolute()), None)
    return (FoundVideo(table.path(i), table.name(i), table.part(i)) for i in range(len(table)))


def _found(source: ListSource) -> Iterator[FoundVideo]:
    first = list(itertools.islice(filled_lines(source.place), NUM_FIRST_LINES))
    header = find_header(first[0][1], first[0][0]) if first else None
    if header is None:
        yield from _of_plain_lines(source, first)
    elif ID_COLUMN in header.names and header.column(PATH_COLUMNS) is None:
        yield from _official(source)
    else:
        for row in rows_below(source, ColumnReader(source, header, labelled=False)):
            yield FoundVideo(source.full_path(row.path), row.path, row.part)


def _of_plain_lines(source: ListSource, first: list[tuple[int, str]]) -> Iterator[FoundVideo]:
    """Yields the videos of a list without a header, or with that of its only column."""
    header = first[0][0] if first and first[0][1].strip().lower() in PATH_COLUMNS else 0
    delimiter = find_delimiter(source, [text for line, text in first if line > header])
    for line, text in filled_lines(source.place):
        if line > header:
            path = _path_in(source, line, text.strip(), delimiter)
            yield FoundVideo(source.full_path(path), path)


def _path_in(source: ListSource, line: int, text: str, delimiter: str) -> str:
    """Returns the path in a line without a header: all of it, or what stands before its labels."""
    if known := _with_ending(source, text):
        return known
    try:
        path = split_row(source, text, delimiter)[0]
    except csv.Error:
        raise source.error(line, f"{text!r} has a quote that is never closed.") from None
    known = _with_ending(source, path)
    if known is None:
        raise source.error(line, f"{text!r} names no video; write paths with their endings, such as {path}.mp4.")
    return known


def _with_ending(source: ListSource, path: str) -> str | None:
    """Returns the path of a video; where it is written without an ending, as in XD-Violence's annotations, with that of
    the only video of this name; None if there is none."""
    if has_video_suffix(path) or exists(source.full_path(path)):
        return path
    there = [path + suffix for suffix in VIDEO_SUFFIXES if path and exists(source.full_path(path + suffix))]
    return there[0] if len(there) == 1 else None
