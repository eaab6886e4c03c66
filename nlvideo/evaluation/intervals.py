"""Intervals of metrics over videos, each with its kind. V videos, K classes, R resamples."""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from nlvideo.evaluation import metrics

RESAMPLES = 2000
LEVEL = 0.95  # confidence level of the intervals
MAX_WEIGHTS = 4_000_000  # resampling weights in memory at a time
SAME = 1e-12  # resamples that differ by less agree: the rest is rounding

WILSON, BOOTSTRAP, AGREEING = "Wilson", "bootstrap", "Wilson; all resamples agree"
MEANINGS = {
    WILSON: "score interval of a proportion of videos",
    BOOTSTRAP: f"percentiles over {RESAMPLES} resamples of the videos",
    AGREEING: "the same score interval on the pooled videos, as the bootstrap has no width",
}


class Interval(NamedTuple):
    """A confidence interval at LEVEL, as fractions."""

    low: float
    high: float
    kind: str  # one of MEANINGS

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high


def describe(kinds: Collection[str]) -> str:
    """Returns "95 %; Wilson: what that is; ..." for these kinds."""
    return "; ".join([f"{100 * LEVEL:.0f} %", *(f"{kind}: {MEANINGS[kind]}" for kind in MEANINGS if kind in kinds)])


def wilson(successes: int, trials: int) -> Interval:
    """Returns Wilson's score interval of a proportion, which has a width at 0 and at 1 too (Wilson 1927)."""
    from scipy.stats import binomtest  # takes half a second, which training never needs

    ends = binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return Interval(float(ends.low), float(ends.high), WILSON)


def accuracy_interval(right: np.ndarray) -> Interval:
    """Returns Wilson's interval of the accuracy; `right` is (V,) bool."""
    return wilson(int(right.sum()), len(right))


def class_accuracy_interval(right: np.ndarray, targets: np.ndarray) -> Interval:
    """Returns the bootstrap interval of the mean class accuracy.

    Args:
        right: (V,) bool.
        targets: (V,) integers.
    """
    return of_class_mean(_class_accuracy_of_draws(right, targets), np.bincount(targets), len(right))


def map_interval(scores: np.ndarray, targets: np.ndarray) -> Interval:
    """Returns the bootstrap interval of mean_average_precision."""
    counts, num_pooled = targets.sum(0), int(targets.any(1).sum())
    return of_class_mean(lambda w: metrics.map_of_draws(scores, targets, w), counts, len(scores), num_pooled)


def of_class_mean(
    metric: Callable[[np.ndarray], np.ndarray], counts: np.ndarray, num_videos: int, num_pooled: int | None = None
) -> Interval:
    """Returns the bootstrap interval of a mean over classes or, where it has no width, Wilson's on the pooled videos.

    Args:
        metric: as of `bootstrap`.
        counts: (K,) videos of each class.
        num_pooled: videos that count, all of them if None; with several classes a video, fewer than `counts` add up to.
    """
    found = bootstrap(metric, num_videos)
    if found.high - found.low > SAME:
        return found
    pooled = min(even_videos(counts), num_pooled or num_videos)
    return wilson(round(found.low * pooled), pooled)._replace(kind=AGREEING)


def even_videos(counts: np.ndarray) -> int:
    """Returns how many videos a proportion would need to vary as much as the mean over classes of (K,) `counts` videos.

    For classes of one size that is all of them. A class of few videos weighs as much as one of many, so uneven ones
    are worth less: the variance of the mean is sum(p (1 - p) / n_k) / K^2, hence K^2 / sum(1 / n_k).
    """
    counts = counts[counts > 0]
    return max(1, int(len(counts) ** 2 / (1 / counts).sum() + 1e-9))  # a whole number that rounding put below itself


def accuracy_difference_interval(outcomes: np.ndarray) -> Interval:
    """Returns the paired bootstrap interval of a difference of accuracies.

    Args:
        outcomes: (V,) 1 where only the run is right, -1 where only the baseline is, else 0.
    """
    return of_difference(lambda weights: weights @ outcomes / weights.sum(1), len(outcomes), len(outcomes))


def class_accuracy_difference_interval(outcomes: np.ndarray, targets: np.ndarray) -> Interval:
    """Returns the same of the mean class accuracies; `targets` (V,) are integers."""
    pooled = even_videos(np.bincount(targets))
    return of_difference(_class_accuracy_of_draws(outcomes, targets), len(outcomes), pooled)


def of_difference(metric: Callable[[np.ndarray], np.ndarray], num_videos: int, num_pooled: int) -> Interval:
    """Returns the paired bootstrap interval of a difference or, where it has no width, what Wilson's ends leave open.

    Where all resamples agree, the videos gained are the difference's share of the pooled ones and none was lost, or the
    other way round. Each share has an interval of Wilson, and the difference lies between those of their ends.

    Args:
        metric: as of `bootstrap`.
        num_pooled: videos that count.
    """
    found = bootstrap(metric, num_videos)
    if found.high - found.low > SAME:
        return found
    gained, lost = (wilson(round(max(0.0, sign * found.low) * num_pooled), num_pooled) for sign in (1, -1))
    return Interval(gained.low - lost.high, gained.high - lost.low, AGREEING)


def bootstrap(metric: Callable[[np.ndarray], np.ndarray], num_videos: int) -> Interval:
    """Returns the percentile bootstrap interval over RESAMPLES draws with replacement; it may have no width.

    Draws for which the metric is NaN are left out. The draws depend on the number of videos alone, so two metrics of
    the same videos see the same draws.

    Args:
        metric: maps how often each video was drawn, (R, V), to values (R,).
    """
    rng, values = np.random.default_rng(0), []
    size = max(1, min(RESAMPLES, MAX_WEIGHTS // num_videos))
    for first in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - first)
        values.append(metric(rng.multinomial(num_videos, np.full(num_videos, 1 / num_videos), count).astype(float)))
    tail = 50 * (1 - LEVEL)
    low, high = np.nanpercentile(np.concatenate(values), [tail, 100 - tail]).tolist()
    return Interval(low, high, BOOTSTRAP)


def _class_accuracy_of_draws(right: np.ndarray, targets: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    num_classes = int(targets.max()) + 1
    return lambda w: metrics.mean_of_defined(metrics.weighted_class_accuracies(right, targets, num_classes, w))
