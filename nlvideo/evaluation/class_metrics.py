"""Precision, recall and F1: of each class, and their means.

V videos, K classes, R resamples.
"""

from typing import NamedTuple

import numpy as np

from nlvideo.evaluation import metrics
from nlvideo.evaluation.intervals import Interval, bootstrap, pooled_videos, wider, wilson_of_share

THRESHOLD = 0.5  # of multi-label scores: a class is predicted where its score is above


class ClassMetrics(NamedTuple):
    """What each class's predictions are worth: (K,) float64, and (K,) int64 numbers of videos."""

    precision: np.ndarray  # NaN for a class that is never predicted
    recall: np.ndarray  # NaN for a class without videos
    f1: np.ndarray  # NaN for a class without videos
    videos: np.ndarray

    def means(self) -> dict[str, float | None]:
        """Returns {"precision_macro": ..., "precision_weighted": ..., ...}, None where no class has videos.

        Both means are over the classes that have videos: macro counts each class once, weighted as often as it has
        videos. The precision of a class that is never predicted counts as 0, scikit-learn's zero_division=0.
        """
        has_videos = self.videos > 0
        found: dict[str, float | None] = {}
        for name in ("precision", "recall", "f1"):
            values = np.nan_to_num(getattr(self, name)[has_videos])
            weights = {"macro": np.ones(len(values)), "weighted": self.videos[has_videos]}
            for kind, weight in weights.items():
                found[f"{name}_{kind}"] = float(np.average(values, weights=weight)) if len(values) else None
        return found


def decisions(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which classes are predicted for each video, and which it has, both (V, K) bool.

    That is the best class, ties broken by class order, or every class whose multi-label score is above THRESHOLD. For
    a video without scores (NaN) nothing is predicted: it is missing from its class's recall and adds to no precision.

    Args:
        scores: (V, K).
        targets: (V,) integers, or (V, K) bool for multi-label data.
    """
    if targets.ndim == 2:
        return scores > THRESHOLD, targets
    classes = np.arange(scores.shape[1])
    return metrics.best_classes(scores)[:, None] == classes, targets[:, None] == classes


def class_metrics(scores: np.ndarray, targets: np.ndarray) -> ClassMetrics:
    """Returns the metrics of the decisions on these scores; arguments as in `decisions`."""
    from sklearn.metrics import precision_recall_fscore_support  # takes half a second, which training never needs

    # scikit-learn reads a single column as two classes, so an empty one is added, and left out by `labels`.
    predicted, true = (np.pad(part, ((0, 0), (0, 1))) for part in decisions(scores, targets))
    labels = np.arange(scores.shape[1])
    precision, recall, f1, videos = precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
    precision[predicted.sum(0)[labels] == 0] = np.nan
    recall[videos == 0] = f1[videos == 0] = np.nan
    return ClassMetrics(precision, recall, f1, videos)


def f1_interval(scores: np.ndarray, targets: np.ndarray) -> Interval:
    """Returns the interval of the macro F1, as of the mean class accuracy; arguments as in `decisions`."""
    predicted, true = decisions(scores, targets)
    (value,) = f1_of_draws(predicted, true, np.ones((1, len(scores))))
    drawn = bootstrap(lambda weights: f1_of_draws(predicted, true, weights), len(scores))
    return wider(drawn, wilson_of_share(float(value), pooled_videos(true)))


def f1_of_draws(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns (R,) the macro F1 with each video counted `weights` (R, V) times, NaN where no class was drawn.

    Args:
        predicted, true: (V, K) bool, as from `decisions`.
    """
    from scipy.sparse import csr_array  # most videos have one class of hundreds

    hits, guesses, videos = (csr_array(part.T, dtype=float) @ weights.T for part in (predicted & true, predicted, true))
    with np.errstate(invalid="ignore"):
        f1 = np.where(videos > 0, 2 * hits / (guesses + videos), np.nan)  # (K, R)
    return metrics.mean_of_defined(f1.T)
