"""Collects runs in a table: what sets them apart, their metrics, the spread over seeds, and their cost.

    python tools/collect_results.py outputs/ablation                     # every run below
    python tools/collect_results.py outputs/* --csv runs.csv --markdown runs.md
    python tools/collect_results.py outputs/ablation --table 2a --plot 2a.png --latex 2a.tex   # in the paper's form

A run is a folder with a config.yaml; the points of a sweep are runs too. In the second table, runs that differ in the
seed alone are one row: mean +- sample standard deviation, of finished runs only. Unfinished runs are listed below it.
If a run was evaluated several times with the same views, the evaluation of the latest step is listed under these
views, the others under the names of their folders.

--table takes the runs of nlvideo-train -m +ablation=table_2a and compares each row with its baseline: by the evaluation
with the most views that all runs have, otherwise by the last validation. The paper's numbers stand beside them.
Differences are paired by seed and video; their 95 % intervals and p hold for other seeds and other videos. Holm's p
holds for all rows together. The detectable difference is the smallest that so many seeds and videos can show.
"""

import argparse
import csv
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tabulate import tabulate

from nlvideo.evaluation.metrics import target_ranks
from nlvideo.evaluation.result_files import read_results
from nlvideo.experiments.paper import TABLES
from nlvideo.experiments.plots import accuracy_over_cost, save_figure
from nlvideo.experiments.run_folders import COSTS, MULTIPLY_ADDS, PARAMS, RunSummary, find_evaluations, read_runs
from nlvideo.experiments.tables import DETECTABLE, TrainedRow, mean_and_deviation, table_cells, table_lines
from nlvideo.runtime.errors import UserError, reporting_errors
from nlvideo.runtime.files import make_folder, replacing, write_text
from nlvideo.training.metrics_file import VALIDATION_METRICS
from nlvideo.training.resume import FREE_KEYS
from nlvideo.training.run_status import FINISHED

# Keys in which runs may differ without being different experiments.
IGNORED_KEYS = {*FREE_KEYS, "name"} - {"model.pretrained", "optim.max_steps", "patience"}
# Keys in which the rows of one table may differ besides the block.
ROW_KEYS = {"model.layout", "model.depth", "model.stem", "model.activation_checkpointing"}
TABLE_METRICS = ("top1", "top5", "map")  # of the papers' tables
OUTPUTS = ("csv", "markdown", "latex", "plot")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="one line per run, unrounded")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="both tables")
    parser.add_argument("--table", choices=TABLES, help="one of the papers' tables instead")
    parser.add_argument("--latex", type=Path, metavar="FILE", help="with --table")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="with --table: accuracy over multiply-adds")
    arguments = parser.parse_args()
    if (arguments.latex or arguments.plot) and not arguments.table:
        parser.error("--latex and --plot require --table.")
    with reporting_errors():
        for name in OUTPUTS:
            if file := getattr(arguments, name):
                make_folder(file.parent, f"--{name} {file}")
        runs = [run for folder in arguments.folders for run in read_runs(folder)]
        notes = write_ablation(arguments, runs) if arguments.table else write_runs(arguments, runs)
        for line in notes:
            print(line)


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
    title, rows = TABLES[arguments.table]
    names = {row.experiment for row in rows}
    asked = [run for run in runs if run.settings.get("name") in names]
    finished = [run for run in asked if run.state == FINISHED]
    if not finished:
        raise UserError(f"No finished run of table {arguments.table}, whose rows are {', '.join(sorted(names))}.")
    check_same_recipe(finished)
    check_seeds(finished)
    views, folders = common_evaluations(finished)
    trained = read_trained(finished, folders)
    lines, title = table_lines(rows, trained), f"{arguments.table}: {title}"
    cells = table_cells(lines)
    print_rows(f"{title} ({views}, percent)", cells)
    if arguments.csv:
        write_csv(arguments.csv, list(cells[0]), cells)
    if arguments.markdown:
        write_text(arguments.markdown, markdown(cells) + "\n")
    if arguments.latex:
        write_text(arguments.latex, tabulate(cells, headers="keys", tablefmt="latex_booktabs") + "\n")
    if arguments.plot:
        metric = next(name for runs in trained.values() for run in runs for name in run.metrics)
        save_figure(accuracy_over_cost(lines, title, metric), arguments.plot)
    missing = [f"not trained: {line.row.label} ({line.row.experiment})" for line in lines if not line.runs]
    compared = sum(line.difference is not None and not math.isnan(line.difference.p) for line in lines)
    columns = f"p (Holm): adjusted for all rows with p, {compared}; detectable: {DETECTABLE}, in points"
    return [*missing, *unfinished(asked), columns]


def check_same_recipe(runs: Sequence[RunSummary]) -> None:
    """Raises UserError if runs of one table differ in more than their network: in data, recipe or width."""
    first = runs[0]
    for run in runs[1:]:
        for key in sorted({*first.settings, *run.settings} - IGNORED_KEYS - ROW_KEYS):
            a, b = first.settings.get(key), run.settings.get(key)
            if key.startswith(("data.", "model.", "optim.")) and a != b:
                raise UserError(
                    f"{first.name} and {run.name} are not rows of one table: {key} is {a} and {b}. "
                    "Give the folder of a single sweep."
                )


def check_seeds(runs: Sequence[RunSummary]) -> None:
    """Raises UserError if a row was trained twice with one seed."""
    seeds = Counter((run.settings["name"], run.seed) for run in runs)
    (name, seed), count = seeds.most_common(1)[0]
    if count > 1:
        raise UserError(f"There are {count} runs of {name} with seed {seed}; collect one of them.")


