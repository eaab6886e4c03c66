"""The page of a whole study, in one file: what was run, the papers' tables with their pictures, and the protocol."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from nlvideo.evaluation.pages import Picture, figure_picture, file_url, render_page
from nlvideo.experiments.error_curves import STYLES, plot_errors, read_curves
from nlvideo.experiments.paper import TABLES
from nlvideo.experiments.plots import LINE_COLORS, accuracy_over_cost
from nlvideo.experiments.protocol import data_set, hours_of, protocol
from nlvideo.experiments.readings import ATTENTION, INTRODUCTION, PROTOCOL, TITLE, read_readings
from nlvideo.experiments.run_folders import RunSummary
from nlvideo.experiments.run_tables import group_rows, set_overrides, unfinished
from nlvideo.experiments.tables import DETECTABLE, TableLine, table_cells
from nlvideo.experiments.trained_rows import FilledTable, fill_table
from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.runtime.files import write_text
from nlvideo.training.run_status import FINISHED

ATTENTION_PATTERN = "attention*.png"  # as tools/show_attention.py names them, in the runs' folders
MAX_WIDTH = 1600  # of an attention picture, in pixels
SHOWN_SHARE = 96 / 110  # CSS pixels of one of its pixels, as drawn
DEFAULT_TITLE = "A study of context blocks"
SIGNIFICANT = 0.05


class Study(NamedTuple):
    """A folder of runs."""

    name: str
    folder: Path
    runs: list[RunSummary]

    @property
    def finished(self) -> list[RunSummary]:
        return [run for run in self.runs if run.state == FINISHED]

    @property
    def tables(self) -> list[str]:
        """The papers' tables of which a row is finished besides the baselines."""
        names = {run.settings["name"] for run in self.finished}
        return [
            table
            for table, (_, rows) in TABLES.items()
            if any(row.experiment in names and not row.baseline for row in rows)
        ]


def write_page(path: Path, studies: Sequence[Study], readings: Path | None, attention: Sequence[Path]) -> list[str]:
    """Writes the page and returns which tables it leaves out.

    Args:
        path: the .html file.
        studies: a section each; their names differ.
        readings: the Markdown file of read_readings, with sections named STUDY, STUDY/TABLE, attention and protocol.
        attention: pictures besides those in the runs' folders.

    Raises:
        UserError: no run is finished, two folders have one name, or a file given cannot be used.
    """
    _check_studies(studies)
    sections = [name for study in studies for name in (study.name, *(f"{study.name}/{t}" for t in study.tables))]
    sections += [ATTENTION, PROTOCOL]
    texts = read_readings(readings, sections, ", ".join(sections)) if readings else {}
    content = _content(studies, texts, [*attention, *_found_attention(studies)])
    write_text(path, render_page("experiments/page.html.j2", content))
    return [str(entry["title"]) for entry in content["not_run"]]


def _check_studies(studies: Sequence[Study]) -> None:
    names = [study.name for study in studies]
    if len(set(names)) < len(names):
        raise UserError(f"Two of the folders have the same name: {', '.join(names)}. Give each folder once.")
    if not any(study.finished for study in studies):
        raise UserError(f"No finished run in {', '.join(str(study.folder) for study in studies)}.")


def _content(studies: Sequence[Study], texts: Mapping[str, str], attention: Sequence[Path]) -> dict[str, Any]:
    """Returns the variables of page.html.j2."""
    sections = [_section(study, texts) for study in studies]
    pictures = [_attention(path) for path in attention]
    words = {study.name: protocol(study.runs) for study in studies}
    rows = dict.fromkeys(key for of_study in words.values() for key in of_study)
    shown = {table for study in studies for table in study.tables}
    later = [
        (ATTENTION, "What the blocks attend to", bool(pictures)),
        (PROTOCOL, "Protocol", True),
        ("not-run", "Not run", len(shown) < len(TABLES)),
    ]
    return {
        "title": texts.get(TITLE, DEFAULT_TITLE),
        "introduction": texts.get(INTRODUCTION, ""),
        "scores": _scores(studies),
        "sections": sections,
        "pictures": pictures,
        "texts": {key: texts.get(key, "") for key in (ATTENTION, PROTOCOL)},
        "studies": [study.name for study in studies],
        "protocol": [(key, [_typeset(words[study.name].get(key, "-")) for study in studies]) for key in rows],
        "not_run": [
            {"title": _titled(table), "rows": len(TABLES[table].rows)} for table in TABLES if table not in shown
        ],
        "contents": [
            {
                "id": part["id"],
                "title": part["name"],
                "children": [{"id": t["id"], "title": t["short"]} for t in part["tables"]],
            }
            for part in sections
        ]
        + [{"id": key, "title": title, "children": []} for key, title, there in later if there],
        "detectable": DETECTABLE,
    }


