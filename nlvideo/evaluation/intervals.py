"""Intervals of metrics over videos, each with its kind. V videos, K classes, R resamples."""

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from nlvideo.evaluation import metrics

RESAMPLES = 2000
LEVEL = 0.95  # confidence level of the intervals
MAX_WEIGHTS = 4_000_000  # resampling weights in memory at a time
SAME = 1e-12  # resamples that differ by less agree: the rest is rounding
NEXT = 1e-9  # far below the width of any score interval

WILSON, TANGO, BOOTSTRAP = "Wilson", "Tango", "bootstrap"
AGREES = ", as all resamples agree"
MEANINGS = {
    WILSON: "score interval of a proportion of videos",
    TANGO: "score interval of a paired difference of two proportions of videos",
    BOOTSTRAP: f"percentiles over {RESAMPLES} resamples of the videos",
    f"{BOOTSTRAP} or {WILSON}": "at each end the one that reaches further, Wilson's being on the pooled videos",
    f"{BOOTSTRAP} or {TANGO}": "at each end the one that reaches further, Tango's being on the pooled videos",
    WILSON + AGREES: "on the pooled videos, since the bootstrap has no width",
    TANGO + AGREES: "on the pooled videos, since the bootstrap has no width",
}


class Interval(NamedTuple):
    """A confidence interval at LEVEL, as fractions."""

    low: float
    high: float
    kind: str  # one of MEANINGS

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high

    @property
    def has_width(self) -> bool:
        return self.high - self.low > SAME


def describe(kinds: Collection[str]) -> str:
    """Returns "95 %; Wilson: what that is; ..." for these kinds."""
    return "; ".join([f"{100 * LEVEL:.0f} %", *(f"{kind}: {MEANINGS[kind]}" for kind in MEANINGS if kind in kinds)])


def wilson(successes: int, trials: int) -> Interval:
    """Returns Wilson's score interval of a proportion, which has a width at 0 and at 1 too (Wilson 1927)."""
    from scipy.stats import binomtest  # takes half a second, which training never needs

    ends = binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return Interval(float(ends.low), float(ends.high), WILSON)


def wilson_of_share(share: float, videos: int) -> Interval:
    """Returns Wilson's interval of a share that need not be a whole number of these videos: both beside it count."""
    right = share * videos
    low, high = wilson(math.floor(right + SAME), videos), wilson(math.ceil(right - SAME), videos)
    return Interval(low.low, high.high, WILSON)


def tango(gained: float, lost: float, videos: int) -> Interval:
    """Returns Tango's score interval of a paired difference of proportions (Tango 1998, Statistics in Medicine 17).

    It holds each difference that the score test, of which McNemar's is the one for zero, does not reject. Without any
    changed video its ends are those of Wilson's interval of none.

    Args:
        gained: videos that only the run has right; as `lost`, not necessarily a whole number.
        lost: videos that only the baseline has right.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    found, z = (gained - lost) / videos, norm.ppf((1 + LEVEL) / 2)

    def excess(difference: float) -> float:
        """Returns how far the squared distance from what was found is above that of the test's critical value."""
        slope = (2 * videos - gained + lost) * difference - gained - lost
        spread = difference * (1 - difference)
        root = math.sqrt(max(0.0, slope**2 + 8 * videos * lost * spread))
        losing = (root - slope) / (4 * videos)  # the share of lost videos that is likeliest given this difference
        return videos * (found - difference) ** 2 - z**2 * max(0.0, 2 * losing + spread)

    # where nothing or everything changed, the excess is zero at what was found too, and below zero next to it
    low = brentq(excess, -1, found - NEXT) if found > NEXT - 1 else -1.0
    high = brentq(excess, found + NEXT, 1) if found < 1 - NEXT else 1.0
    return Interval(float(low), float(high), TANGO)


def accuracy_interval(right: np.ndarray) -> Interval:
    """Returns Wilson's interval of the accuracy; `right` is (V,) bool."""
    return wilson(int(right.sum()), len(right))


