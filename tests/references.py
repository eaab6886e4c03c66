"""Slow, obvious implementations that results are compared with."""

import numpy as np


def precisions_by_hand(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The loop of Charades_v1_classify.m; ties keep the order of the list."""
    values = []
    for k in range(scores.shape[1]):
        order = sorted(range(len(scores)), key=lambda v: (-scores[v, k], v))
        hits, total = 0, 0.0
        for place, video in enumerate(order, 1):
            if targets[video, k]:
                hits += 1
                total += hits / place
        values.append(total / hits if hits else np.nan)
    return np.array(values)
