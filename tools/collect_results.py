"""Collects runs in a table: what sets them apart, their metrics, the spread over seeds, and their cost.

    python tools/collect_results.py outputs/ablation                     # every run below
    python tools/collect_results.py outputs/* --csv runs.csv --markdown runs.md
    python tools/collect_results.py outputs/ablation --table 2a --plot 2a.png --latex 2a.tex   # in the paper's form
    python tools/collect_results.py outputs/study/* --page study.html                     # all tables, in one page

A run is a folder with a config.yaml; the points of a sweep are runs too. In the second table, runs that differ in the
seed alone are one row: mean +- sample standard deviation, of finished runs only. Unfinished runs are listed below it.
If a run was evaluated several times with the same views, the evaluation of the latest step is listed under these
views, the others under the names of their folders.

--table takes the runs of nlvideo-train -m +ablation=table_2a and compares each row with its baseline: by the evaluation
with the most views that all runs have, otherwise by the last validation. The paper's numbers stand beside them.
Differences are paired by seed and video; their 95 % intervals and p hold for other seeds and other videos, those of one
seed for other videos alone. "2 seeds" beside one: the row's other seeds are not the baseline's. Holm's p
holds for all rows together. The detectable difference is the smallest that so many seeds and videos can show.

--page writes a study as one HTML file that opens anywhere: a section for each FOLDER with every table that has finished
rows, plots, curves, the pictures of tools/show_attention.py (attention*.png in the folders, and --attention), and the
protocol. --readings is Markdown: "# Title" with an introduction, then texts below "## FOLDER", "## FOLDER/TABLE" such
as "## long_range/2a", "## attention" and "## protocol".
"""

import argparse
import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tabulate import tabulate

from nlvideo.experiments.page import Study, write_page
from nlvideo.experiments.paper import TABLES
from nlvideo.experiments.plots import accuracy_over_cost, save_figure
from nlvideo.experiments.run_folders import COSTS, RunSummary, read_runs
from nlvideo.experiments.run_tables import group_rows, metric_names, run_rows, set_overrides, unfinished
from nlvideo.experiments.tables import DETECTABLE, num_compared, table_cells
from nlvideo.experiments.trained_rows import fill_table
from nlvideo.runtime.errors import reporting_errors
from nlvideo.runtime.files import make_place, replacing, write_text

OUTPUTS = ("csv", "markdown", "latex", "plot", "page")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="one line per run, unrounded")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="both tables")
    parser.add_argument("--table", choices=TABLES, help="one of the papers' tables instead")
    parser.add_argument("--latex", type=Path, metavar="FILE", help="with --table")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="with --table: accuracy over multiply-adds")
    parser.add_argument("--page", type=Path, metavar="FILE", help="all tables as one HTML file instead")
    parser.add_argument("--readings", type=Path, metavar="FILE", help="with --page: its texts, in Markdown")
    parser.add_argument("--attention", type=Path, nargs="+", default=[], metavar="PNG", help="with --page: pictures")
    arguments = parser.parse_args()
    if arguments.page and (arguments.table or arguments.csv or arguments.markdown):
        parser.error("--page excludes --table, --csv and --markdown.")
    if (arguments.readings or arguments.attention) and not arguments.page:
        parser.error("--readings and --attention require --page.")
    if (arguments.latex or arguments.plot) and not arguments.table:
        parser.error("--latex and --plot require --table.")
    with reporting_errors():
        for name in OUTPUTS:
            if file := getattr(arguments, name):
                make_place(file, f"--{name} {file}")
        if arguments.page:
            write_study(arguments)
            return
        runs = [run for folder in arguments.folders for run in read_runs(folder)]
        notes = write_ablation(arguments, runs) if arguments.table else write_runs(arguments, runs)
        for line in notes:
            print(line)


def write_study(arguments: argparse.Namespace) -> None:
    """Writes the page and prints what it leaves out."""
    studies = [Study(folder.resolve().name, folder, read_runs(folder)) for folder in arguments.folders]
    for line in write_page(arguments.page, studies, arguments.readings, arguments.attention):
        print(line)
    print(f"written  {arguments.page}, {arguments.page.stat().st_size / 1e6:.2f} MB")


def write_runs(arguments: argparse.Namespace, runs: list[RunSummary]) -> list[str]:
    """Prints and writes both tables; returns notes."""
    set_overrides(runs)
    tables = {"runs": run_rows(runs), "over seeds": group_rows(runs)}
    notes = unfinished(runs)
    if arguments.csv:
        plain = ("name", "overrides", "seed", "state", "step", "max_steps", "error")
        rows = [{key: getattr(run, key) for key in plain} | run.metrics | run.cost for run in runs]
        write_csv(arguments.csv, [*plain, *metric_names(runs), *COSTS], rows)
    if arguments.markdown:
        write_text(arguments.markdown, "\n\n".join([*map(markdown, tables.values()), *notes]) + "\n")
    for title, cells in tables.items():
        print_rows(title, cells)
    return notes


def write_ablation(arguments: argparse.Namespace, runs: list[RunSummary]) -> list[str]:
    """Prints and writes one of the papers' tables; returns notes."""
    filled = fill_table(arguments.table, runs)
    title, lines, metric, views, asked, _ = filled
    cells = table_cells(lines)
    print_rows(f"{title} ({views}, percent)", cells)
    if arguments.csv:
        write_csv(arguments.csv, list(cells[0]), cells)
    if arguments.markdown:
        write_text(arguments.markdown, markdown(cells) + "\n")
    if arguments.latex:
        write_text(arguments.latex, tabulate(cells, headers="keys", tablefmt="latex_booktabs") + "\n")
    if arguments.plot:
        save_figure(accuracy_over_cost(lines, title, metric), arguments.plot)
    missing = [f"not trained: {line.row.label} ({line.row.experiment})" for line in lines if not line.runs]
    columns = f"p (Holm): adjusted for all rows with p, {num_compared(lines)}; detectable: {DETECTABLE}, in points"
    return [*missing, *unfinished(asked), columns]


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with replacing(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True) if rows else "No run is finished."


def print_rows(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    if not rows:
        return
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*row.values())
    width = sum(max(len(value) for value in (name, *(row[name] for row in rows))) + 3 for name in rows[0]) + 1
    Console(width=max(width, 80), markup=False).print(table)


if __name__ == "__main__":
    main()
