"""Runs as the rows of one of the papers' tables: which evaluation counts, and whether the runs may be compared."""

import json
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nlvideo.evaluation.metrics import target_ranks
from nlvideo.evaluation.result_files import read_results
from nlvideo.experiments.paper import TABLES
from nlvideo.experiments.run_folders import MULTIPLY_ADDS, PARAMS, FoundEvaluation, RunSummary, find_evaluations
from nlvideo.experiments.run_tables import IGNORED_KEYS, compared
from nlvideo.experiments.tables import TableLine, TrainedRow, table_lines
from nlvideo.runtime.errors import UserError
from nlvideo.training.metrics_file import VALIDATION_METRICS
from nlvideo.training.run_status import FINISHED

# Keys in which the rows of one table may differ besides the block.
ROW_KEYS = {"model.layout", "model.depth", "model.stem", "model.activation_checkpointing"}
START = "model.pretrained"
STARTING_FROM_OTHER_ROWS = {"2g"}  # each from its own row of 2f
TABLE_METRICS = ("top1", "top5", "map")  # of the papers' tables


class FilledTable(NamedTuple):
    """One of the papers' tables with the results of one's own runs."""

    title: str
    lines: list[TableLine]
    metric: str  # the main one
    views: str  # that the metrics come from
    runs: list[RunSummary]  # all that are rows of the table
    folders: dict[Path, Path]  # {a run's: its evaluation's}; empty if validations are shown


def fill_table(name: str, runs: Sequence[RunSummary]) -> FilledTable:
    """Returns a table of the papers with those of the runs that are its rows.

    Raises:
        UserError: none of them is finished, or they may not be compared.
    """
    title, rows = TABLES[name]
    names = {row.experiment for row in rows}
    asked = [run for run in runs if run.settings.get("name") in names]
    finished = [run for run in asked if run.state == FINISHED]
    if not finished:
        raise UserError(f"No finished run of table {name}, whose rows are {', '.join(sorted(names))}.")
    free = ROW_KEYS | ({START} if name in STARTING_FROM_OTHER_ROWS else set())
    _check_same_recipe(finished, free)
    _check_seeds(finished)
    views, folders = same_evaluations(finished)
    trained = _read_trained(finished, folders)
    metric = next(name for rows_runs in trained.values() for run in rows_runs for name in run.metrics)
    return FilledTable(f"{name}: {title}", table_lines(rows, trained), metric, views, asked, folders)


def _check_same_recipe(runs: Sequence[RunSummary], free: Container[str]) -> None:
    """Raises UserError if runs of one table differ in more than their network and `free` keys, or those of a row in it.

    Networks of another depth start from other weights.
    """
    of_depth: dict[int, RunSummary] = {}
    of_row: dict[str, RunSummary] = {}
    for run in runs:
        peer = of_depth.setdefault(run.settings["model.depth"], run)
        same_row = of_row.setdefault(run.settings["name"], run)
        for key in sorted({*runs[0].settings, *run.settings, *same_row.settings} - IGNORED_KEYS - {"seed"}):
            if key in ROW_KEYS or key.startswith("block."):
                first = same_row
            elif key not in free:
                first = peer if key == START else runs[0]
            else:
                continue
            a, b = compared(first.settings, key), compared(run.settings, key)
            if a != b:
                raise UserError(
                    f"{first.name} and {run.name} are not rows of one table: {key} is {a} and {b}. "
                    "Give the folder of a single sweep."
                )


def _check_seeds(runs: Sequence[RunSummary]) -> None:
    """Raises UserError if a row was trained twice with one seed."""
    seeds = Counter((run.settings["name"], run.seed) for run in runs)
    (name, seed), count = seeds.most_common(1)[0]
    if count > 1:
        raise UserError(f"There are {count} runs of {name} with seed {seed}; collect one of them.")


