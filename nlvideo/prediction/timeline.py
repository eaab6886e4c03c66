"""Scores over time: windows that slide over a video, and the stretches that share a best class.

n windows, K classes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Stretch(NamedTuple):
    """A part of a video with the same best class."""

    start: float  # seconds
    end: float
    best: int  # class
    score: float  # its mean score over the windows of this part


class Timeline(NamedTuple):
    """Scores of windows that slide over a video. A frame's time is its index divided by the average frame rate."""

    starts: np.ndarray  # (n,) int64, first frame of each window
    window: int  # length, in frames
    num_frames: int  # of the video
    fps: float
    scores: np.ndarray  # (n, K) float32

    def edges(self) -> np.ndarray:
        """Returns the frames (n + 1,) at which the video is divided between the windows.

        Windows overlap or leave gaps; each frame belongs to the window whose middle is nearest.
        """
        between = (self.starts[:-1] + self.starts[1:] + self.window) // 2
        return np.concatenate([[0], between, [self.num_frames]])

    def stretches(self) -> list[Stretch]:
        """Returns the parts of the video with the same best class, in temporal order."""
        best, edges = self.scores.argmax(1), self.edges() / self.fps
        return [
            Stretch(edges[i], edges[j], int(best[i]), float(self.scores[i:j, best[i]].mean()))
            for i, j in runs_of_equal(best)
        ]


def runs_of_equal(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields (first, stop) of each run of equal consecutive values."""
    firsts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]).tolist()
    yield from zip(firsts, [*firsts[1:], len(values)], strict=True)


def window_starts(num_video_frames: int, window: int, every: int) -> np.ndarray:
    """Returns the first frames (n,) of windows: one every so many frames, and one that ends with the video."""
    last = max(num_video_frames - window, 0)
    return np.unique([*range(0, last, every), last])
