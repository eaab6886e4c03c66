"""The lists of Kinetics, ActivityNet and HACS as they are published: by the videos' ids, for files by several names.

Kinetics names clips, which are files of their own. ActivityNet and HACS name parts of videos.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from nlvideo.data.lists.columns import END_COLUMNS, ID_COLUMN, START_COLUMNS, Header, csv_rows, seconds_between
from nlvideo.data.lists.list_rows import ListRow, build_table
from nlvideo.data.lists.list_source import ListSource, is_number
from nlvideo.data.lists.text_file import list_lines, read_json
from nlvideo.data.lists.video_files import VideoFiles
from nlvideo.data.lists.video_table import VideoTable, first_three
from nlvideo.runtime.errors import UserError, UserFileNotFoundError

SUBSETS = {
    "train": True,
    "training": True,
    "val": False,
    "validate": False,
    "validation": False,
    "valid": False,
}
HACS_COLUMN = "classname"


class _Entry(NamedTuple):
    """A clip or a part of a video, as a file has it."""

    video: str
    label: str
    start: float
    end: float
    subset: str
    line: int  # 0 in json


def read_official_csv(source: ListSource, header: Header) -> VideoTable:
    """Returns the videos of Kinetics's csv (label, youtube_id, ...) or of HACS's clips (classname, youtube_id, ...).

    Raises:
        UserError: a column is missing, or a row is not understood.
    """
    hacs = HACS_COLUMN in header.names
    label, subset = header.column((HACS_COLUMN, "label")), header.column(("subset", "split"))
    start, end = header.column(START_COLUMNS), header.column(END_COLUMNS)
    mark = header.column(("label",)) if hacs else None
    if label is None or start is None or end is None:
        raise source.error(
            header.line,
            f"the columns {', '.join(header.written)} have an id, but not a label, a start and an end as the lists of "
            "Kinetics and HACS have; test lists have no labels.",
        )
    entries, negative = [], 0
    for line, cells in csv_rows(source, list_lines(source.place), header.delimiter):
        if line <= header.line:
            continue
        if len(cells) < len(header.names):
            raise source.error(line, f"{len(cells)} columns, the header has {len(header.names)}.")
        if mark is not None and cells[mark] not in ("1", "1.0"):  # a clip that does not show the class
            negative += 1
            continue
        times = seconds_between(source, line, cells[start], cells[end])
        video = cells[header.names.index(ID_COLUMN)]
        entries.append(_Entry(video, cells[label], *times, "" if subset is None else cells[subset], line))
    notes = [f"clips that do not show their class left out: {negative}"] if negative else []
    what = "HACS's clips" if hacs else "Kinetics's csv"
    return _table(source, entries, what, notes, parts=hacs)


def read_official_json(source: ListSource) -> VideoTable:
    """Returns the videos of Kinetics's json, or those of ActivityNet's or HACS's, which has a "database".

    Raises:
        UserError: a json of another shape.
    """
    content = read_json(source.place)
    parts = isinstance(content, dict) and isinstance(content.get("database"), dict)
    videos = content["database"] if parts else content
    if not isinstance(videos, dict) or not all(isinstance(value, dict) for value in videos.values()):
        raise UserError(
            f"{source.place} is no json list that is known: Kinetics has {{ID: {{annotations, subset}}}}, ActivityNet "
            "and HACS {database: {ID: {annotations, subset}}}."
        )
    entries, bad = [], []
    for video, value in videos.items():
        annotations = value.get("annotations") or []
        for annotation in annotations if isinstance(annotations, list) else [annotations]:
            entry = _json_entry(source, video, annotation, str(value.get("subset", "")))
            if not 0 <= entry.start < entry.end:
                bad.append(f"{video} {entry.start:g} to {entry.end:g}")
            else:
                entries.append(entry)
    notes = [first_three(bad, "segments that do not end after their start left out")] if bad else []
    return _table(source, entries, "ActivityNet's json" if parts else "Kinetics's json", notes, parts=parts)


def _json_entry(source: ListSource, video: str, annotation: Any, subset: str) -> _Entry:
    try:
        start, end = map(float, annotation["segment"])
        label = annotation["label"]
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{source.place}, {video}: {str(annotation)[:80]!r} is no label with a segment of a start and an end."
        ) from None
    if not isinstance(label, str):
        raise UserError(f"{source.place}, {video}: the label {label!r} is no name.")
    return _Entry(video, label, start, end, subset, 0)


def _table(source: ListSource, entries: list[_Entry], what: str, notes: Sequence[str], *, parts: bool) -> VideoTable:
    """Returns the table of the entries whose videos are there; the classes are those of all entries."""
    entries, subset = _of_subset(source, entries)
    if not entries:
        raise UserError(f"{source.place} lists no video{subset}.")
    number = next((entry for entry in entries if is_number(entry.label)), None)
    if number is not None:
        raise UserError(f"{source.place}: the label {number.label!r} of {number.video} is no name of a class.")
    files, missing = VideoFiles(source.root, source.training), []
    if source.classes is None:  # those of missing videos too, so that every copy has the same
        source = source.with_classes(sorted({entry.label for entry in entries}))

    def rows() -> Iterator[ListRow]:
        for entry in entries:
            path = files.find(entry.label, _stems(entry, parts))
            if path is None:
                missing.append(entry.video)
            else:
                yield ListRow(path, (entry.label,), entry.line, (entry.start, entry.end) if parts else None)

    kept = list(rows())
    if not kept:
        names = ", ".join(f"{stem}.*" for stem in _stems(entries[0], parts))
        raise UserFileNotFoundError(
            f"{source.place}: none of its {len(entries)} videos exists below {source.root}. Files called {names}, "
            f"there or in a folder called {entries[0].label}, would be the first. Check data.root and data.videos."
        )
    remarks = [*notes, first_three(list(dict.fromkeys(missing)), "missing videos left out")] if missing else notes
    return build_table(source, kept, f"{what}{subset}", remarks)


def _stems(entry: _Entry, parts: bool) -> tuple[str, ...]:
    if parts:
        return entry.video, f"v_{entry.video}"
    return f"{entry.video}_{round(entry.start):06}_{round(entry.end):06}", entry.video


def _of_subset(source: ListSource, entries: Iterable[_Entry]) -> tuple[list[_Entry], str]:
    """Returns the entries for training or validation and a word on it; a file of one subset is read whole."""
    entries = list(entries)
    subsets = sorted({entry.subset for entry in entries})
    if source.training is None or len(subsets) <= 1:
        return entries, f", all {subsets[0]}" if len(subsets) == 1 and subsets[0] else ""
    kept = [entry for entry in entries if SUBSETS.get(entry.subset.lower()) == source.training]
    name = "training" if source.training else "validation"
    if not kept:
        raise UserError(f"{source.place} has the subsets {', '.join(subsets)}, none of which is for {name}.")
    return kept, f", {name} subset"
