"""Metrics of scores against targets. V videos, K classes, R resamples."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def headline(values: Mapping[str, Any]) -> str:
    """Returns the name of the main metric: map for multi-label data, else top1."""
    return "map" if "map" in values else "top1"


def target_ranks(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns (V,) the number of classes ranked before the target: 0 where it has the best score.

    Ties are broken by class order, as in every list of best classes that nlvideo writes. A video without scores (NaN)
    ranks last.

    Args:
        scores: (V, K).
        targets: (V,) integers.
    """
    of_target = np.take_along_axis(scores, targets[:, None], 1)
    equal_before = (scores == of_target) & (np.arange(scores.shape[1]) < targets[:, None])
    ranks = (scores > of_target).sum(1) + equal_before.sum(1)
    return np.where(np.isnan(scores).any(axis=1), scores.shape[1], ranks)


def best_classes(scores: np.ndarray) -> np.ndarray:
    """Returns (V,) int64 the class with the best of the scores (V, K), the first of equal ones; -1 for a NaN row."""
    return np.where(np.isnan(scores).any(1), -1, scores.argmax(1))


def topk_accuracy(ranks: np.ndarray, k: int) -> float:
    """Returns the fraction of videos whose target is among the k best classes."""
    return float(np.mean(ranks < k))


def class_accuracies(ranks: np.ndarray, targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns (K,) the top-1 accuracy of each class, NaN for a class without videos."""
    return weighted_class_accuracies(ranks == 0, targets, num_classes, np.ones((1, len(ranks))))[0]


def mean_class_accuracy(ranks: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mean of the top-1 accuracies of the classes that have videos."""
    return float(np.nanmean(class_accuracies(ranks, targets, int(targets.max()) + 1)))


def average_precisions(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns (K,) the average precision of each class by the Charades rules, NaN for a class without positives.

    This is the mean of the precisions at the positives, by descending score. Ties keep the order of the list, as in
    the stable sort of Charades_v1_classify.m. A video without scores (NaN) ranks last.

    Args:
        scores: (V, K).
        targets: (V, K) bool.
    """
    return weighted_average_precisions(scores, targets, np.ones((1, len(scores))))[0]


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mean of average_precisions over the classes with positives, NaN if there are none."""
    return float(mean_of_defined(average_precisions(scores, targets)[None])[0])


def without_actions_last(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns scores (V, K) with -inf for videos without actions, as Charades_v1_classify.m drops them."""
    return np.where(targets.any(1, keepdims=True), scores, -np.inf)


def mean_cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mean loss of the videos that have logits, computed in float64; NaN if none has.

    That is the cross-entropy of the softmax, or the binary cross-entropy of the sigmoid, averaged over classes too.

    Args:
        logits: (V, K); rows of NaN are left out.
        targets: (V,) integers, or (V, K) bool for multi-label data.
    """
    known = ~np.isnan(logits).any(1)
    logits, targets = logits[known].astype(np.float64), targets[known]
    if targets.ndim == 2:
        losses = np.logaddexp(0, logits) - logits * targets
    else:
        losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(targets)), targets]
    return float(losses.mean()) if losses.size else float("nan")


def validation_metrics(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Returns top1, top5, mean_class_accuracy and loss, or, for multi-label data, map and loss.

    A video without logits (NaN) counts as wrong; it has no loss.

    Args:
        logits: (V, K) float32.
        targets: (V,) integers, or (V, K) bool for multi-label data.
    """
    loss = mean_cross_entropy(logits, targets)
    if targets.ndim == 2:
        return {"map": mean_average_precision(without_actions_last(logits, targets), targets), "loss": loss}
    ranks = target_ranks(logits, targets)
    return {
        "top1": topk_accuracy(ranks, 1),
        "top5": topk_accuracy(ranks, min(5, logits.shape[1])),
        "mean_class_accuracy": mean_class_accuracy(ranks, targets),
        "loss": loss,
    }


def map_of_draws(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns (R,) the mAP with each video counted `weights` (R, V) times, NaN without positives."""
    return mean_of_defined(weighted_average_precisions(scores, targets, weights))


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Returns (R,) the means of values (R, K) without NaN, NaN where all are."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(1) / known.sum(1)


def weighted_class_accuracies(
    right: np.ndarray, targets: np.ndarray, num_classes: int, weights: np.ndarray
) -> np.ndarray:
    """Returns (R, K) with each video counted `weights` (R, V) times, NaN where a class was not drawn."""
    membership = np.zeros((len(targets), num_classes))
    membership[np.arange(len(targets)), targets] = 1
    with np.errstate(invalid="ignore"):
        return (weights * right) @ membership / (weights @ membership)


def weighted_average_precisions(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns (R, K) average precisions with each video counted `weights` (R, V) times, its copies adjacent."""
    found = np.full((len(weights), targets.shape[1]), np.nan)
    for k in np.flatnonzero(targets.any(0)):
        order = np.argsort(-np.nan_to_num(scores[:, k], nan=-np.inf, neginf=-np.inf), kind="stable")
        positive = targets[order, k]
        drawn = weights[:, order]
        before = np.cumsum(drawn, 1)
        hits = np.cumsum(drawn * positive, 1)
        # The copies of a positive take consecutive places; at each, hits and places both grow by one.
        count = drawn[:, positive]
        first_hit, first_place = hits[:, positive] - count, before[:, positive] - count
        total = sum(
            np.where(count >= i, (first_hit + i) / np.maximum(first_place + i, 1), 0)
            for i in range(1, int(count.max(initial=0)) + 1)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            found[:, k] = np.sum(total, axis=-1) / count.sum(1)
    return found
