"""When actions take place inside videos, for data whose videos may hold several actions or none.

V videos, K classes, S actions.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segments:
    """The actions of all videos one after the other, in seconds.

    Attributes:
        ends: (V,) int64, where each video's actions end in the arrays below.
        classes: (S,) int64.
        times: (S, 2) float64, start and end as annotated; they may lie past the video's end. An action that ends
            before it starts is at no time, but one of the video's.
        lengths: (V,) float64, of the videos as annotated; nan where it is not said.
        num_classes: K.
    """

    ends: np.ndarray
    classes: np.ndarray
    times: np.ndarray
    lengths: np.ndarray
    num_classes: int

    def overlapping(self, video: int, start: float, end: float) -> np.ndarray:
        """Returns (K,) bool: which actions share time with the clip from start to end; touching is not sharing."""
        classes, times = self._of(video)
        somewhere = times[:, 0] <= times[:, 1]
        return self._present(classes[somewhere & (times[:, 0] < end) & (times[:, 1] > start)])

    def at(self, video: int, second: float) -> np.ndarray:
        """Returns (K,) bool: which actions take place at a moment, both ends included (Charades_v1_localize.m)."""
        classes, times = self._of(video)
        return self._present(classes[(times[:, 0] <= second) & (second <= times[:, 1])])

    def video_targets(self) -> np.ndarray:
        """Returns (V, K) bool: which actions each video holds."""
        videos = np.repeat(np.arange(len(self.ends)), np.diff(self.ends, prepend=0))
        targets = np.zeros((len(self.ends), self.num_classes), bool)
        targets[videos, self.classes] = True
        return targets

    def _of(self, video: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(self.ends[video - 1] if video else 0, self.ends[video])
        return self.classes[part], self.times[part]

    def _present(self, classes: np.ndarray) -> np.ndarray:
        found = np.zeros(self.num_classes, bool)
        found[classes] = True
        return found
