"""Makes one table of runs: what distinguishes them, their metrics, their spread over seeds, and their cost.

    python tools/collect_results.py outputs/ablation                     # every run below
    python tools/collect_results.py outputs/* --csv runs.csv --markdown runs.md
    python tools/collect_results.py outputs/ablation --table 2a --plot 2a.png --latex 2a.tex   # as the paper has it

A run is a folder with a config.yaml, a sweep's point too. Runs that differ in nothing but the seed are one row of the
second table: mean +- sample standard deviation. Only finished runs enter it; the others are named below. A run that was
evaluated several times with the same views has its latest step under their name, the others under their folders'.

--table takes the runs of nlvideo-train -m +ablation=table_2a: each row against its baseline, by the evaluation with
the most views that all of them have, else by their last validation; beside it what the paper reports. Differences are
paired by seed and video; their 95 % interval and p are for other seeds and other videos.
"""

import argparse
import csv
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tabulate import tabulate

from nlvideo.evaluation.metrics import target_ranks
from nlvideo.evaluation.result_files import read_results
from nlvideo.experiments.paper import TABLES
from nlvideo.experiments.run_folders import Run, evaluations, read_runs
from nlvideo.experiments.table_format import cells, draw, spread
from nlvideo.experiments.tables import Trained, lines_of
from nlvideo.runtime.errors import UserError
from nlvideo.training.resume import FREE_KEYS
from nlvideo.training.run_log import METRICS
from nlvideo.training.run_status import FINISHED

# What two runs may differ in without being two things that someone compares.
UNIMPORTANT = {*FREE_KEYS, "name"} - {"model.pretrained", "optim.max_steps"}
COSTS = ("M params", "G multiply-adds", "hours", "clips/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="one line a run, all digits")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="both tables")
    parser.add_argument("--table", choices=TABLES, help="one of the papers' tables instead")
    parser.add_argument("--latex", type=Path, metavar="FILE", help="with --table")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="with --table: accuracy against multiply-adds")
    arguments = parser.parse_args()
    if (arguments.latex or arguments.plot) and not arguments.table:
        parser.error("--latex and --plot go with --table.")
    try:
        runs = [run for folder in arguments.folders for run in read_runs(folder)]
        if arguments.table:
            notes = write_ablation(arguments, runs)
        else:
            notes = write_runs(arguments, runs)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for line in notes:
        print(line)


def write_runs(arguments: argparse.Namespace, runs: list[Run]) -> list[str]:
    """Prints and writes both tables of runs; returns notes."""
    name_differences(runs)
    tables = {"runs": run_rows(runs), "over seeds": group_rows(runs)}
    notes = not_finished(runs)
    if arguments.csv:
        write_csv(arguments.csv, runs)
    if arguments.markdown:
        parts = [*(markdown(rows) for rows in tables.values()), *notes]
        arguments.markdown.write_text("\n\n".join(parts) + "\n")
    for title, rows in tables.items():
        print_rows(title, rows)
    return notes


def write_ablation(arguments: argparse.Namespace, runs: list[Run]) -> list[str]:
    """Prints and writes one of the papers' tables; returns notes."""
    title, rows = TABLES[arguments.table]
    names = {row.experiment for row in rows}
    asked = [run for run in runs if run.settings.get("name") in names]
    members = [run for run in asked if run.state == FINISHED]
    if not members:
        raise UserError(f"No finished run of table {arguments.table}, whose rows are {', '.join(sorted(names))}.")
    refuse_other_recipes(members)
    views, folders = common_evaluations(members)
    trained, ids = defaultdict(list), None
    for run in members:
        one, scored = as_trained(run, folders.get(run.name))
        ids = scored if ids is None else ids
        if ids is not None and not np.array_equal(ids, scored):
            raise UserError(f"{members[0].name} and {run.name} were evaluated on other videos.")
        trained[run.settings["name"]].append(one)
    lines = lines_of(rows, trained)
    title = f"{arguments.table}: {title}"
    metric = next(iter(next(iter(trained.values()))[0].metrics))
    table = cells(lines)
    print_rows(f"{title} ({views}, percent)", table)
    if arguments.csv:
        with open(arguments.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)
    if arguments.markdown:
        arguments.markdown.write_text(markdown(table) + "\n")
    if arguments.latex:
        arguments.latex.write_text(tabulate(table, headers="keys", tablefmt="latex_booktabs") + "\n")
    if arguments.plot:
        draw(lines, title, metric, arguments.plot)
    missing = [f"not trained: {line.row.label} ({line.row.experiment})" for line in lines if not line.runs]
    return [*missing, *not_finished(asked)]


