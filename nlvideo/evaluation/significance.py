"""What differences of runs can show: intervals over seeds and videos, many comparisons at once, and power.

S seeds, V videos.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats

from nlvideo.evaluation.intervals import LEVEL, SAME, accuracy_difference_interval, wilson

POWER = 0.8  # share of the repetitions in which a true difference of the detectable size is found
CHI_POINTS = 4000  # at which the error's own distribution is integrated


def holm(p: Sequence[float]) -> list[float]:
    """Returns Holm's adjusted p (Holm 1979, Scandinavian Journal of Statistics 6); NaN stays, and counts for nothing.

    Below 0.05, a row stands out with at most a 5 % chance that any row of the table does so without a difference.
    """
    known = [i for i, value in enumerate(p) if not math.isnan(value)]
    adjusted, largest = list(p), 0.0
    for place, i in enumerate(sorted(known, key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(known) - place) * p[i]))
        adjusted[i] = largest
    return adjusted


def mcnemar_p(discordant: tuple[int, int]) -> float:
    """Returns the two-sided p of McNemar's exact test on the discordant counts; 1 if both are zero."""
    return float(stats.binomtest(discordant[0], sum(discordant)).pvalue) if sum(discordant) else 1.0


def interval_and_p(differences: np.ndarray) -> tuple[float, float, float]:
    """Returns the interval's ends and a two-sided p of the mean of paired differences of accuracies (S, V) or (S, 1).

    With one seed and several videos that is Tango's interval and McNemar's exact p, as of two evaluations that
    tools/compare_runs.py compares; otherwise, and where groups of videos have one value, those of mean_and_interval,
    within -1 and 1.
    """
    if len(differences) == 1 < differences.size and np.isin(differences, (-1, 0, 1)).all():
        (outcomes,) = differences
        p = mcnemar_p((int((outcomes < 0).sum()), int((outcomes > 0).sum())))
        return *accuracy_difference_interval(outcomes).ends, p
    mean, half, p = mean_and_interval(differences)
    low, high = np.clip([mean - half, mean + half], -1, 1).tolist()
    return low, high, p


def mean_and_interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Returns the mean of paired differences (S, V), half the width of its confidence interval, and a two-sided p.

    Both factors are random: another set of seeds or of videos would give another mean. The variance is that of a
    two-way layout with random factors, (MS_S + MS_V - MS_SV) / (S V), with Satterthwaite's degrees of freedom, as used
    for readers x cases studies in radiology (Hillis 2007). A factor whose mean square is below the residual's is
    dropped. With one seed this is the paired t-test over videos; with one value per seed, the paired t-test over seeds.
    A single value has no interval: half and p are NaN. Nor have equal ones of several seeds. Equal ones of several
    videos, which are all 1, 0 or -1, have what Wilson's intervals of the videos gained and lost leave open, and p is
    McNemar's. Differences that only rounding sets apart are equal.
    """
    mean = float(differences.mean())
    if differences.size == 1:
        return mean, float("nan"), float("nan")
    error, degrees = _error(differences)
    if error < SAME:
        num_videos = differences.shape[1]
        if num_videos == 1:
            return mean, float("nan"), float("nan")
        half = (1 + abs(mean)) * wilson(0, num_videos).high
        return mean, half, mcnemar_p((0, round(abs(mean) * num_videos)))
    half = float(stats.t.ppf((1 + LEVEL) / 2, degrees) * error)
    return mean, half, float(2 * stats.t.sf(abs(mean) / error, degrees))


def detectable_difference(differences: np.ndarray) -> float:
    """Returns the smallest true mean that the test of mean_and_interval finds with POWER, given this spread of (S, V).

    NaN where nothing varies or there is a single value: the spread is then unknown, not zero.
    """
    if differences.size == 1:
        return float("nan")
    error, degrees = _error(differences)
    return error * detectable_errors(degrees) if error >= SAME else float("nan")


def detectable_errors(degrees: float) -> float:
    """Returns how many standard errors a mean must be from 0 for the two-sided t-test to find it with POWER.

    The power is that of the noncentral t distribution: given the estimated error's ratio to the true one, the square
    root of chi-square over its degrees, it is normal, and this is averaged over the ratio (scipy.stats.nct fails for
    few degrees). It is 2.80 for many degrees, 5.65 for two.
    """
    critical = stats.t.ppf((1 + LEVEL) / 2, degrees)
    at = (np.arange(CHI_POINTS) + 0.5) / CHI_POINTS
    bound = critical * np.sqrt(stats.chi2.ppf(at, degrees) / degrees)

    def lacking(errors: float) -> float:
        return float(np.mean(stats.norm.cdf(errors - bound) + stats.norm.cdf(-errors - bound))) - POWER

    return float(optimize.brentq(lacking, 0, 10 + 10 * critical))


def _error(differences: np.ndarray) -> tuple[float, float]:
    """Returns the standard error of the mean of (S, V), more than one value, and its degrees of freedom."""
    total, degrees = _total_mean_square(differences)
    return (total / differences.size) ** 0.5, degrees


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
