"""The page of a whole study, in one file: what was run, the papers' tables with their pictures, and the protocol."""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from nlvideo.evaluation.pages import Picture, file_url, render_page
from nlvideo.experiments.page_tables import table_part, table_title, typeset
from nlvideo.experiments.paper import TABLES
from nlvideo.experiments.protocol import data_set, hours_of, protocol
from nlvideo.experiments.readings import ATTENTION, INTRODUCTION, PROTOCOL, TITLE, read_readings
from nlvideo.experiments.run_folders import RunSummary
from nlvideo.experiments.run_tables import group_rows, set_overrides, unfinished
from nlvideo.experiments.tables import DETECTABLE
from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.runtime.files import write_text
from nlvideo.training.run_status import FINISHED

ATTENTION_PATTERN = "attention*.png"  # as tools/show_attention.py names them, in the runs' folders
MAX_SIZE = 1600, 16383  # of an attention picture, in pixels: as wide as a page shows, as high as WebP can be
SHOWN_SHARE = 96 / 110  # CSS pixels of one of its pixels, as drawn
DEFAULT_TITLE = "A study of context blocks"
OTHER_IDS = {"main", "columns", "not-run", ATTENTION, PROTOCOL}  # of page.html.j2
PAGES_OWN = (TITLE, INTRODUCTION, ATTENTION, PROTOCOL)  # sections of readings that no folder can have


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
    """Writes the page and returns what it leaves out, a line each.

    Args:
        path: the .html file.
        studies: a section each; their names differ.
        readings: the Markdown file of read_readings, with sections named STUDY, STUDY/TABLE, attention and protocol.
        attention: pictures besides those in the runs' folders.

    Raises:
        UserError: no run is finished, two folders have one name or lie in each other, or a file cannot be used.
    """
    _check_studies(studies, readings is not None)
    sections = [name for study in studies for name in (study.name, *(f"{study.name}/{t}" for t in study.tables))]
    sections += [ATTENTION, PROTOCOL]
    texts = read_readings(readings, sections, ", ".join(sections)) if readings else {}
    content = _content(studies, texts, _pictures(attention, studies))
    write_text(path, render_page("experiments/page.html.j2", content))
    unfilled = [(part["name"], table) for part in content["sections"] for table in part["tables"] if table["reason"]]
    return [f"not run: {entry['title']}" for entry in content["not_run"]] + [
        f"not filled: {table['title']}, {study}: {table['reason']}" for study, table in unfilled
    ]


def _check_studies(studies: Sequence[Study], with_readings: bool) -> None:
    names = [study.name for study in studies]
    if len(set(names)) < len(names):
        raise UserError(f"Two of the folders have the same name: {', '.join(names)}. Give each folder once.")
    taken = [name for name in names if name in PAGES_OWN] if with_readings else []
    if taken:
        raise UserError(f"--readings: the folder {taken[0]} has the name of a section that every page has; rename it.")
    of_path: dict[Path, Study] = {}
    for study in studies:
        for run in study.runs:
            other = of_path.setdefault(run.path.resolve(), study)
            if other is not study:
                raise UserError(f"{run.path} is in {other.folder} and in {study.folder}; give each run once.")
    if not any(study.finished for study in studies):
        raise UserError(f"No finished run in {', '.join(str(study.folder) for study in studies)}.")


def _content(studies: Sequence[Study], texts: Mapping[str, str], attention: Sequence[Path]) -> dict[str, Any]:
    """Returns the variables of page.html.j2."""
    ids = _identities([study.name for study in studies])
    sections = [_section(study, identity, texts) for study, identity in zip(studies, ids, strict=True)]
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
        "protocol": [(key, [typeset(words[study.name].get(key, "-")) for study in studies]) for key in rows],
        "not_run": [
            {"title": table_title(table), "rows": len(TABLES[table].rows)} for table in TABLES if table not in shown
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
    seeds = {run.seed for run in finished if run.seed is not None}
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
        {"name": "seeds", "value": str(len(seeds)), "note": _numbers(seeds)},
        {"name": "data sets", "value": str(len(sets)), "note": ", ".join(sets)},
        {"name": "tables", "value": str(len(tables)), "note": "of the papers, with a finished row"},
    ]


def _section(study: Study, identity: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Returns what the page says of one folder, whose HTML ids start with `identity`."""
    tables = [
        table_part(name, study.name, study.runs)
        | {"id": f"{identity}.{name}", "text": texts.get(f"{study.name}/{name}", "")}
        for name in study.tables
    ]
    facts = protocol(study.runs)
    keys = "data set,videos,clips,networks,channels,training,evaluation,runs,seeds,hours of training".split(",")
    return {
        "id": identity,
        "name": study.name,
        "text": texts.get(study.name, ""),
        "facts": [(key, typeset(facts[key])) for key in keys if key in facts],
        "tables": tables,
        "others": _others(study, [table["name"] for table in tables if not table["reason"]]),
        "unfinished": unfinished(study.runs),
    }


def _others(study: Study, tables: Sequence[str]) -> list[dict[str, str]]:
    """Returns rows over seeds of the finished runs that are in none of these tables."""
    shown = {row.experiment for table in tables for row in TABLES[table].rows}
    others = [run for run in study.finished if run.settings["name"] not in shown]
    set_overrides(others)
    rows = []
    for run in others:
        run.overrides = f"{run.settings['name']} {run.overrides}".removesuffix(" -")
    for row in group_rows(others):
        rows.append({key: text if key == "overrides" else typeset(text) for key, text in row.items()})
    return rows


def _pictures(given: Sequence[Path], studies: Sequence[Study]) -> list[Path]:
    """Returns the attention pictures, each once: those given, then those in the folders."""
    found = [path for study in studies for path in sorted(study.folder.rglob(ATTENTION_PATTERN))]
    return list({path.resolve(): path for path in reversed([*given, *found])}.values())[::-1]


def _attention(path: Path) -> dict[str, Any]:
    """Returns a picture of tools/show_attention.py, smaller, with its title as the caption."""
    if not path.is_file():
        raise UserFileNotFoundError(f"--attention {path}: the file does not exist.")
    try:
        with Image.open(path) as opened:
            title = " ".join(str(opened.info.get("Title", path.stem.replace("_", " "))).split())
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises
        raise UserError(f"The attention picture {path} cannot be read: {error}") from None
    share = min(1.0, *(most / side for most, side in zip(MAX_SIZE, image.size, strict=True)))
    if share < 1:
        smaller = [max(1, int(share * side)) for side in image.size]
        image = image.resize((smaller[0], smaller[1]), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "webp", quality=85)
    url = file_url("image/webp", file.getvalue())
    width, height = (max(1, round(side * SHOWN_SHARE)) for side in image.size)
    return {"title": title, "picture": Picture(url, f"Attention maps: {title}", width, height)}


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(values)))


def _identities(names: Sequence[str]) -> list[str]:
    """Returns names as HTML ids without a dot, which sets their tables' apart, no two the same."""
    found: list[str] = []
    for name in names:
        identity = re.sub(r"\W+", "-", name).strip("-").lower() or "study"
        while identity in OTHER_IDS or identity in found:
            identity += "-"
        found.append(identity)
    return found
