"""The papers' tables on the page of a study: their cells, and their plots.

What a table says stands in tables.py; here it is set for a page.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nlvideo.evaluation.pages import Picture, figure_picture
from nlvideo.experiments.error_curves import STYLES, plot_errors, read_curves
from nlvideo.experiments.paper import TABLES, UNCHECKED
from nlvideo.experiments.plots import LINE_COLORS, accuracy_over_cost
from nlvideo.experiments.protocol import networks
from nlvideo.experiments.run_folders import RunSummary
from nlvideo.experiments.tables import TableLine, line_cells, num_compared, table_metrics
from nlvideo.experiments.trained_rows import FilledTable, fill_table
from nlvideo.runtime.errors import UserError
from nlvideo.training.run_status import FINISHED

SIGNIFICANT = 0.05


def table_part(name: str, study: str, runs: Sequence[RunSummary]) -> dict[str, Any]:
    """Returns what the page shows of one of the papers' tables; where these runs cannot fill it, why: `reason`."""
    part: dict[str, Any] = {
        "name": name,
        "short": _short_name(name).removeprefix("Table "),
        "title": table_title(name),
        "reason": "",
    }
    try:
        filled = fill_table(name, runs)
    except UserError as error:
        return part | {"reason": str(error)}
    groups = _groups(filled.lines)
    return part | {
        "metric": filled.metric,
        "views": typeset(filled.views),
        "networks": networks([run for run in filled.runs if run.state == FINISHED]),
        "unchecked": name in UNCHECKED,
        "rows": [row for group in groups if _begun(group, filled) for row in _rows(group, filled)],
        "left_out": [group[0].row.label for group in groups if not _begun(group, filled)],
        "compared": num_compared(filled.lines),
        "plot": _plot(filled, part["title"], study),
        "curves": _curves(filled, part["title"]),
    }


def _groups(lines: Sequence[TableLine]) -> list[list[TableLine]]:
    """Returns each baseline with the rows below it."""
    groups: list[list[TableLine]] = []
    for line in lines:
        if line.row.baseline:
            groups.append([])
        groups[-1].append(line)
    return groups


def _begun(group: Sequence[TableLine], filled: FilledTable) -> bool:
    names = {run.settings["name"] for run in filled.runs}
    return any(line.row.experiment in names for line in group)


def _rows(lines: Sequence[TableLine], filled: FilledTable) -> list[dict[str, Any]]:
    """Returns some of the table's rows, each with its cells: {column: (text, a smaller one below it)}."""
    names, full = table_metrics(filled.lines), _saturated(filled.lines)
    return [
        {
            "label": line.row.label,
            "note": "" if line.runs else "not finished" if _begun([line], filled) else "not run",
            "baseline": line.row.baseline,
            "trained": bool(line.runs),
            "shows": _shows(line),
            "cells": {
                key: _split(typeset(text)) for key, text in line_cells(line, names).items() if key and key not in full
            },
        }
        for line in lines
    ]


def _shows(line: TableLine) -> bool:
    """Returns whether the row stands out: by Holm's p, and in more than one network, whose luck that would be."""
    found = line.difference
    return found is not None and found.num_seeds > 1 and found.adjusted_p < SIGNIFICANT


def _saturated(lines: Sequence[TableLine]) -> set[str]:
    """Returns the metrics besides the main one that are 100 % in every run, as top-5 of four classes."""
    runs = [run for line in lines for run in line.runs]
    others = {name for run in runs for name in list(run.metrics)[1:]}
    return {name for name in others if all(run.metrics.get(name) == 100 for run in runs)}


def _split(text: str) -> tuple[str, str]:
    """Returns a difference and its interval, or a mean and its deviation, apart."""
    first, between, rest = text.partition(" (")
    return (first, rest.removesuffix(")")) if between else (text, "")


def typeset(text: str) -> str:
    """Returns a table's text with the signs of print: 51.85 ± 2.31, −0.77, 1.31×, and a dash where there is nothing."""
    if text == "-":
        return "–"
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text.replace(" +- ", " ± "))
    return re.sub(r"(?<=\d)x\b|(?<=\d) x (?=\d)|(?<=clip) x |(?<=clips) x ", _times, text)


def _times(found: re.Match[str]) -> str:
    return " × " if " " in found[0] else "×"


def _plot(filled: FilledTable, title: str, study: str) -> Picture:
    said = []
    for line in filled.lines:
        if line.runs:
            mean = sum(run.main_metric for run in line.runs) / len(line.runs)
            said.append(f"{line.row.label} {mean:.1f} % at {line.runs[0].multiply_adds / 1e9:.3g} G")
    figure = accuracy_over_cost(filled.lines, "", filled.metric)
    return figure_picture(figure, f"{filled.metric} over multiply-adds, {title} on {study}: {', '.join(said)}")


def _curves(filled: FilledTable, title: str) -> list[Picture]:
    """Returns pictures of a baseline and the rows below it, as many in each as there are colours."""
    by_name: dict[str, list[RunSummary]] = {}
    for run in filled.runs:
        if run.state == FINISHED:
            by_name.setdefault(run.settings["name"], []).append(run)
    size = len(LINE_COLORS) - 1
    groups = [
        [baseline, *rows[i : i + size]] for baseline, *rows in _groups(filled.lines) for i in range(0, len(rows), size)
    ]
    return [picture for group in groups if (picture := _curve_picture(group, by_name, title))]


def _curve_picture(
    group: Sequence[TableLine], by_name: Mapping[str, Sequence[RunSummary]], title: str
) -> Picture | None:
    errors = {}
    for line in group:
        of_runs = [read_curves(run.path) for run in by_name.get(line.row.experiment, [])]
        splits = {split: [curves[split] for curves in of_runs if split in curves] for split in STYLES}
        if any(splits.values()):
            errors[line.row.label] = {split: curves for split, curves in splits.items() if curves}
    if len(errors) < 2:  # nothing to compare
        return None
    said = f"Training and validation error over the steps, {title}: {', '.join(errors)}"
    return figure_picture(plot_errors(errors), said)


def table_title(table: str) -> str:
    return f"{_short_name(table)}: {TABLES[table].title.removeprefix('GCNet: ')}"


def _short_name(table: str) -> str:
    return f"Table {table}" if table[0].isdigit() else "GCNet"
