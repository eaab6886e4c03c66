"""What in a pair of lists is probably not meant, one line each: leaks between them, contradictions, imbalance."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from nlvideo.data.lists.video_table import VideoTable

NUM_SHOWN = 3
MAX_IMBALANCE = 10
YOUTUBE_PART = re.compile(r"(.{11})_\d{6}_\d{6}")  # as Kinetics names them: a video's id, start and end


def list_warnings(train: VideoTable, val: VideoTable) -> list[str]:
    """Returns warnings about the training and the validation list, an empty list if there are none."""
    found = [*_leaks(train, val), *_contradictions(train, "training"), *_contradictions(val, "validation")]
    for table, name in ((train, "training"), (val, "validation")):
        empty = [table.classes[k] for k in np.flatnonzero(class_counts(table) == 0)]
        if empty:
            found.append(f"{len(empty)} of {len(table.classes)} classes have no {name} video: {_listing(empty)}")
    counts = class_counts(train)
    if len(counts) > 1 and counts.max() > MAX_IMBALANCE * min(counts[counts > 0], default=1):
        fewest = int(np.where(counts > 0, counts, counts.max()).argmin())
        found.append(
            f"classes are uneven: {counts.max()} training videos of {train.classes[counts.argmax()]}, "
            f"{counts[fewest]} of {train.classes[fewest]}"
        )
    return found


def class_counts(table: VideoTable) -> np.ndarray:
    """Returns (classes,) int64, how many videos of a table show each class."""
    if table.multi_label:
        return table.targets.sum(0)
    return np.bincount(table.targets, minlength=len(table.classes))


def video_source(path: str) -> str | None:
    """Returns what the name of a file says about the recording that it was cut from, None if it says nothing.

    YouTube ids before start and end as in Kinetics; otherwise the name up to its last number, as UCF101's groups
    (v_Archery_g01_c02), if another number remains before it.
    """
    stem = os.path.splitext(os.path.basename(path))[0]
    if part := YOUTUBE_PART.fullmatch(stem):
        return part[1]
    last = re.search(r"\d+\D*$", stem)
    return stem[: last.start()] if last and re.search(r"\d", stem[: last.start()]) else None


def _leaks(train: VideoTable, val: VideoTable) -> list[str]:
    known = {os.path.normpath(train.path(i)) for i in range(len(train))}
    both = {name for i, name in enumerate(val.names()) if os.path.normpath(val.path(i)) in known}
    found = []
    if both:
        found.append(f"{_count(both, 'video is', 'videos are')} in both lists: {_listing(sorted(both))}")
    sources = {source for name in train.names() if (source := video_source(name))}
    shared = defaultdict(list)
    for name in val.names():
        source = video_source(name)
        if source in sources and name not in both:
            shared[source].append(name)
    if shared:
        videos = [name for names in shared.values() for name in names]
        found.append(
            f"judging by names, {_count(videos, 'validation video comes', 'validation videos come')} from "
            f"{_count(shared, 'recording', 'recordings')} that the training list has clips of too: {_listing(videos)}"
        )
    return found


def _contradictions(table: VideoTable, which: str) -> list[str]:
    if table.multi_label:
        return []
    labels: dict[tuple, set[int]] = defaultdict(set)
    for i, name in enumerate(table.names()):
        labels[name, table.part(i)].add(int(table.targets[i]))
    twice = [name for (name, _), classes in labels.items() if len(classes) > 1]
    if not twice:
        return []
    return [f"{_count(twice, 'video has', 'videos have')} several labels in the {which} list: {_listing(twice)}"]


def _count(items: Iterable, one: str, several: str) -> str:
    number = len(list(items))
    return f"{number} {one if number == 1 else several}"


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:NUM_SHOWN]) + (", ..." if len(names) > NUM_SHOWN else "")