def accuracy_difference_interval(outcomes: np.ndarray) -> Interval:
    """Returns Tango's interval of a difference of accuracies.

    Args:
        outcomes: (V,) 1 where only the run is right, -1 where only the baseline is, else 0.
    """
    return tango(int((outcomes > 0).sum()), int((outcomes < 0).sum()), len(outcomes))


def class_accuracy_interval(right: np.ndarray, targets: np.ndarray) -> Interval:
    """Returns the interval of the mean class accuracy: the bootstrap's, or Wilson's where that reaches further.

    Args:
        right: (V,) bool.
        targets: (V,) integers.
    """
    mean = _class_mean_of_draws(right, targets)
    return wider(
        bootstrap(mean, len(right)), wilson_of_share(_value(mean, len(right)), even_videos(np.bincount(targets)))
    )


def class_accuracy_difference_interval(outcomes: np.ndarray, targets: np.ndarray) -> Interval:
    """Returns the same of a difference, by Tango in Wilson's place; arguments as of accuracy_difference_interval."""
    videos, mean = even_videos(np.bincount(targets)), _class_mean_of_draws(outcomes, targets)
    gained, lost = (
        videos * _value(_class_mean_of_draws(sign * outcomes > 0, targets), len(outcomes)) for sign in (1, -1)
    )
    return wider(bootstrap(mean, len(outcomes)), tango(gained, lost, videos))


def map_interval(scores: np.ndarray, targets: np.ndarray) -> Interval:
    """Returns the bootstrap interval of mean_average_precision or, where it has no width, Wilson's.

    Args:
        scores: (V, K).
        targets: (V, K) bool.
    """
    found = bootstrap(lambda weights: metrics.map_of_draws(scores, targets, weights), len(scores))
    return found if found.has_width else wider(found, wilson_of_share(found.low, pooled_videos(targets)))


def map_difference_interval(difference: Callable[[np.ndarray], np.ndarray], targets: np.ndarray) -> Interval:
    """Returns the paired bootstrap interval of a difference of mAP or, where it has no width, Tango's.

    Tango's takes the difference as its share of the pooled videos gained, and none lost, or the other way round.

    Args:
        difference: of draws, as of `bootstrap`.
        targets: (V, K) bool.
    """
    found, videos = bootstrap(difference, len(targets)), pooled_videos(targets)
    if found.has_width:
        return found
    return wider(found, tango(max(0.0, found.low) * videos, max(0.0, -found.low) * videos, videos))


def wider(drawn: Interval, score: Interval) -> Interval:
    """Returns at each end the one of a bootstrap and a score interval of the same value that reaches further.

    A class of few videos may have no mistake in the sample, and hence in no resample: the bootstrap is then too narrow.
    """
    kind = f"{BOOTSTRAP} or {score.kind}" if drawn.has_width else score.kind + AGREES
    if drawn.low <= score.low and score.high <= drawn.high:
        kind = BOOTSTRAP
    return Interval(min(drawn.low, score.low), max(drawn.high, score.high), kind)


def pooled_videos(targets: np.ndarray) -> int:
    """Returns even_videos of several classes a video, (V, K) bool, at most the videos that have one."""
    return max(1, min(even_videos(targets.sum(0)), int(targets.any(1).sum())))


def even_videos(counts: np.ndarray) -> int:
    """Returns how many videos a proportion would need to vary as much as the mean over classes of (K,) `counts` videos.

    For classes of one size that is all of them. A class of few videos weighs as much as one of many, so uneven ones
    are worth less: the variance of the mean is sum(p (1 - p) / n_k) / K^2, hence K^2 / sum(1 / n_k).
    """
    counts = counts[counts > 0]
    return max(1, int(len(counts) ** 2 / (1 / counts).sum() + 1e-9))  # a whole number that rounding put below itself


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


def _class_mean_of_draws(values: np.ndarray, targets: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    num_classes = int(targets.max()) + 1
    return lambda w: metrics.mean_of_defined(metrics.weighted_class_accuracies(values, targets, num_classes, w))


def _value(metric: Callable[[np.ndarray], np.ndarray], num_videos: int) -> float:
    """Returns the metric of the videos themselves."""
    return float(metric(np.ones((1, num_videos)))[0])
