"""The scores of videos from all their views.

K classes, P positions of the fully convolutional network.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from nlvideo.data.clips.batch import Colours, Normalizer
from nlvideo.data.clips.view_sampling import spread_order
from nlvideo.data.clips.views import VideoViews
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.evaluation.kept_scores import KeptScores, VideoScore, VideoScores
from nlvideo.evaluation.metrics import target_ranks
from nlvideo.runtime.copy_stream import CopyStream, HostCopy
from nlvideo.runtime.errors import RunFailed
from nlvideo.runtime.precision import autocast, input_dtype

VIEWS_PER_STEP = {"cpu": 2, "cuda": 15}  # the last bits of scores depend on it, so it is fixed, and recorded
CROP_ORDER = {1: [0], 3: [1, 0, 2]}  # in which crops are added: the centre first


class Scorer:
    """Scores views with a network.

    Softmax (sigmoid for multi-label data) at each position of the fully convolutional network and the mean over
    positions, as in the authors' test_net_video.py (Sec. 4.1).

    Args:
        network: has position_logits(clips), which returns (N, P, K) for (N, 3, T, H, W).
        dtype: that the network computes in.
        colours: that clips are normalised with; None: the network takes uint8 clips.
        views_per_step: views of one video that go through the network together.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        *,
        colours: Colours | None,
        multi_label: bool,
        views_per_step: int,
    ):
        self.network = network.to(device, input_dtype(dtype), memory_format=torch.channels_last_3d).eval()
        self.device, self.dtype = device, dtype
        self.normalize = None if colours is None else Normalizer(colours, device, input_dtype(dtype))
        self.multi_label, self.views_per_step = multi_label, views_per_step
        self._copy = CopyStream(device)

    def upload(self, views: VideoViews) -> VideoViews:
        """Returns the views with their frames on the device, which copies them beside what it computes.

        The frames go there once, and the views, in which most frames occur several times, are cut there.
        """
        tensors = views.frames, views.frame_index
        if self.device.type == "cuda":  # one video at a time: pinned by the loader, all that wait would be held twice
            tensors = views.frames.pin_memory(), views.frame_index.pin_memory()
        with self._enough_memory(f"the {views.frames.nbytes / 1e6:.0f} MB of a video's frames"):
            frames, frame_index = self._copy(*tensors)
        return views._replace(frames=frames, frame_index=frame_index)

    @torch.inference_mode()
    def view_scores(self, views: VideoViews) -> Tensor:
        """Returns (num_clips, num_crops, K) on the device, for views that are there."""
        number, size = min(views.num_views, self.views_per_step), (views.frame_index.shape[1], *views.crop_size)
        with self._enough_memory(f"{number} views of {'x'.join(map(str, size))} at a time"):
            parts = [self.clip_scores(clips) for clips in views.chunks(self.views_per_step)]
        return torch.cat(parts).unflatten(0, (len(views.frame_index), len(views.crops)))

    @torch.inference_mode()
    def clip_scores(self, clips: Tensor) -> Tensor:
        """Returns (N, K) for clips (N, C, T, H, W) uint8."""
        with self._enough_memory(f"{len(clips)} views of {'x'.join(map(str, clips.shape[2:]))} at a time"):
            inputs = clips if self.normalize is None else self.normalize(clips)
            with autocast(self.device, self.dtype):
                logits = self.network.position_logits(inputs)  # (N, P, K)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (logits.sigmoid() if self.multi_label else logits.softmax(2)).mean(1)

    @contextmanager
    def _enough_memory(self, what: str) -> Iterator[None]:
        """Raises RunFailed, with what would save some, where the block runs out of the device's memory."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise RunFailed(
                f"The device has no memory for {what}; use a smaller views_per_step={self.views_per_step}, fewer or "
                "smaller views (data.test), or free it of other programs."
            ) from None


@dataclass(frozen=True)
class Pooler:
    """Turns the scores of a video's views into what is kept of the video.

    Attributes:
        pooling: mean, sum or max over views.
        keep_clips: keep the scores of each clip too, for localisation.
    """

    table: VideoTable
    pooling: str
    keep_clips: bool

    def video_score(self, video: int, views: np.ndarray) -> VideoScore:
        """Returns what is kept of a video with the scores `views` (num_clips, num_crops, K).

        Raises:
            RunFailed: the scores are not finite.
        """
        by_clips, by_crops, clips = pool(views, self.pooling)
        if not np.isfinite(by_clips[-1]).all():
            raise RunFailed(f"The scores of {self.table.path(video)} are not finite: {by_clips[-1][:5]}...")
        after = np.concatenate([by_clips, by_crops])
        if not self.table.multi_label:
            after = target_ranks(after, np.full(len(after), self.table.targets[video]))
        return VideoScore(by_clips[-1], after, clips if self.keep_clips else clips[:0])


def pool(views: np.ndarray, pooling: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the scores after 1, 2, ... clips, (num_clips, K), after 1, 2, ... crops, (num_crops, K), and of each
    clip, (num_clips, K), all float32.

    Clips are added so that they stay spread over the video, the middle one first; crops from the centre. The last
    entry of the first two is the score of the video.

    Args:
        views: (num_clips, num_crops, K).
        pooling: mean, sum or max over views.
    """
    views = views.astype(np.float64)
    reduce: Any = {"mean": np.mean, "sum": np.sum, "max": np.max}[pooling]
    clips, crops = reduce(views, 1), reduce(views, 0)
    by_clips = _running(clips[spread_order(len(clips))], pooling)
    by_crops = _running(crops[CROP_ORDER[len(crops)]], pooling)
    by_crops[-1] = by_clips[-1]  # the same number, summed in another order
    return by_clips, by_crops, clips.astype(np.float32)


def _running(values: np.ndarray, pooling: str) -> np.ndarray:
    """Returns the pooled first 1, 2, ... rows of (n, K), float32."""
    if pooling == "max":
        return np.maximum.accumulate(values).astype(np.float32)
    sums = np.cumsum(values, 0)
    return (sums / np.arange(1, len(values) + 1)[:, None] if pooling == "mean" else sums).astype(np.float32)


def score_videos(
    scorer: Scorer,
    pooler: Pooler,
    views: Iterable[VideoViews],
    kept: KeptScores,
    *,
    videos_per_step: int,
    stopped: Callable[[], Any],
    bar: tqdm,
) -> VideoScores:
    """Returns the scores of this rank's videos, and keeps them on disk as they come.

    Scores are fetched from the device for videos_per_step videos at a time, once it has the next one to compute. Each
    video goes through the network alone, so its score does not depend on the others.

    Raises:
        RunFailed: a score is not finite; names the video.
    """
    found: VideoScores = {}
    waiting: list[tuple[int, HostCopy]] = []

    def fetch(number: int) -> None:
        for _ in range(number):
            video, scores = waiting.pop(0)
            found[video] = kept[video] = pooler.video_score(video, scores.read().numpy())
            bar.update()
        kept.flush_if_due()

    try:
        for video in views:
            if video.failures:
                found[video.video] = kept[video.video] = video.failures[0].reason
                bar.update()
                continue
            waiting.append((video.video, HostCopy(scorer.view_scores(scorer.upload(video)))))
            if len(waiting) > videos_per_step:
                fetch(videos_per_step)
            if stopped():
                break
    finally:  # also when the next video ends the evaluation: what is scored is kept
        try:
            fetch(len(waiting))
        finally:
            kept.flush()
    return found
