"""Scores and targets in, numbers out. V videos, K classes."""

import numpy as np


def target_ranks(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns (V,) how many classes stand before the target: 0 where it has the best score.

    Equal scores stand in the order of the classes, as they do in every list of best classes that we write. A video
    without scores (NaN) ranks last.

    Args:
        scores: (V, K).
        targets: (V,) integers.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.argmax(order == targets[:, None], axis=1)
    return np.where(np.isnan(scores).any(axis=1), scores.shape[1], ranks)


def topk_accuracy(ranks: np.ndarray, k: int) -> float:
    """Returns the share of videos whose target is among the k best classes."""
    return float(np.mean(ranks < k))


def mean_class_accuracy(ranks: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mean over the classes that occur of each one's share of right videos."""
    return float(np.mean([np.mean(ranks[targets == k] == 0) for k in np.unique(targets)]))
