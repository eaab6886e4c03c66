"""Compares runs of a cross-validation: every video is scored by the run that did not train on it.

    python tools/compare_folds.py outputs/fights/fold-*
    python tools/compare_folds.py outputs/fights/fold-* --csv fights.csv

FOLDER: the runs of one fold, each with an evaluation (nlvideo-evaluate). The same runs must be in every fold. Runs that
differ in the seed alone are one row. The evaluations of a seed are pooled over the folds, so each video counts once.
The row with the fewest multiply-adds is the baseline. Differences are paired by seed and video, with the 95 % interval,
p and detectable difference of tools/collect_results.py --table. That other seeds and other videos would give other
results is in the interval; that other folds would is not.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from nlvideo.evaluation.metrics import mean_class_accuracy, target_ranks
from nlvideo.evaluation.result_files import Evaluation, read_results
from nlvideo.experiments.paper import TableRow
from nlvideo.experiments.run_folders import MULTIPLY_ADDS, PARAMS, RunSummary, find_evaluations, read_runs
from nlvideo.experiments.run_tables import set_overrides
from nlvideo.experiments.tables import DETECTABLE, TrainedRow, table_cells, table_lines
from nlvideo.runtime.errors import UserError, reporting_errors
from nlvideo.runtime.files import make_folder, replacing
from nlvideo.training.run_status import FINISHED

PAPER_COLUMNS = ("paper", "paper's difference")
Key = tuple[str, int]  # what sets a run apart from the others of its fold, and its seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="one for each fold")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="the table")
    arguments = parser.parse_args()
    with reporting_errors():
        if arguments.csv:
            make_folder(arguments.csv.parent, f"--csv {arguments.csv}")
        rows = pooled_rows(arguments.folders)
        (first, *_), *_ = rows.values()
        assert first.correct is not None
        cells = [
            {name: cell for name, cell in row.items() if name not in PAPER_COLUMNS}
            for row in table_cells(table_lines([TableRow(name, name, i == 0) for i, name in enumerate(rows)], rows))
        ]
        table = Table(*cells[0], title=f"{len(arguments.folders)} folds, {len(first.correct):,} videos")
        for row in cells:
            table.add_row(*row.values())
        Console(width=max(150, Console().width)).print(table)
        print(f"detectable: {DETECTABLE}")
        if arguments.csv:
            with replacing(arguments.csv) as file, open(file, "w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, list(cells[0]))
                writer.writeheader()
                writer.writerows(cells)


def pooled_rows(folders: Sequence[Path]) -> dict[str, list[TrainedRow]]:
    """Returns {what sets runs apart: a row for each seed}, that with the fewest multiply-adds first.

    Raises:
        UserError: a run is lacking in one of the folds or has no evaluation, or the folds have videos in common.
    """
    folds = [_runs_of_fold(folder) for folder in folders]
    for folder, fold in zip(folders, folds, strict=True):
        if lacking := sorted({key for other in folds for key in other} - set(fold)):
            overrides, seed = lacking[0]
            raise UserError(f"{folder} has no finished run with {overrides}, seed {seed}, which another fold has.")
    rows: dict[str, list[TrainedRow]] = {}
    first_ids: np.ndarray | None = None
    for overrides, seed in sorted(folds[0]):
        runs = [fold[overrides, seed] for fold in folds]
        ids, row = _pooled(seed, runs)
        first_ids = ids if first_ids is None else first_ids
        if not np.array_equal(ids, first_ids):
            raise UserError(f"{runs[0].name} and its peers were evaluated on other videos than the rest.")
        rows.setdefault(overrides, []).append(row)
    return dict(sorted(rows.items(), key=lambda item: item[1][0].multiply_adds))


def _runs_of_fold(folder: Path) -> dict[Key, RunSummary]:
    runs = [run for run in read_runs(folder) if run.state == FINISHED]
    set_overrides(runs)
    found: dict[Key, RunSummary] = {}
    for run in runs:
        assert run.seed is not None  # as every finished run has
        if other := found.get((run.overrides, run.seed)):
            raise UserError(f"{other.name} and {run.name} are the same run with the same seed {run.seed}.")
        found[run.overrides, run.seed] = run
    return found


def _pooled(seed: int, runs: Sequence[RunSummary]) -> tuple[np.ndarray, TrainedRow]:
    """Returns the sorted names (V,) of the videos of all folds, and the row of one seed."""
    evaluations = [_evaluation(run) for run in runs]
    ids = np.concatenate([one.ids for one in evaluations])
    names, counts = np.unique(ids, return_counts=True)
    if len(names) < len(ids):
        raise UserError(f"{runs[0].name} and its peers have videos in common, such as {names[counts > 1][0]}.")
    ranks = np.concatenate([target_ranks(one.scores, one.targets) for one in evaluations])
    targets = np.concatenate([one.targets for one in evaluations])
    right = (ranks < 1).astype(float)[np.argsort(ids)]
    metrics = {"top-1": 100 * right.mean(), "mean class": 100 * mean_class_accuracy(ranks, targets)}
    params, multiply_adds = runs[0].cost[PARAMS], runs[0].cost[MULTIPLY_ADDS]
    assert params is not None and multiply_adds is not None  # as in every finished run
    return names, TrainedRow(seed, metrics, right, params * 1e6, multiply_adds * 1e9)


def _evaluation(run: RunSummary) -> Evaluation:
    found = find_evaluations(run.path)
    if len(found) != 1:
        raise UserError(f"{run.name} has {len(found)} evaluations; it must have one.")
    evaluation = read_results(found[0].folder)
    if evaluation.multi_label:
        raise UserError(f"{run.name} is multi-label; this tool is for videos with one class.")
    return evaluation


if __name__ == "__main__":
    main()