def refuse_other_recipes(runs: list[Run]) -> None:
    """Raises UserError where runs of one table differ in more than their network: data, recipe or width."""
    free = {*UNIMPORTANT, "model.layout", "model.depth", "model.stem", "model.activation_checkpointing"}
    first = runs[0]
    for run in runs[1:]:
        for key in sorted({*first.settings, *run.settings}):
            a, b = first.settings.get(key), run.settings.get(key)
            if key.startswith(("data.", "model.", "optim.")) and key not in free and a != b:
                raise UserError(
                    f"{first.name} and {run.name} are no rows of one table: {key} is {a} and {b}. "
                    "Give the folder of one sweep."
                )
    seeds = Counter((run.settings["name"], run.seed) for run in runs)
    (name, seed), count = seeds.most_common(1)[0]
    if count > 1:
        raise UserError(f"{name} with the seed {seed} is there {count} times; collect one of them.")


def common_evaluations(runs: list[Run]) -> tuple[str, dict[str, Path]]:
    """Returns the most views that all runs were evaluated with and {run: the latest such evaluation's folder}."""
    found = {run.name: evaluations(run.path) for run in runs}
    common = set.intersection(*({one.views for one in many} for many in found.values()))
    if not common:
        return "last validation, one centre clip", {}
    best = max(common, key=lambda views: (views[0] * views[1], views))
    folders = {
        name: max((one for one in many if one.views == best), key=lambda one: one.step).folder
        for name, many in found.items()
    }
    return f"{best[0]} clips x {best[1]} crops", folders


def as_trained(run: Run, folder: Path | None) -> tuple[Trained, np.ndarray | None]:
    """Returns the run as its row has it, and the names of the videos that it was evaluated on."""
    costs = run.cost["M params"] * 1e6, run.cost["G multiply-adds"] * 1e9
    if folder is None:
        last = {name.removeprefix("last "): value for name, value in run.metrics.items() if name.startswith("last ")}
        return Trained(run.seed, last, None, *costs), None
    evaluation = read_results(folder)
    shown_metrics = ("map",) if evaluation.multi_label else ("top1", "top5")
    metrics = {METRICS[key]: 100 * evaluation.result[key] for key in shown_metrics}
    right = None if evaluation.multi_label else target_ranks(evaluation.scores, evaluation.targets) < 1
    return Trained(run.seed, metrics, None if right is None else right.astype(float), *costs), evaluation.ids


def name_differences(runs: list[Run]) -> None:
    """Gives every run its `overrides`: the keys whose values are not the same in all runs.

    A block brings many keys; where its kind or places say it all, they would fill the line, so keys that differ in
    the same way as an earlier one are left out.
    """
    begun = [run for run in runs if run.settings]
    keys = sorted({key for run in begun for key in run.settings})
    shown, seen = [], set()
    for key in keys:
        values = tuple(repr(run.settings.get(key)) for run in begun)
        pattern = tuple(values.index(value) for value in values)
        important = key != "seed" and not any(key == k or key.startswith(f"{k}.") for k in UNIMPORTANT)
        if important and len(set(values)) > 1 and pattern not in seen:
            seen.add(pattern)
            shown.append(key)
    for run in begun:
        run.overrides = " ".join(f"{key}={run.settings.get(key)}".replace(" ", "") for key in shown) or "-"


def run_rows(runs: list[Run]) -> list[dict[str, str]]:
    rows = []
    for run in runs:
        state = run.state if run.max_steps is None else f"{run.state} {run.step}/{run.max_steps}"
        seed = "-" if run.seed is None else str(run.seed)
        row = {"run": run.name, "overrides": run.overrides, "seed": seed, "state": state}
        row |= {name: shown(run.metrics.get(name)) for name in metric_names(runs)}
        rows.append(row | {name: shown(run.cost.get(name)) for name in COSTS})
    return rows


def group_rows(runs: list[Run]) -> list[dict[str, str]]:
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
            raise UserError(f"{same} are the same run with the seed {seed}, twice; collect one of them.")
        row = {"overrides": overrides, "seeds": str(len(members))}
        for name in [*metric_names(runs), *COSTS]:
            values = [run.metrics.get(name, run.cost.get(name)) for run in members]
            known = [value for value in values if value is not None]
            row[name] = spread(known)
            if 0 < len(known) < len(members):
                row[name] += f" ({len(known)} of {len(members)} seeds)"
        rows.append(row)
    return rows


def not_finished(runs: list[Run]) -> list[str]:
    """Returns a line for each run that no mean contains."""
    return [
        f"not finished: {run.name}: {run.state} at step {run.step}{f', {run.error}' if run.error else ''}"
        for run in runs
        if run.state != FINISHED
    ]


def metric_names(runs: list[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.metrics))


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def write_csv(path: Path, runs: list[Run]) -> None:
    plain = ("name", "overrides", "seed", "state", "step", "max_steps", "error")
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*plain, *metric_names(runs), *COSTS])
        writer.writeheader()
        for run in runs:
            writer.writerow({key: getattr(run, key) for key in plain} | run.metrics | run.cost)


def markdown(rows: list[dict[str, str]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True) if rows else "No run is finished."


def print_rows(title: str, rows: list[dict[str, str]]) -> None:
    if not rows:
        return
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*row.values())
    width = sum(max(len(value) for value in (name, *(row[name] for row in rows))) + 3 for name in rows[0]) + 1
    Console(width=max(width, 80), markup=False).print(table)


if __name__ == "__main__":
    main()
