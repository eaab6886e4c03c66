"""Folder trees `class/video.mp4`, and what counts as a video in a folder."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nlvideo.data.decoding.frame_folder import SUFFIXES as PICTURE_SUFFIXES
from nlvideo.data.lists.list_source import VIDEO_SUFFIXES, ListSource
from nlvideo.data.lists.video_table import TableBuilder, VideoTable
from nlvideo.runtime.errors import UserError

NUM_ENDINGS = 5  # that are named


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
    if not targets:
        raise UserError(
            f"{place} holds no video with one of the suffixes {' '.join(VIDEO_SUFFIXES)} and no folder of frames."
        )
    array = np.array(targets, np.int64)
    note = f"{place.name}: a folder for each class; {len(targets)} videos of {len(classes)} classes"
    if rest := left_out(place):
        note += f"; {rest}"
    held = array[:, None] == np.arange(len(classes)) if source.multi_label else array
    return builder.table(str(place), place, classes, held, note=note)


def videos_below(folder: Path) -> Iterator[Path]:
    """Yields the video files below a folder, and the folders below it that hold frames as pictures."""
    for below, _, shown in _walk(folder):
        yield from (Path(below, name) for name in shown if Path(name).suffix.lower() in VIDEO_SUFFIXES)
        if Path(below) != folder and any(Path(name).suffix.lower() in PICTURE_SUFFIXES for name in shown):
            yield Path(below)


def left_out(folder: Path) -> str:
    """Returns how many files below a folder are no videos by their endings, and which endings; empty if none is."""
    endings = Counter(
        Path(name).suffix.lower() or "no ending"
        for _, _, files in _walk(folder)
        for name in files
        if Path(name).suffix.lower() not in (*VIDEO_SUFFIXES, *PICTURE_SUFFIXES)
    )
    if not endings:
        return ""
    ranked = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{count} {ending}" for ending, count in ranked[:NUM_ENDINGS])
    files = "1 file" if endings.total() == 1 else f"{endings.total()} files"
    return f"{files} left out: {listed}{', ...' if len(endings) > NUM_ENDINGS else ''}"


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, without hidden files and folders."""
    for below, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield below, folders, [name for name in files if not name.startswith(".")]
