"""An ablation table of one's own runs in the paper's form: each row against its baseline, with its uncertainty.

S seeds, V videos.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nlvideo.evaluation.significance import detectable_difference, holm, interval_and_p
from nlvideo.experiments.paper import PAPER_ACCURACIES, TableRow

DIFFERENCE_COLUMNS = ("difference", "p", "p (Holm)", "detectable")
DETECTABLE = "smallest true difference found with 80 % power at a two-sided 5 %, given the spread seen"


@dataclass
class TrainedRow:
    """A row trained with one seed: its accuracy and its cost."""

    seed: int
    metrics: dict[str, float]  # in percent, the main one first: top-1 and top-5, or mAP
    # (V,) 0. or 1. for each video, or (G,) values of groups of videos with the same mean; None without an evaluation,
    # and for multi-label data
    correct: np.ndarray | None
    params: float
    multiply_adds: float  # of one clip

    @property
    def main_metric(self) -> float:
        return next(iter(self.metrics.values()))


@dataclass
class SeedDifference:
    """The main metric of a row minus that of its baseline, in percentage points, over the seeds that both have."""

    value: float
    low: float
    high: float
    p: float  # two-sided
    num_seeds: int
    detectable: float  # see detectable_difference
    adjusted_p: float  # Holm's, for all rows of the table


@dataclass
class TableLine:
    """A row of the table with its results; `runs` is empty if it has not been trained."""

    row: TableRow
    runs: list[TrainedRow]
    difference: SeedDifference | None  # None for a baseline, or if the two share no seed
    relative_cost: tuple[float, float] | None  # parameters and multiply-adds, divided by the baseline's
    paper: tuple[float, float] | None  # top-1 and top-5
    paper_difference: float | None


def table_lines(rows: Sequence[TableRow], runs: Mapping[str, list[TrainedRow]]) -> list[TableLine]:
    """Returns the lines of a table.

    Args:
        rows: of the table, a baseline first.
        runs: {experiment: its runs}.
    """
    lines, baseline = [], rows[0]
    for row in rows:
        baseline = row if row.baseline else baseline
        lines.append(_line(row, baseline, runs))
    return _with_adjusted_p(lines)


def _with_adjusted_p(lines: Sequence[TableLine]) -> list[TableLine]:
    """Returns the lines with Holm's p over all rows that are compared with a baseline."""
    adjusted = iter(holm([line.difference.p for line in lines if line.difference]))
    return [
        replace(line, difference=replace(line.difference, adjusted_p=next(adjusted))) if line.difference else line
        for line in lines
    ]


def _line(row: TableRow, baseline: TableRow, runs: Mapping[str, list[TrainedRow]]) -> TableLine:
    own, base = runs.get(row.experiment, []), runs.get(baseline.experiment, [])
    paper, paper_base = PAPER_ACCURACIES.get(row.experiment), PAPER_ACCURACIES.get(baseline.experiment)
    relative_cost = None
    if own and base:
        relative_cost = (own[0].params / base[0].params, own[0].multiply_adds / base[0].multiply_adds)
    return TableLine(
        row=row,
        runs=own,
        difference=None if row.baseline else seed_difference(own, base),
        relative_cost=relative_cost,
        paper=paper,
        paper_difference=paper[0] - paper_base[0] if paper and paper_base and not row.baseline else None,
    )


def seed_difference(own: Sequence[TrainedRow], base: Sequence[TrainedRow]) -> SeedDifference | None:
    """Returns the mean difference, paired by seed, and by video if every run has per-video results.

    None if the two share no seed. Its adjusted p is that of a table with this row alone.
    """
    pairs = [(a, b) for a in own for b in base if a.seed == b.seed]
    if not pairs:
        return None
    per_video = [a.correct - b.correct for a, b in pairs if a.correct is not None and b.correct is not None]
    if len(per_video) == len(pairs):
        differences = np.stack(per_video)  # (S, V)
    else:
        differences = np.array([[a.main_metric - b.main_metric] for a, b in pairs]) / 100
    low, high, p = interval_and_p(differences)
    value, detectable = differences.mean(), detectable_difference(differences)
    return SeedDifference(100 * value, 100 * low, 100 * high, p, len(pairs), 100 * detectable, p)


def table_cells(lines: Sequence[TableLine]) -> list[dict[str, str]]:
    """Returns {column: text} for each line; metrics in percent, costs relative to the baseline as in the paper."""
    names = table_metrics(lines)
    return [line_cells(line, names) for line in lines]


def table_metrics(lines: Sequence[TableLine]) -> list[str]:
    return list(dict.fromkeys(name for line in lines for run in line.runs for name in run.metrics))


def line_cells(line: TableLine, names: Sequence[str]) -> dict[str, str]:
    """Returns {column: text} of a line of a table with these metrics."""
    row = {"": line.row.label, "seeds": str(len(line.runs)) if line.runs else "-"}
    for name in names:
        row[name] = mean_and_deviation([run.metrics[name] for run in line.runs if name in run.metrics])
    found = line.difference
    row |= _difference_cells(found, len(line.runs)) if found else dict.fromkeys(DIFFERENCE_COLUMNS, "-")
    for i, name in enumerate(("params", "multiply-adds")):
        row[name] = f"{line.relative_cost[i]:.2f}x" if line.relative_cost else "-"
    row["paper"] = " / ".join(map(_papers, line.paper)) if line.paper else "-"
    row["paper's difference"] = "-" if line.paper_difference is None else f"{line.paper_difference:+.1f}"
    return row


def _papers(value: float) -> str:
    """Returns an accuracy with the one or two decimals that the paper gives: "91.0", "74.94"."""
    return f"{value:.2f}".removesuffix("0")


def _difference_cells(found: SeedDifference, num_runs: int) -> dict[str, str]:
    """Returns the cells of a row of so many runs.

    With the interval stands what it is of, where that is not the row's seeds: fewer, which the baseline shares, or one,
    which says nothing of another network.
    """
    between = "" if math.isnan(found.low) else f"{found.low:+.2f} to {found.high:+.2f}"
    seeds = f"{found.num_seeds} seed{'s' * (found.num_seeds > 1)}" if found.num_seeds < num_runs else ""
    scope = "of this seed" if between and found.num_seeds == 1 else ""
    said = "; ".join(filter(None, (between, seeds or scope)))
    cells = [
        f"{found.value:+.2f}" + f" ({said})" * bool(said),
        p_cell(found.p),
        p_cell(found.adjusted_p),
        points_cell(found.detectable),
    ]
    return dict(zip(DIFFERENCE_COLUMNS, cells, strict=True))


def num_compared(lines: Sequence[TableLine]) -> int:
    """Returns for how many rows Holm's p is adjusted: those with a p."""
    return sum(line.difference is not None and not math.isnan(line.difference.p) for line in lines)


def p_cell(p: float) -> str:
    """Returns "0.043", "< 0.001", or "-" for NaN."""
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def points_cell(points: float) -> str:
    """Returns a detectable difference, given in percentage points: "3.10", "> 100", or "-" for NaN."""
    return "-" if math.isnan(points) else "> 100" if points > 100 else f"{points:.2f}"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Returns "mean +- sample standard deviation", only the mean if all values are equal, "-" if there are none."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(set(values)) == 1 else f"{mean} +- {statistics.stdev(values):.2f}"