def _scores(studies: Sequence[Study]) -> list[dict[str, str]]:
    """Returns the figures at the top of the page."""
    finished = [run for study in studies for run in study.finished]
    seeds = {run.seed for run in finished}
    left = sum(len(study.runs) for study in studies) - len(finished)
    sets = list(dict.fromkeys(data_set(run.settings) for run in finished))
    tables = [(study.name, table) for study in studies for table in study.tables]
    return [
        {
            "name": "finished runs",
            "value": str(len(finished)),
            "note": f"{left} not finished" if left else "all of them",
        },
        {"name": "hours of training", "value": f"{hours_of(finished):.1f}", "note": "validation included"},
        {"name": "seeds", "value": str(len(seeds)), "note": ", ".join(str(seed) for seed in sorted(seeds, key=str))},
        {"name": "data sets", "value": str(len(sets)), "note": ", ".join(sets)},
        {"name": "tables", "value": str(len(tables)), "note": "of the papers, filled"},
    ]


def _section(study: Study, texts: Mapping[str, str]) -> dict[str, Any]:
    """Returns what the page says of one folder."""
    identity = _identity(study.name)
    tables = [_table(study, name, texts.get(f"{study.name}/{name}", "")) for name in study.tables]
    facts = protocol(study.runs)
    keys = ("data set", "videos", "clips", "training", "evaluation", "runs", "seeds", "hours of training")
    return {
        "id": identity,
        "name": study.name,
        "text": texts.get(study.name, ""),
        "facts": [(key, _typeset(facts[key])) for key in keys if key in facts],
        "tables": tables,
        "others": _others(study),
        "unfinished": unfinished(study.runs),
    }


def _others(study: Study) -> list[dict[str, str]]:
    """Returns rows over seeds of the finished runs that are in none of the papers' tables shown."""
    shown = {row.experiment for table in study.tables for row in TABLES[table].rows}
    others = [run for run in study.finished if run.settings["name"] not in shown]
    set_overrides(others)
    rows = []
    for run in others:
        run.overrides = f"{run.settings['name']} {run.overrides}".removesuffix(" -")
    for row in group_rows(others):
        rows.append({key: _typeset(value) for key, value in row.items()})
    return rows


def _table(study: Study, name: str, text: str) -> dict[str, Any]:
    filled = fill_table(name, study.runs)
    label = _named(name)
    title = _titled(name)
    return {
        "id": f"{_identity(study.name)}-{name}",
        "short": label.removeprefix("Table "),
        "title": title,
        "metric": filled.metric,
        "views": _typeset(filled.views),
        "text": text,
        "rows": _rows(filled.lines),
        "compared": sum(line.difference is not None for line in filled.lines),
        "missing": [line.row.label for line in filled.lines if not line.runs],
        "plot": _plot(filled, title, study.name),
        "curves": _curves(filled, title),
    }


def _rows(lines: Sequence[TableLine]) -> list[dict[str, Any]]:
    """Returns the rows, each with its cells: {column: (text, a smaller one below it)}."""
    full = _saturated(lines)
    return [
        {
            "label": line.row.label,
            "baseline": line.row.baseline,
            "trained": bool(line.runs),
            "shows": line.difference is not None and line.difference.adjusted_p < SIGNIFICANT,
            "cells": {key: _split(_typeset(text)) for key, text in cells.items() if key and key not in full},
        }
        for line, cells in zip(lines, table_cells(lines), strict=True)
    ]


def _saturated(lines: Sequence[TableLine]) -> set[str]:
    """Returns the metrics besides the main one that are 100 % in every run, as top-5 of four classes."""
    runs = [run for line in lines for run in line.runs]
    others = {name for run in runs for name in list(run.metrics)[1:]}
    return {name for name in others if all(run.metrics.get(name) == 100 for run in runs)}


def _split(text: str) -> tuple[str, str]:
    """Returns a difference and its interval, or a mean and its deviation, apart."""
    first, between, rest = text.partition(" (")
    return (first, rest.removesuffix(")")) if between else (text, "")


def _typeset(text: str) -> str:
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
    groups: list[list[TableLine]] = []
    for line in filled.lines:
        if line.row.baseline or len(groups[-1]) == len(LINE_COLORS):
            groups.append([line] if line.row.baseline else [groups[-1][0], line])
        else:
            groups[-1].append(line)
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


def _found_attention(studies: Sequence[Study]) -> list[Path]:
    return [path for study in studies for path in sorted(study.folder.rglob(ATTENTION_PATTERN))]


def _attention(path: Path) -> dict[str, Any]:
    """Returns a picture of tools/show_attention.py, smaller, with its title as the caption."""
    if not path.is_file():
        raise UserFileNotFoundError(f"--attention {path}: the file does not exist.")
    try:
        with Image.open(path) as opened:
            title = " ".join(str(opened.info.get("Title", path.stem.replace("_", " "))).split())
            image = opened.convert("RGB")
    except OSError as error:
        raise UserError(f"--attention {path}: no picture: {error}") from None
    if image.width > MAX_WIDTH:
        image = image.resize((MAX_WIDTH, round(MAX_WIDTH * image.height / image.width)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "webp", quality=85)
    url = file_url("image/webp", file.getvalue())
    width, height = (round(side * SHOWN_SHARE) for side in image.size)
    return {"title": title, "picture": Picture(url, f"Attention maps: {title}", width, height)}


def _titled(table: str) -> str:
    return f"{_named(table)}: {TABLES[table].title.removeprefix('GCNet: ')}"


def _named(table: str) -> str:
    return f"Table {table}" if table[0].isdigit() else "GCNet"


def _identity(name: str) -> str:
    """Returns a name as an HTML id."""
    return re.sub(r"\W+", "-", name).strip("-").lower() or "study"
