"""Compares runs of a cross-validation: every video is scored by runs that did not train on it.

    python tools/compare_folds.py outputs/fights/fold-*
    python tools/compare_folds.py outputs/fights/fold-* --groups recordings.csv --csv fights.csv

FOLDER: the runs of one fold, each with an evaluation (nlvideo-evaluate). The same runs must be in every fold. Runs that
differ in the seed alone are one row. The evaluations of a seed are pooled over the folds, so each video counts once.
The row with the fewest multiply-adds is the baseline. Differences are paired by seed and video, with the 95 % interval,
p and detectable difference of tools/collect_results.py --table. Other seeds and other videos would give other results,
and the interval holds for these; it does not for another division into folds.

--groups FILE has a line `video group` for each video, such as the recording it was cut from. The videos of a recording
are right or wrong together, so the interval is then for other recordings: groups, not videos, are the sample. Without
it, videos of one recording count as independent, which makes intervals too narrow.
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
from nlvideo.experiments.run_folders import RunSummary, read_runs
from nlvideo.experiments.run_tables import IGNORED_KEYS, set_overrides
from nlvideo.experiments.tables import DETECTABLE, TrainedRow, table_cells, table_lines
from nlvideo.experiments.trained_rows import compared, same_evaluations, trained_row
from nlvideo.runtime.errors import UserError, UserFileNotFoundError, reporting_errors
from nlvideo.runtime.files import make_place, replacing
from nlvideo.training.run_status import FINISHED

PAPER_COLUMNS = ("paper", "paper's difference")
KEYS_OF_FOLD = {"data.train", "data.val", "data.root", "data.classes"}
Key = tuple[str, int]  # what sets a run apart from the others of its fold, and its seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="one for each fold")
    parser.add_argument("--groups", type=Path, metavar="FILE", help="which videos belong together")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="the table")
    arguments = parser.parse_args()
    with reporting_errors():
        if arguments.csv:
            make_place(arguments.csv, f"--csv {arguments.csv}")
        groups = read_groups(arguments.groups) if arguments.groups else None
        rows = pooled_rows(arguments.folders, groups)
        lines = table_lines([TableRow(name, name, i == 0) for i, name in enumerate(rows)], rows)
        cells = [{name: cell for name, cell in row.items() if name not in PAPER_COLUMNS} for row in table_cells(lines)]
        show(cells, arguments.folders, groups)
        if arguments.csv:
            with replacing(arguments.csv) as file, open(file, "w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, list(cells[0]))
                writer.writeheader()
                writer.writerows(cells)


def show(cells: Sequence[dict[str, str]], folders: Sequence[Path], groups: dict[str, str] | None) -> None:
    units = "videos, each of which counts as independent" if groups is None else f"{len({*groups.values()})} groups"
    table = Table(*cells[0], title=f"{len(folders)} folds; intervals are for other {units}")
    for row in cells:
        table.add_row(*row.values())
    Console(width=max(150, Console().width)).print(table)
    print(f"detectable: {DETECTABLE}")


def read_groups(path: Path) -> dict[str, str]:
    """Returns {video: group} of a file with a line `video group` for each.

    Raises:
        UserError: there is no such file, or a line has no group.
    """
    if not path.is_file():
        raise UserFileNotFoundError(f"--groups {path}: the file does not exist.")
    rows = [line.rsplit(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if lacking := [row for row in rows if len(row) < 2]:
        raise UserError(f"--groups {path}: {lacking[0][0]!r} is no line of `video group`.")
    return dict(rows)  # type: ignore[arg-type]


def pooled_rows(folders: Sequence[Path], groups: dict[str, str] | None) -> dict[str, list[TrainedRow]]:
    """Returns {what sets runs apart: a row for each seed}, that with the fewest multiply-adds first.

    Args:
        groups: {video: its group}, or None: see TrainedRow.correct.

    Raises:
        UserError: a run is lacking in one of the folds or has no evaluation, folds have videos in common or other
            settings, or a video has no group.
    """
    folds = [_runs_of_fold(folder) for folder in folders]
    for folder, fold in zip(folders, folds, strict=True):
        if lacking := sorted({key for other in folds for key in other} - set(fold)):
            overrides, seed = lacking[0]
            raise UserError(f"{folder} has no finished run with {overrides}, seed {seed}, which another fold has.")
    evaluations: dict[Path, Path] = {}
    found = {folder: same_evaluations([*fold.values()]) for folder, fold in zip(folders, folds, strict=True)}
    for folder, (views, of_runs) in found.items():
        if not of_runs:
            raise UserError(f"The runs of {folder} have no evaluation in common: run nlvideo-evaluate for all of them.")
        if views != found[folders[0]][0]:
            raise UserError(f"{folder} was evaluated with {views}, {folders[0]} with {found[folders[0]][0]}.")
        evaluations |= of_runs
    rows: dict[str, list[TrainedRow]] = {}
    first: np.ndarray | None = None
    for overrides, seed in sorted(folds[0]):
        runs = [fold[overrides, seed] for fold in folds]
        _check_same_settings(runs)
        ids, row = _pooled(runs, [read_results(evaluations[run.path]) for run in runs], groups)
        first = ids if first is None else first
        if not np.array_equal(ids, first):
            raise UserError(f"{runs[0].name} and its peers were evaluated on other videos than the rest.")
        rows.setdefault(overrides, []).append(row)
    return dict(sorted(rows.items(), key=lambda item: item[1][0].multiply_adds))


def _runs_of_fold(folder: Path) -> dict[Key, RunSummary]:
    runs = [run for run in read_runs(folder) if run.state == FINISHED]
    if not runs:
        raise UserError(f"{folder} has no finished run.")
    set_overrides(runs)
    found: dict[Key, RunSummary] = {}
    for run in runs:
        assert run.seed is not None  # as every finished run has
        if other := found.get((run.overrides, run.seed)):
            raise UserError(f"{other.name} and {run.name} are the same run with the same seed {run.seed}.")
        found[run.overrides, run.seed] = run
    return found


def _check_same_settings(runs: Sequence[RunSummary]) -> None:
    """Raises UserError if the runs of one row and seed differ in more than their lists."""
    for run in runs[1:]:
        for key in sorted({*runs[0].settings, *run.settings} - IGNORED_KEYS - KEYS_OF_FOLD):
            a, b = compared(runs[0].settings, key), compared(run.settings, key)
            if a != b:
                raise UserError(f"{runs[0].name} and {run.name} are not folds of one run: {key} is {a} and {b}.")


def _pooled(
    runs: Sequence[RunSummary], evaluations: Sequence[Evaluation], groups: dict[str, str] | None
) -> tuple[np.ndarray, TrainedRow]:
    """Returns the sorted names (V,) of the videos of all folds, and the row of one seed."""
    for run, one in zip(runs, evaluations, strict=True):
        if one.multi_label:
            raise UserError(f"{run.name} is multi-label; this tool is for videos with one class.")
        if not np.array_equal(one.classes, evaluations[0].classes):
            raise UserError(f"{run.name} and {runs[0].name} have other classes.")
    ids = np.concatenate([one.ids for one in evaluations])
    names, counts = np.unique(ids, return_counts=True)
    if len(names) < len(ids):
        raise UserError(f"{runs[0].name} and its peers have videos in common, such as {names[counts > 1][0]}.")
    ranks = np.concatenate([target_ranks(one.scores, one.targets) for one in evaluations])
    targets = np.concatenate([one.targets for one in evaluations])
    right = (ranks < 1).astype(float)[np.argsort(ids)]
    metrics = {"top-1": 100 * float(right.mean()), "mean class": 100 * mean_class_accuracy(ranks, targets)}
    return names, trained_row(runs[0], metrics, right if groups is None else _of_groups(right, names, groups))


def _of_groups(right: np.ndarray, names: np.ndarray, groups: dict[str, str]) -> np.ndarray:
    """Returns (G,) values of groups whose mean is that of the videos, and whose spread is that of the ratio of sums.

    Groups have other numbers of videos. The value of one is the mean, plus G / V times what its videos add up to beyond
    their number times the mean, the linearised ratio estimator (Cochran, Sampling Techniques, Section 2.11).

    Args:
        right: (V,) 0. or 1.
        names: (V,) of the videos.
    """
    if lacking := [name for name in names.tolist() if name not in groups]:
        raise UserError(f"--groups has no line for {lacking[0]} and {len(lacking) - 1} other videos.")
    found, of_video = np.unique([groups[name] for name in names.tolist()], return_inverse=True)
    if len(found) == len(names):
        return right
    beyond = np.bincount(of_video, right - right.mean())
    return right.mean() + len(found) / len(names) * beyond


if __name__ == "__main__":
    main()
