"""The scores of videos from all their views, and what is kept of them so that an interrupted evaluation goes on.

K classes, P positions of the fully convolutional network.
"""

import hashlib
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nlvideo.data.clips.datasets import VideoViews
from nlvideo.data.clips.loading import end_workers
from nlvideo.data.clips.normalize import normalize
from nlvideo.data.clips.sampling import spread_order
from nlvideo.data.lists.path_list import VideoTable
from nlvideo.evaluation.metrics import target_ranks
from nlvideo.models.resnet import VideoResNet
from nlvideo.runtime.distributed import World
from nlvideo.runtime.errors import RunFailed, UserFileExistsError
from nlvideo.runtime.folder_lock import lock_folder
from nlvideo.runtime.precision import autocast, input_dtype
from nlvideo.training.run_status import write_whole

KEPT_EVERY_SECONDS = 20
IDENTITY_FILE = "identity.json"
CROP_ORDER = {1: [0], 3: [1, 0, 2]}  # in which crops are added: the centre first


class VideoScore(NamedTuple):
    """What is kept of a video's views."""

    scores: np.ndarray  # (K,) float32, over all views
    # After 1, 2, ... clips with all crops, then after 1, 2, ... crops of all clips: where the target ranks,
    # (num_clips + num_crops,) int64, or for multi-label data the scores, (num_clips + num_crops, K) float32.
    after: np.ndarray
    clips: np.ndarray  # (num_clips, K) float32, of each clip in the order of time; (0, K) where nobody asks


Found = dict[int, VideoScore | str]  # index in the table -> scores, or the reason why there are none


class Scorer:
    """Scores views with a network.

    Softmax (sigmoid for multi-label data) at each position of the fully convolutional network and the mean over
    positions, as in the authors' test_net_video.py (Sec. 4.1).

    Args:
        mean, std: of the colours, for normalize.
        views_per_step: views of one video that go through the network together.
    """

    def __init__(
        self,
        network: VideoResNet,
        device: torch.device,
        dtype: torch.dtype,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        multi_label: bool,
        views_per_step: int,
    ):
        self.network = network.to(device, input_dtype(dtype), memory_format=torch.channels_last_3d).eval()
        self.device, self.dtype = device, dtype
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        self.multi_label, self.views_per_step = multi_label, views_per_step

    @torch.inference_mode()
    def view_scores(self, views: VideoViews) -> Tensor:
        """Returns (num_clips, num_crops, K) on the device."""
        parts = [self.clip_scores(clips) for clips in views.chunks(self.views_per_step)]
        return torch.cat(parts).unflatten(0, (len(views.frame_index), len(views.crops)))

    @torch.inference_mode()
    def clip_scores(self, clips: Tensor) -> Tensor:
        """Returns (N, K) for clips (N, C, T, H, W) uint8."""
        inputs = normalize(clips.to(self.device, non_blocking=True), self.mean, self.std, input_dtype(self.dtype))
        try:
            with autocast(self.device, self.dtype):
                logits = self.network.position_logits(inputs)  # (N, P, K)
        except torch.OutOfMemoryError:
            raise RunFailed(
                f"The device has no memory for {len(clips)} views of {'x'.join(map(str, clips.shape[2:]))} at a time; "
                f"give a smaller views_per_step={self.views_per_step}."
            ) from None
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (logits.sigmoid() if self.multi_label else logits.softmax(2)).mean(1)


