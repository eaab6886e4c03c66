"""Writes a table back as a list, for the tools that leave out or replace videos."""

import csv
from pathlib import Path
from typing import TextIO

import numpy as np

from nlvideo.data.lists.video_table import VideoTable


def write_list(file: Path, table: VideoTable, paths: dict[str, str]) -> None:
    """Writes the rows of the videos in `paths` as csv, with labels as the table's list has them.

    It has `path,label` lines, or columns path, start, end, label where there are parts of videos, and labels as
    `1;3` where a video has several.

    Args:
        paths: name in the table -> name to be written.
    """
    single = not table.multi_label or bool((table.targets.sum(1) == 1).all())
    with open(file, "w", newline="", encoding="utf-8", errors="surrogateescape") as out:
        if table.parts is not None or not single:
            times = ["start", "end"] if table.parts is not None else []
            _write_row(out, ["path", *times, "label" if single else "labels"])
        for i, name in enumerate(table.names()):
            if name not in paths:
                continue
            cells = [paths[name], table.target_names(i)]
            if table.parts is not None:
                part = table.part(i)
                cells[1:1] = ["", ""] if part is None else [np.format_float_positional(t, trim="-") for t in part]
            _write_row(out, cells)


def _write_row(out: TextIO, cells: list[str]) -> None:
    comment = cells[0].startswith("#")  # as which the line would be read without quotes
    csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL if comment else csv.QUOTE_MINIMAL).writerow(cells)
