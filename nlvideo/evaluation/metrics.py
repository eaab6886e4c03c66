"""Scores and targets in, numbers out. V videos, K classes, R resamples."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95  # of the intervals
CHUNK = 4_000_000  # weights made at a time, which bounds the memory


def headline(values: Mapping[str, Any]) -> str:
    """Returns the name of the metric by which results are compared: map for multi-label data, else top1."""
    return "map" if "map" in values else "top1"


def target_ranks(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns (V,) how many classes stand before the target: 0 where it has the best score.

    Equal scores stand in the order of the classes, as they do in every list of best classes that we write. A video
    without scores (NaN) ranks last.

    Args:
        scores: (V, K).
        targets: (V,) integers.
    """
    of_target = np.take_along_axis(scores, targets[:, None], 1)
    equal_before = (scores == of_target) & (np.arange(scores.shape[1]) < targets[:, None])
    ranks = (scores > of_target).sum(1) + equal_before.sum(1)
    return np.where(np.isnan(scores).any(axis=1), scores.shape[1], ranks)


def topk_accuracy(ranks: np.ndarray, k: int) -> float:
    """Returns the share of videos whose target is among the k best classes."""
    return float(np.mean(ranks < k))


def class_accuracies(ranks: np.ndarray, targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns (K,) each class's share of right videos, nan for a class without videos."""
    return _class_accuracies(ranks == 0, targets, num_classes, np.ones((1, len(ranks))))[0]


def mean_class_accuracy(ranks: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mean over the classes that occur of each one's share of right videos."""
    return float(np.nanmean(class_accuracies(ranks, targets, int(targets.max()) + 1)))


def average_precisions(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns (K,) the average precision of each class by the official rules, nan for a class without positives.

    The precisions at each positive's place in the falling order of scores, averaged; equal scores stay in the order of
    the list, as Charades_v1_classify.m's stable sort leaves them. A video without scores (NaN) comes last.

    Args:
        scores: (V, K).
        targets: (V, K) bool.
    """
    return weighted_average_precisions(scores, targets, np.ones((1, len(scores))))[0]


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mean of average_precisions over the classes with positives, nan if there are none."""
    return float(_mean_of_defined(average_precisions(scores, targets)[None])[0])


def without_actions_last(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the scores with -inf for videos without any action, which the official classification leaves out so."""
    return np.where(targets.any(1, keepdims=True), scores, -np.inf)


def accuracy_interval(right: np.ndarray) -> list[float]:
    """Returns the bootstrap interval of the share of right videos.

    Args:
        right: (V,) bool; or 1, 0 and -1, what one run has right less what another has: their paired difference.
    """
    return interval(lambda weights: weights @ right / weights.sum(1), len(right))


def class_accuracy_interval(right: np.ndarray, targets: np.ndarray) -> list[float]:
    """Returns the bootstrap interval of the mean over classes of each one's share of right videos, see above."""
    num_classes = int(targets.max()) + 1
    return interval(lambda w: _mean_of_defined(_class_accuracies(right, targets, num_classes, w)), len(right))


def map_interval(scores: np.ndarray, targets: np.ndarray) -> list[float]:
    """Returns the bootstrap interval of the mean of average_precisions over the classes with positives."""
    return interval(lambda w: map_of_draws(scores, targets, w), len(scores))


def map_of_draws(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns (R,) the mean average precision for videos counted `weights` (R, V) times; nan without any positive."""
    return _mean_of_defined(weighted_average_precisions(scores, targets, weights))


def interval(metric: Callable[[np.ndarray], np.ndarray], num_videos: int) -> list[float]:
    """Returns the ends of the percentile bootstrap interval: videos drawn with replacement, RESAMPLES times.

    Draws for which the metric is not defined, nan, are left out.

    Args:
        metric: (R, V) how often each video was drawn -> (R,) values. The draws are the same in every call.
    """
    rng, values = np.random.default_rng(0), []
    size = max(1, min(RESAMPLES, CHUNK // num_videos))
    for first in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - first)
        values.append(metric(rng.multinomial(num_videos, np.full(num_videos, 1 / num_videos), count).astype(float)))
    tail = 50 * (1 - LEVEL)
    return np.nanpercentile(np.concatenate(values), [tail, 100 - tail]).tolist()


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Returns (R,) means over the classes (R, K) that are not nan, nan where all are."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(1) / known.sum(1)


def _class_accuracies(right: np.ndarray, targets: np.ndarray, num_classes: int, weights: np.ndarray) -> np.ndarray:
    """Returns (R, K) for videos counted `weights` (R, V) times; nan where a class was not drawn."""
    membership = np.zeros((len(targets), num_classes))
    membership[np.arange(len(targets)), targets] = 1
    with np.errstate(invalid="ignore"):
        return (weights * right) @ membership / (weights @ membership)


def weighted_average_precisions(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns (R, K) for videos counted `weights` (R, V) times, copies of one standing together."""
    found = np.full((len(weights), targets.shape[1]), np.nan)
    for k in np.flatnonzero(targets.any(0)):
        order = np.argsort(-np.nan_to_num(scores[:, k], nan=-np.inf, neginf=-np.inf), kind="stable")
        positive = targets[order, k]
        drawn = weights[:, order]
        before = np.cumsum(drawn, 1)
        hits = np.cumsum(drawn * positive, 1)
        # w copies of a positive: the precisions at each of their places, which rise by one hit and one place each
        count = drawn[:, positive]
        first_hit, first_place = hits[:, positive] - count, before[:, positive] - count
        total = sum(
            np.where(count >= i, (first_hit + i) / np.maximum(first_place + i, 1), 0)
            for i in range(1, int(count.max(initial=0)) + 1)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            found[:, k] = np.sum(total, axis=-1) / count.sum(1)
    return found
