"""An ablation table of one's own runs in the paper's form: each row against its baseline, with its uncertainty.

S seeds, V videos.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nlvideo.evaluation.intervals import LEVEL
from nlvideo.experiments.paper import PAPER_ACCURACIES, TableRow


@dataclass
class TrainedRow:
    """A row trained with one seed: its accuracy and its cost."""

    seed: int
    metrics: dict[str, float]  # in percent, the main one first: top-1 and top-5, or mAP
    correct: np.ndarray | None  # (V,) 0. or 1. for each video; None without an evaluation, and for multi-label data
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
    return lines


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

    None if the two share no seed.
    """
    pairs = [(a, b) for a in own for b in base if a.seed == b.seed]
    if not pairs:
        return None
    per_video = [a.correct - b.correct for a, b in pairs if a.correct is not None and b.correct is not None]
    if len(per_video) == len(pairs):
        differences = np.stack(per_video)  # (S, V)
    else:
        differences = np.array([[a.main_metric - b.main_metric] for a, b in pairs]) / 100
    value, half, p = mean_and_interval(differences)
    return SeedDifference(100 * value, 100 * (value - half), 100 * (value + half), p, len(pairs))


def mean_and_interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Returns the mean of paired differences (S, V), half the width of its confidence interval, and a two-sided p.

    Both factors are random: another set of seeds or of videos would give another mean. The variance is that of a
    two-way layout with random factors, (MS_S + MS_V - MS_SV) / (S V), with Satterthwaite's degrees of freedom, as used
    for readers x cases studies in radiology (Hillis 2007). A factor whose mean square is below the residual's is
    dropped. With one seed this is the paired t-test over videos; with one value per seed, the paired t-test over seeds.
    A single value has no interval: half and p are NaN.
    """
    mean = float(differences.mean())
    if differences.size == 1:
        return mean, float("nan"), float("nan")
    total, degrees = _total_mean_square(differences)
    error = (total / differences.size) ** 0.5
    if error == 0:
        return mean, 0.0, 1.0 if mean == 0 else 0.0
    half = float(stats.t.ppf((1 + LEVEL) / 2, degrees) * error)
    return mean, half, float(2 * stats.t.sf(abs(mean) / error, degrees))


def _total_mean_square(differences: np.ndarray) -> tuple[float, float]:
    """Returns MS_S + MS_V - MS_SV of (S, V) and its Satterthwaite degrees of freedom, see mean_and_interval."""
    num_seeds, num_videos = differences.shape
    over_seeds = float(num_videos * differences.mean(1).var(ddof=1)) if num_seeds > 1 else 0.0
    over_videos = float(num_seeds * differences.mean(0).var(ddof=1)) if num_videos > 1 else 0.0
    parts = [(over_seeds, num_seeds - 1), (over_videos, num_videos - 1)]
    if num_seeds > 1 and num_videos > 1:
        centred = differences - differences.mean(0) - differences.mean(1, keepdims=True) + differences.mean()
        freedom = (num_seeds - 1) * (num_videos - 1)
        residual = float((centred**2).sum() / freedom)
        parts = [part for part in parts if part[0] > residual]
        total = sum(square for square, _ in parts) - residual * (len(parts) - 1)
        parts.append((residual, freedom))
    else:
        parts = [part for part in parts if part[1]]
        total = parts[0][0]
    if total == 0:
        return 0.0, float("nan")
    return total, total**2 / sum(square**2 / freedom for square, freedom in parts)


def table_cells(lines: Sequence[TableLine]) -> list[dict[str, str]]:
    """Returns {column: text} for each line; metrics in percent, costs relative to the baseline as in the paper."""
    names = list(dict.fromkeys(name for line in lines for run in line.runs for name in run.metrics))
    return [_cells(line, names) for line in lines]


def _cells(line: TableLine, metric_names: Sequence[str]) -> dict[str, str]:
    row = {"": line.row.label, "seeds": str(len(line.runs)) if line.runs else "-"}
    for name in metric_names:
        row[name] = mean_and_deviation([run.metrics[name] for run in line.runs if name in run.metrics])
    found = line.difference
    row["difference"] = f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})" if found else "-"
    row["p"] = "-" if found is None else "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"
    for i, name in enumerate(("params", "multiply-adds")):
        row[name] = f"{line.relative_cost[i]:.2f}x" if line.relative_cost else "-"
    row["paper"] = " / ".join(f"{value:g}" for value in line.paper) if line.paper else "-"
    row["paper's difference"] = "-" if line.paper_difference is None else f"{line.paper_difference:+.1f}"
    return row


def mean_and_deviation(values: Sequence[float]) -> str:
    """Returns "mean +- sample standard deviation", only the mean if all values are equal, "-" if there are none."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(set(values)) == 1 else f"{mean} +- {statistics.stdev(values):.2f}"
