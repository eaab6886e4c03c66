"""Folder trees `class/video.mp4`, and what counts as a video in a folder."""

import os
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nlvideo.data.decoding.frame_folder import SUFFIXES as PICTURE_SUFFIXES
from nlvideo.data.decoding.frame_folder import frame_number
from nlvideo.data.lists.list_source import VIDEO_SUFFIXES, ListSource
from nlvideo.data.lists.video_table import TableBuilder, VideoTable
from nlvideo.runtime.errors import UserError

NUM_NAMED = 5  # endings, links and folders
READ, READ_BEFORE, UNREADABLE = "read", "read before", "unreadable"


def read_tree(source: ListSource) -> VideoTable:
    """Returns the videos of a folder whose sub-folders are the classes, by default in sorted order.

    Raises:
        UserError: no sub-folders; one that is not a class; no videos.
    """
    place = source.place
    folders = sorted(entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise UserError(f"{place} has no sub-folders; expected one for each class.")
    classes = folders if source.classes is None else source.classes
    label = {name: i for i, name in enumerate(classes)}
    unknown = [name for name in folders if name not in label]
    if unknown:
        raise UserError(f"{place}: the folders {', '.join(unknown[:5])} are not among the {len(classes)} classes.")
    builder, targets = TableBuilder(), []
    for folder in folders:
        for video in sorted(videos_below(place / folder)):
            builder.add(str(video.relative_to(place)))
            targets.append(label[folder])
    remark = f"; {rest}" if (rest := left_out(place)) else ""
    if not targets:
        suffixes = " ".join(VIDEO_SUFFIXES)
        raise UserError(f"{place} holds no video with one of the suffixes {suffixes} and no folder of frames{remark}.")
    array = np.array(targets, np.int64)
    note = f"{place.name}: a folder for each class; {len(targets)} videos of {len(classes)} classes{remark}"
    held = array[:, None] == np.arange(len(classes)) if source.multi_label else array
    return builder.table(str(place), place, classes, held, note=note)


def videos_below(folder: Path) -> Iterator[Path]:
    """Yields the video files below a folder, and the folders below it that hold numbered pictures and no video.

    Links to folders are followed; a folder that is there by several names is read once.
    """
    for below in _walk(folder):
        names = below.files + below.dead  # which whoever opens them reports
        yield from (below.path / name for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES)
        if below.path != folder and _are_frames(names):
            yield below.path


def left_out(folder: Path) -> str:
    """Returns what below a folder is read as no video: files by their endings, links that lead nowhere or to a folder
    that is read by another name, and folders that cannot be read; empty if there is nothing of the kind."""
    endings, dead, again, closed = Counter[str](), list[str](), list[str](), list[str]()
    for below in _walk(folder):
        suffixes = (Path(name).suffix.lower() for name in below.files)
        frames = below.path != folder and _are_frames(below.files + below.dead)
        read = VIDEO_SUFFIXES + PICTURE_SUFFIXES if frames else VIDEO_SUFFIXES
        endings.update(suffix or "no ending" for suffix in suffixes if suffix not in read)
        dead += [os.path.relpath(below.path / name, folder) for name in below.dead]
        if below.state != READ:
            (again if below.state == READ_BEFORE else closed).append(os.path.relpath(below.path, folder))
    return "; ".join(
        filter(
            None,
            [
                _endings(endings),
                _named(dead, "link that leads nowhere", "links that lead nowhere"),
                _named(again, "link to a folder of another name here", "links to folders of other names here"),
                _named(closed, "folder that cannot be read", "folders that cannot be read"),
            ],
        )
    )


def _are_frames(names: list[str]) -> bool:
    """Returns whether the pictures among these are the frames of a video: covers lie beside videos."""
    videos = any(Path(name).suffix.lower() in VIDEO_SUFFIXES for name in names)
    return not videos and any(frame_number(name) is not None for name in names)


def _endings(endings: Counter[str]) -> str:
    if not endings:
        return ""
    ranked = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{count} {ending}" for ending, count in ranked[:NUM_NAMED])
    files = "1 file" if endings.total() == 1 else f"{endings.total()} files"
    return f"{files} left out: {listed}{', ...' if len(endings) > NUM_NAMED else ''}"


def _named(paths: list[str], one: str, several: str) -> str:
    if not paths:
        return ""
    listed = ", ".join(sorted(paths)[:NUM_NAMED])
    what = f"1 {one}" if len(paths) == 1 else f"{len(paths)} {several}"
    return f"{what}: {listed}{', ...' if len(paths) > NUM_NAMED else ''}"


class _Folder(NamedTuple):
    """A folder and the names in it, without hidden ones."""

    path: Path
    files: list[str]
    dead: list[str]  # links that lead nowhere
    state: str


def _walk(top: Path) -> Iterator[_Folder]:
    """Yields a folder and those below it. What lies there itself comes before what links lead to, so that links do not
    change the names of what is there anyway; links that make a loop end it."""
    seen = set[tuple[int, int]]()
    own, linked = [top], deque[Path]()
    while own or linked:
        path = own.pop() if own else linked.popleft()
        try:
            status = os.stat(path)
            with os.scandir(path) as found:
                entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError:
            yield _Folder(path, [], [], UNREADABLE)
            continue
        if (status.st_dev, status.st_ino) in seen:
            yield _Folder(path, [], [], READ_BEFORE)
            continue
        seen.add((status.st_dev, status.st_ino))
        links = {entry.name for entry in entries if entry.is_symlink()}
        folders = [e.name for e in entries if (os.path.isdir(e.path) if e.name in links else e.is_dir())]
        own += [path / name for name in reversed(folders) if name not in links]
        linked += [path / name for name in folders if name in links]
        dead = [name for name in sorted(links.difference(folders)) if not os.path.exists(path / name)]
        others = set(folders) | set(dead)
        yield _Folder(path, [entry.name for entry in entries if entry.name not in others], dead, READ)
