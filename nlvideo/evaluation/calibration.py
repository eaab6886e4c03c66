"""Calibration: whether scores, read as probabilities, come true as often as they say.

V videos, K classes.
"""

from typing import Any, NamedTuple

import numpy as np

from nlvideo.evaluation import metrics

NUM_BINS = 15  # equally wide, as in Guo et al. 2017, arXiv 1706.04599


class Calibration(NamedTuple):
    """Predictions in bins of their probability: bin i is above i / NUM_BINS, up to (i + 1) / NUM_BINS."""

    counts: np.ndarray  # (NUM_BINS,) int64
    confidences: np.ndarray  # (NUM_BINS,) float64, the mean probability; NaN for an empty bin
    accuracies: np.ndarray  # (NUM_BINS,) float64, the fraction that came true; NaN for an empty bin

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of accuracy and confidence, bins weighted by counts."""
        gaps = np.nan_to_num(np.abs(self.accuracies - self.confidences))
        return float(np.average(gaps, weights=self.counts))

    def rows(self) -> list[dict[str, Any]]:
        """Returns the bins as JSON can hold them; the means of an empty one are None."""
        return [
            {
                "above": i / NUM_BINS,
                "up_to": (i + 1) / NUM_BINS,
                "count": int(count),
                "confidence": float(confidence) if count else None,
                "accuracy": float(accuracy) if count else None,
            }
            for i, (count, confidence, accuracy) in enumerate(zip(*self, strict=True))
        ]


def calibration(scores: np.ndarray, targets: np.ndarray, pooling: str) -> Calibration | None:
    """Returns the calibration of the best class's score or, for multi-label data, of every score of every video.

    Videos without scores (NaN) are left out: nothing was claimed about them. None where scores are no probabilities,
    which a sum or a maximum over views is not, where no video has scores, and for a list without any actions.

    Args:
        scores: (V, K), the softmax or sigmoid of logits, averaged.
        targets: (V,) integers, or (V, K) bool for multi-label data.
        pooling: of scores over views: mean, sum or max.
    """
    decoded = ~np.isnan(scores).any(1)
    if pooling != "mean" or not decoded.any() or (targets.ndim == 2 and not targets.any()):
        return None
    if targets.ndim == 2:
        return binned(scores[decoded].ravel(), targets[decoded].ravel())
    return binned(scores[decoded].max(1), metrics.best_classes(scores[decoded]) == targets[decoded])


def binned(probabilities: np.ndarray, came_true: np.ndarray) -> Calibration:
    """Returns predictions (N,) and their outcomes (N,) bool in bins.

    The bins are those of sklearn.calibration.calibration_curve, which does not say how many predictions each has, and
    refuses a mean of float32 probabilities that rounding put above 1.
    """
    edges = np.arange(1, NUM_BINS) / NUM_BINS
    bins = np.searchsorted(edges, probabilities)
    counts, confidences, accuracies = (
        np.bincount(bins, weights, NUM_BINS) for weights in (None, probabilities, came_true)
    )
    with np.errstate(invalid="ignore"):
        return Calibration(counts, confidences / counts, accuracies / counts)