def common_evaluations(runs: Sequence[RunSummary]) -> tuple[str, dict[str, Path]]:
    """Returns the most views with which all runs were evaluated, and {run: folder of its latest such evaluation}."""
    found = {run.name: find_evaluations(run.path) for run in runs}
    common = set.intersection(*({one.views for one in many} for many in found.values()))
    if not common:
        return "last validation, one centre clip", {}
    best = max(common, key=lambda views: (views[0] * views[1], views))
    folders = {
        name: max((one for one in many if one.views == best), key=lambda one: one.step).folder
        for name, many in found.items()
    }
    return f"{best[0]} clips x {best[1]} crops", folders


def read_trained(runs: Sequence[RunSummary], folders: Mapping[str, Path]) -> dict[str, list[TrainedRow]]:
    """Returns {experiment: its runs}, with the results of these evaluations or of the last validation.

    Raises:
        UserError: the runs were evaluated on different videos.
    """
    trained = defaultdict(list)
    first_ids: np.ndarray | None = None
    for run in runs:
        if run.name in folders:
            row, ids = evaluated_row(run, folders[run.name])
            first_ids = ids if first_ids is None else first_ids
            if not np.array_equal(ids, first_ids):
                raise UserError(f"{runs[0].name} and {run.name} were evaluated on different videos.")
        else:
            row = validated_row(run)
        trained[run.settings["name"]].append(row)
    return trained


def evaluated_row(run: RunSummary, folder: Path) -> tuple[TrainedRow, np.ndarray]:
    """Returns the run with the results of an evaluation, and the (V,) names of its videos."""
    evaluation = read_results(folder)
    keys = [key for key in TABLE_METRICS if (key == "map") == evaluation.multi_label]
    metrics = {VALIDATION_METRICS[key]: 100 * evaluation.result[key] for key in keys}
    correct = None
    if not evaluation.multi_label:
        correct = (target_ranks(evaluation.scores, evaluation.targets) < 1).astype(float)
    return trained_row(run, metrics, correct), evaluation.ids


def validated_row(run: RunSummary) -> TrainedRow:
    """Returns the run with the results of its last validation, the same metrics as those of an evaluation."""
    found = {VALIDATION_METRICS[key]: run.metrics.get(f"last {VALIDATION_METRICS[key]}") for key in TABLE_METRICS}
    return trained_row(run, {name: value for name, value in found.items() if value is not None}, None)


def trained_row(run: RunSummary, metrics: dict[str, float], correct: np.ndarray | None) -> TrainedRow:
    params, multiply_adds = run.cost[PARAMS], run.cost[MULTIPLY_ADDS]
    assert run.seed is not None and params is not None and multiply_adds is not None  # as in every finished run
    return TrainedRow(run.seed, metrics, correct, params * 1e6, multiply_adds * 1e9)


def set_overrides(runs: Sequence[RunSummary]) -> None:
    """Sets every run's `overrides`: the keys whose values differ between the runs.

    A block brings many keys that differ in the same pattern, such as its kind and its places; only the first of each
    pattern is listed.
    """
    started = [run for run in runs if run.settings]
    keys = sorted({key for run in started for key in run.settings})
    listed, seen = [], set()
    for key in keys:
        values = tuple(repr(run.settings.get(key)) for run in started)
        pattern = tuple(values.index(value) for value in values)
        ignored = key == "seed" or any(key == k or key.startswith(f"{k}.") for k in IGNORED_KEYS)
        if not ignored and len(set(values)) > 1 and pattern not in seen:
            seen.add(pattern)
            listed.append(key)
    for run in started:
        run.overrides = " ".join(f"{key}={run.settings.get(key)}".replace(" ", "") for key in listed) or "-"


def run_rows(runs: Sequence[RunSummary]) -> list[dict[str, str]]:
    rows = []
    for run in runs:
        state = run.state if run.max_steps is None else f"{run.state} {run.step}/{run.max_steps}"
        seed = "-" if run.seed is None else str(run.seed)
        row = {"run": run.name, "overrides": run.overrides, "seed": seed, "state": state}
        row |= {name: two_decimals(run.metrics.get(name)) for name in metric_names(runs)}
        rows.append(row | {name: two_decimals(run.cost.get(name)) for name in COSTS})
    return rows


def group_rows(runs: Sequence[RunSummary]) -> list[dict[str, str]]:
    """Returns a row for each group of finished runs that differ in the seed only."""
    groups = defaultdict(list)
    for run in runs:
        if run.state == FINISHED:
            groups[run.overrides].append(run)
    rows = []
    for overrides, members in groups.items():
        seed, count = Counter(run.seed for run in members).most_common(1)[0]
        if count > 1:
            same = ", ".join(run.name for run in members if run.seed == seed)
            raise UserError(f"{same} are the same run with the same seed {seed}; collect one of them.")
        row = {"overrides": overrides, "seeds": str(len(members))}
        for name in [*metric_names(runs), *COSTS]:
            values = [run.metrics.get(name, run.cost.get(name)) for run in members]
            known = [value for value in values if value is not None]
            row[name] = mean_and_deviation(known)
            if 0 < len(known) < len(members):
                row[name] += f" ({len(known)} of {len(members)} seeds)"
        rows.append(row)
    return rows


def unfinished(runs: Iterable[RunSummary]) -> list[str]:
    """Returns a line for each run that is not part of any mean."""
    return [
        f"not finished: {run.name}: {run.state} at step {run.step}{f', {run.error}' if run.error else ''}"
        for run in runs
        if run.state != FINISHED
    ]


def metric_names(runs: Iterable[RunSummary]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.metrics))


def two_decimals(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


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