def pool(views: np.ndarray, pooling: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the scores after 1, 2, ... clips, (num_clips, K), after 1, 2, ... crops, (num_crops, K), and of each
    clip, (num_clips, K), all float32.

    Clips are added so that they stay spread over the video, the middle one first; crops from the centre. The last
    entry of both is the score of the video.

    Args:
        views: (num_clips, num_crops, K).
        pooling: mean, sum or max over views.
    """
    views = views.astype(np.float64)
    reduce = {"mean": np.mean, "sum": np.sum, "max": np.max}[pooling]
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
    views: Iterable[VideoViews],
    table: VideoTable,
    world: World,
    *,
    total: int,
    videos_per_step: int,
    pooling: str,
    keep_clips: bool,
    kept: "Kept",
    stopped: Callable[[], Any],
) -> Found:
    """Returns the scores of this process's videos, and keeps them as they come.

    Scores are fetched from the device, and looked at, for videos_per_step videos at a time; each goes through the
    network alone, so its score does not depend on the others.

    Raises:
        RunFailed: a score is not finite; names the video.
    """
    found, waiting = {}, []
    bar = tqdm(
        total=total,
        desc=f"evaluating {table.source}",
        unit="video",
        disable=not world.is_main,
        mininterval=0.2 if sys.stderr.isatty() else 10,
    )
    try:
        for video in views:
            if video.failures:
                found[video.video] = kept[video.video] = video.failures[0].reason
                bar.update()
                continue
            waiting.append((video.video, scorer.view_scores(video)))
            if len(waiting) == videos_per_step or stopped():
                _fetch(waiting, found, table, pooling, keep_clips, kept, bar)
            if stopped():
                end_workers()
                break
        _fetch(waiting, found, table, pooling, keep_clips, kept, bar)
    finally:
        kept.flush()
        bar.close()
    return found


def _fetch(
    waiting: list[tuple[int, Tensor]], found: Found, table: VideoTable, pooling: str, keep_clips: bool,
    kept: "Kept", bar: tqdm,
) -> None:  # fmt: skip
    for video, scores in waiting:
        by_clips, by_crops, clips = pool(scores.cpu().numpy(), pooling)
        if not np.isfinite(by_clips[-1]).all():
            raise RunFailed(f"The scores of {table.path(video)} are not finite: {by_clips[-1][:5]}...")
        after = np.concatenate([by_clips, by_crops])
        if not table.multi_label:
            after = target_ranks(after, np.full(len(after), table.targets[video]))
        found[video] = kept[video] = VideoScore(by_clips[-1], after, clips if keep_clips else clips[:0])
        bar.update()
    waiting.clear()
    kept.flush_now_and_then()


class Kept:
    """Scores on disk, in a folder of many files, each of which is whole or not there.

    Args:
        folder: where.
        identity: what the scores depend on; a folder with scores of something else is refused.

    Attributes:
        before: what the folder held when it was opened. Videos that could not be decoded are not among it: they are
            tried again.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder, self.identity = folder, identity
        self.digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.before: Found = {}
        self._waiting: Found = {}
        self._flushed = time.monotonic()

    def open(self) -> list[int]:
        """Makes the folder, or takes up the one that is there; returns the videos that it holds scores of.

        Raises:
            UserError: it holds scores of another evaluation, or another process is at work there.
        """
        file = self.folder / IDENTITY_FILE
        if file.exists():
            refuse_other(json.loads(file.read_text()), self.identity, f"{self.folder} holds the beginning of")
        self.folder.mkdir(parents=True, exist_ok=True)
        lock_folder(self.folder)
        write_whole(file, json.dumps(self.identity, indent=1))
        self.before = {video: value for video, value in self._read().items() if not isinstance(value, str)}
        return sorted(self.before)

    def __setitem__(self, video: int, value: VideoScore | str) -> None:
        self._waiting[video] = value

    def flush_now_and_then(self) -> None:
        if time.monotonic() - self._flushed > KEPT_EVERY_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes down what came since the last time."""
        if not self._waiting:
            return
        self.folder.mkdir(parents=True, exist_ok=True)  # where machines share no disk
        scored = {video: value for video, value in self._waiting.items() if not isinstance(value, str)}
        failed = {video: value for video, value in self._waiting.items() if isinstance(value, str)}
        arrays = {
            "identity": np.array(self.digest),
            "videos": np.array(list(scored), np.int64),
            "failed": np.array(list(failed), np.int64),
            "reasons": np.array(list(failed.values()), np.str_),
        }
        for i, name in enumerate(VideoScore._fields):
            arrays[name] = np.array([value[i] for value in scored.values()])
        file = self.folder / f"{uuid.uuid4().hex}.npz"
        partial = file.with_suffix(".part")
        with open(partial, "wb") as opened:
            np.savez(opened, **arrays)
            opened.flush()
            os.fsync(opened.fileno())
        partial.replace(file)
        self._waiting, self._flushed = {}, time.monotonic()

    def _read(self) -> Found:
        """Returns all that was kept of this evaluation."""
        found: Found = {}
        for file in sorted(self.folder.glob("*.npz")):
            with np.load(file) as arrays:
                if arrays["identity"] != self.digest:  # left by a process whose machine has a disk of its own
                    continue
                values = [arrays[name] for name in VideoScore._fields]
                for i, video in enumerate(arrays["videos"].tolist()):
                    found[video] = VideoScore(*(value[i] for value in values))
                failed = dict(zip(arrays["failed"].tolist(), arrays["reasons"].tolist(), strict=True))
                found = failed | found
        return found


def refuse_other(held: dict[str, Any], identity: dict[str, Any], what: str) -> None:
    """Raises UserFileExistsError, which says the first difference, if `held` is of another evaluation.

    Where checkpoint and list lie does not matter: their content is compared.
    """
    for key, value in identity.items():
        if key not in ("checkpoint", "list") and held.get(key) != value:
            raise UserFileExistsError(
                f"{what} another evaluation ({key}: {held.get(key)}, now {value}); give another output_dir."
            )
