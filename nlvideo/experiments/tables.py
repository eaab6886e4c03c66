"""An ablation table of one's own runs, in the paper's form: each row against its baseline, with its uncertainty.

S seeds, V videos.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nlvideo.evaluation.metrics import LEVEL
from nlvideo.experiments.paper import FIGURES, Row


@dataclass
class Trained:
    """A run of a row: what it has right, and what it costs."""

    seed: int
    metrics: dict[str, float]  # in percent: top-1 and top-5, or mAP
    right: np.ndarray | None  # (V,) 0 or 1 for each video of the list, None where no evaluation says it
    params: float
    multiply_adds: float


@dataclass
class Difference:
    """A row's main metric minus its baseline's, in percent."""

    value: float
    low: float
    high: float
    p: float  # two-sided
    num_seeds: int  # that both have


@dataclass
class Line:
    """A row of the table with what was found for it; `runs` is empty where none was trained."""

    row: Row
    runs: list[Trained]
    difference: Difference | None  # None for a baseline, and where no seed is shared
    relative: tuple[float, float] | None  # parameters and multiply-adds over the baseline's
    paper: tuple[float, float] | None  # top-1 and top-5
    paper_difference: float | None


def lines_of(rows: Sequence[Row], runs: dict[str, list[Trained]]) -> list[Line]:
    """Returns the lines of a table; `runs` are the trained ones of each experiment."""
    lines, baseline = [], rows[0]
    for row in rows:
        baseline = row if row.baseline else baseline
        own, base = runs.get(row.experiment, []), runs.get(baseline.experiment, [])
        figures, base_figures = FIGURES.get(row.experiment), FIGURES.get(baseline.experiment)
        known = figures and base_figures and not row.baseline
        relative = (
            (own[0].params / base[0].params, own[0].multiply_adds / base[0].multiply_adds) if own and base else None
        )
        lines.append(
            Line(
                row,
                own,
                None if row.baseline else difference(own, base),
                relative,
                figures,
                figures[0] - base_figures[0] if known else None,
            )
        )
    return lines


def difference(own: Sequence[Trained], base: Sequence[Trained]) -> Difference | None:
    """Returns the mean difference over the seeds that both have, of each video where all runs say it."""
    pairs = [(a, b) for a in own for b in base if a.seed == b.seed]
    if not pairs:
        return None
    if all(run.right is not None for pair in pairs for run in pair):
        differences = np.stack([a.right - b.right for a, b in pairs])  # (S, V)
    else:
        differences = np.array([[first(a.metrics) - first(b.metrics)] for a, b in pairs]) / 100
    value, half, p = mean_and_spread(differences)
    return Difference(100 * value, 100 * (value - half), 100 * (value + half), p, len(pairs))


def first(metrics: dict[str, float]) -> float:
    return next(iter(metrics.values()))


def mean_and_spread(differences: np.ndarray) -> tuple[float, float, float]:
    """Returns the mean of paired differences (S, V), half its interval's length, and the two-sided p.

    Seeds and videos both are samples of what could have been drawn: the mean would come out differently with other
    seeds and with other videos. The variance is that of a two-way layout with both factors random,
    (MS_S + MS_V - MS_SV) / (S V), with Satterthwaite's degrees of freedom, as radiology compares readers over cases
    (Hillis 2007); a factor that adds nothing beyond the residual is left out. With one seed it is the paired t-test
    over videos, with one value a seed that over seeds; with one of both nothing can be said.
    """
    num_seeds, num_videos = differences.shape
    mean = float(differences.mean())
    if differences.size == 1:
        return mean, float("nan"), float("nan")
    over_seeds = num_videos * differences.mean(1).var(ddof=1) if num_seeds > 1 else 0.0
    over_videos = num_seeds * differences.mean(0).var(ddof=1) if num_videos > 1 else 0.0
    parts = [(over_seeds, num_seeds - 1), (over_videos, num_videos - 1)]
    if num_seeds > 1 and num_videos > 1:
        centred = differences - differences.mean(0) - differences.mean(1, keepdims=True) + mean
        freedom = (num_seeds - 1) * (num_videos - 1)
        residual = float((centred**2).sum() / freedom)
        parts = [part for part in parts if part[0] > residual]
        total = sum(square for square, _ in parts) - residual * (len(parts) - 1)
        parts.append((residual, freedom))
    else:
        parts = [part for part in parts if part[1]]
        total = parts[0][0]
    error = (total / differences.size) ** 0.5
    if error == 0:
        return mean, 0.0, 1.0 if mean == 0 else 0.0
    degrees = total**2 / sum(square**2 / freedom for square, freedom in parts)
    half = float(stats.t.ppf((1 + LEVEL) / 2, degrees) * error)
    return mean, half, float(2 * stats.t.sf(abs(mean) / error, degrees))