def same_evaluations(runs: Sequence[RunSummary]) -> tuple[str, dict[Path, Path]]:
    """Returns in words which evaluation all runs have, and {a run's folder: that of its latest such evaluation}.

    Of several, the one with the most views; then that of the runs' last step, not of an earlier one.
    """
    found = {run.path: {_kind(one, run): one for one in _by_step(run)} for run in runs}
    common = set.intersection(*(set(of_run) for of_run in found.values()))
    if not common:
        some = any(found.values())
        return "last validation, one centre clip" + ", as no evaluation is of all runs" * some, {}
    best = max(common, key=lambda kind: (kind.clips * kind.crops, kind.clips, kind.crops, kind.last, kind.rest))
    words = f"{best.clips} clip{'s' * (best.clips > 1)} x {best.crops} crop{'s' * (best.crops > 1)}"
    return words + ", of a step before the last" * (not best.last), {
        path: of_run[best].folder for path, of_run in found.items()
    }


class _Kind(NamedTuple):
    """What two evaluations share whose results may be compared."""

    clips: int
    crops: int
    last: bool  # whether it is of the run's last step; one of the best step is of another selection
    rest: str  # what it says of the videos, their clips and the views


def _kind(found: FoundEvaluation, run: RunSummary) -> _Kind:
    said = {key: found.result.get(key) for key in ("views", "list_sha256", "num_frames", "frame_stride", "batch_norm")}
    return _Kind(*found.views, found.step == run.step, json.dumps(said, sort_keys=True))


def _by_step(run: RunSummary) -> list[FoundEvaluation]:
    return sorted(find_evaluations(run.path), key=lambda one: one.step)


def _read_trained(runs: Sequence[RunSummary], folders: Mapping[Path, Path]) -> dict[str, list[TrainedRow]]:
    """Returns {experiment: its runs}, with the results of these evaluations or of the last validation.

    Raises:
        UserError: the runs were evaluated on different videos.
    """
    trained = defaultdict(list)
    first_ids: np.ndarray | None = None
    for run in runs:
        if run.path in folders:
            row, ids = _evaluated_row(run, folders[run.path])
            first_ids = ids if first_ids is None else first_ids
            if not np.array_equal(ids, first_ids):
                raise UserError(f"{runs[0].name} and {run.name} were evaluated on different videos.")
        else:
            row = _validated_row(run)
        trained[run.settings["name"]].append(row)
    return trained


def _evaluated_row(run: RunSummary, folder: Path) -> tuple[TrainedRow, np.ndarray]:
    """Returns the run with the results of an evaluation, and the (V,) names of its videos."""
    evaluation = read_results(folder)
    keys = [key for key in TABLE_METRICS if (key == "map") == evaluation.multi_label]
    metrics = {VALIDATION_METRICS[key]: 100 * evaluation.result[key] for key in keys}
    correct = None
    if not evaluation.multi_label:
        correct = (target_ranks(evaluation.scores, evaluation.targets) < 1).astype(float)
    return trained_row(run, metrics, correct), evaluation.ids


def _validated_row(run: RunSummary) -> TrainedRow:
    """Returns the run with the results of its last validation, the same metrics as those of an evaluation.

    Raises:
        UserError: it has none.
    """
    found = {VALIDATION_METRICS[key]: run.metrics.get(f"last {VALIDATION_METRICS[key]}") for key in TABLE_METRICS}
    metrics = {name: value for name, value in found.items() if value is not None}
    if not metrics:
        raise UserError(f"{run.name} was never validated, nor evaluated as the others: run nlvideo-evaluate.")
    return trained_row(run, metrics, None)


def trained_row(run: RunSummary, metrics: dict[str, float], correct: np.ndarray | None) -> TrainedRow:
    """Returns a finished run as a row; metrics in percent, `correct` as in TrainedRow."""
    params, multiply_adds = run.cost[PARAMS], run.cost[MULTIPLY_ADDS]
    assert run.seed is not None and params is not None and multiply_adds is not None  # as in every finished run
    return TrainedRow(run.seed, metrics, correct, params * 1e6, multiply_adds * 1e9)
