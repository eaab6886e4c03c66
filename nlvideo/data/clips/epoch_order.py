"""Which videos each epoch of training draws, and in which order."""

from typing import NamedTuple

import numpy as np

from nlvideo.data.clips.batch import SampleKey
from nlvideo.data.lists.list_warnings import class_counts
from nlvideo.data.lists.video_table import VideoTable

EXPONENTS = {"none": 0.0, "sqrt": 0.5, "classes": 1.0}  # of a class's number of videos, which its draws are divided by


def expected_draws(table: VideoTable, balance: str) -> np.ndarray:
    """Returns (videos,) float64, how often an epoch draws each video on average; they add up to the number of videos.

    A class of n videos is drawn in proportion to n ("none"), the root of n ("sqrt") or 1 ("classes"). A video with
    several classes is drawn as one of its rarest class, as LVIS's repeat factors do (Gupta et al. 2019), so its other
    classes come more often than they would alone. Videos without any count as a class of their own.
    """
    counts = class_counts(table)
    weights = np.maximum(counts, 1) ** -EXPONENTS[balance]  # (classes,)
    if table.multi_label:
        unlabelled = max(1, int((~table.targets.any(1)).sum())) ** -EXPONENTS[balance]
        of_video = np.where(table.targets, weights, 0.0).max(1, initial=0.0)
        of_video[of_video == 0] = unlabelled
    else:
        of_video = weights[table.targets]
    return len(table) * of_video / of_video.sum()


class EpochVideos(NamedTuple):
    """What an epoch draws, in its order."""

    videos: np.ndarray  # (videos,) int64, indices in the table
    copies: np.ndarray  # (videos,) int64, how often the epoch has drawn the same video before


class EpochOrder:
    """The endless stream of clips that training takes, a function of the seed alone.

    An epoch is as many draws as there are videos: each once, in an order drawn for the epoch. With `expected`, each
    video comes as often as it says, rounded up or down by chance, so that it is right on average over epochs.

    Args:
        expected: (videos,) float64, how often an epoch draws each on average, adding up to the number of videos. None:
            once.
        clips_per_video: that each draw gives, one behind the other.
    """

    def __init__(self, num_videos: int, seed: int, expected: np.ndarray | None = None, *, clips_per_video: int = 1):
        self.num_videos, self.seed, self.expected = num_videos, seed, expected
        self.clips_per_video = clips_per_video
        self._drawn = -1, EpochVideos(np.empty(0, np.int64), np.empty(0, np.int64))  # of which epoch, and what

    def keys(self, first: int, stop: int) -> list[SampleKey]:
        """Returns the clips at the places first .. stop - 1 of the stream."""
        found = []
        known, drawn_videos = self._drawn  # without workers, a thread that fetches ahead calls this, too
        for place in range(first, stop):
            drawn, clip = divmod(place, self.clips_per_video)
            epoch, i = divmod(drawn, self.num_videos)
            if epoch != known:
                self._drawn = known, drawn_videos = epoch, self.draw(epoch)
            found.append(SampleKey(epoch, int(drawn_videos.videos[i]), int(drawn_videos.copies[i]), place, clip))
        return found

    def draw(self, epoch: int) -> EpochVideos:
        """Returns what an epoch draws."""
        rng = np.random.default_rng([self.seed, epoch])
        listed = rng.permutation(self.num_videos)
        if self.expected is None:
            return EpochVideos(listed, np.zeros_like(listed))
        # Systematic sampling: videos lie side by side, each as long as it is expected to be drawn, and are drawn at
        # equal distances of 1 from a random start on. Their own order is random, so that none depend on each other.
        ends = np.cumsum(self.expected[listed])
        hit = np.searchsorted(ends, rng.random() + np.arange(self.num_videos), side="right")
        videos = rng.permutation(listed[np.minimum(hit, self.num_videos - 1)])  # rounding may pass the last end
        return EpochVideos(videos, _earlier(videos))


def _earlier(videos: np.ndarray) -> np.ndarray:
    """Returns how often each one stands before its place already."""
    order = np.argsort(videos, kind="stable")
    grouped, copies = videos[order], np.empty_like(videos)
    copies[order] = np.arange(len(videos)) - np.searchsorted(grouped, grouped)
    return copies
