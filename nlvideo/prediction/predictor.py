"""A trained network, ready for videos: the classes of whole videos, or of windows that slide over them.

K classes.
"""

import math
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nlvideo.build.data import build_index
from nlvideo.build.model import check_clip
from nlvideo.build.tables import class_names
from nlvideo.config.schema import PredictConfig
from nlvideo.data.clips.batch import Colours
from nlvideo.data.clips.growing_windows import GrowingWindows
from nlvideo.data.clips.sampling import resized_size
from nlvideo.data.clips.view_sampling import view_indices
from nlvideo.data.clips.view_windows import window_views
from nlvideo.data.clips.views import VideoViews, views_of
from nlvideo.data.decoding.array_video import Frames, at_rate, resize_frame
from nlvideo.data.decoding.opening import load_decoder
from nlvideo.data.decoding.sources import VideoSource, open_source, source_name
from nlvideo.data.decoding.video import Video
from nlvideo.data.lists.class_file import has_names
from nlvideo.evaluation.scoring import VIEWS_PER_STEP, Scorer, pool
from nlvideo.evaluation.settings import merge_settings
from nlvideo.prediction.timeline import Timeline, window_starts
from nlvideo.runtime.errors import RunFailed, UserError
from nlvideo.runtime.precision import resolve_precision, use_tf32
from nlvideo.runtime.progress import progress_bar
from nlvideo.weights.exported_network import ExportedFile, read_network
from nlvideo.weights.trained_network import TrainedCheckpoint

# The data settings that answers depend on, besides data.test; the others name lists or are about training.
DATA_KEYS = [
    f"data.{name}"
    for name in "num_frames frame_stride mean std decoder frame_rate clip_fps time_limit_seconds classes index".split()
]
WINDOW_POOLINGS: dict[str, Callable[..., Any]] = {"mean": np.mean, "max": np.max}

Predictions = list[tuple[str, float]]


def predict(checkpoint: str | os.PathLike, video: VideoSource, top: int = 5) -> Predictions:
    """Returns the best classes of a video and their scores, best first. For several videos, use a Predictor."""
    return Predictor(checkpoint)(video, top)


class Predictor:
    """A checkpoint's network, ready for videos: files, folders of frames as pictures, the bytes of a file, binary file
    objects, or frames in memory with their rate (nlvideo.Frames).

    With the same video, settings, device and number of threads, the scores equal those of nlvideo-evaluate bit for
    bit.

    Args:
        checkpoint: an nlvideo checkpoint, the folder of a run, another project's file of weights, or a file of
            tools/export.py, which runs on the CPU in float32.
        device: None: the GPU if there is one.
        precision: one of nlvideo.config.checks.PRECISIONS; None: the checkpoint's.
        settings: keys as on the command line, such as {"data.test.num_clips": 1}; for all others, the checkpoint's.

    Attributes:
        config: the settings in use.
        classes: names, in the order of the scores.
        multi_label: whether scores are sigmoids, not a softmax.

    Raises:
        UserError: no such checkpoint, or settings that do not fit it.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike,
        device: torch.device | str | None = None,
        precision: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        given = dict(settings or {}) | {"checkpoint": os.fspath(checkpoint)}
        if precision is not None:
            given["precision"] = precision
        _refuse_idle_settings(given)
        trained = read_network(os.fspath(checkpoint), given.get("trusted") is True)
        with redirect_stdout(sys.stderr):  # the settings replaced are printed; stdout is for results
            self.config = merge_settings(PredictConfig, trained.config, given)
            if trained.note:
                print(trained.note)
        if "data.classes" in given:
            trained = _with_names(trained, self.config)
        self.classes, self.multi_label = trained.classes, trained.config.data.is_multi_label
        load_decoder(self.config.data.decoder)
        # Nothing is written beside videos that may be anywhere unless the user says so.
        self._index = build_index(self.config.data) if self.config.data.index is not None else None
        exported = isinstance(trained, ExportedFile)
        available = "cuda" if torch.cuda.is_available() and not exported else "cpu"
        self.device = torch.device(device or available)
        use_tf32(False, self.device)
        if isinstance(trained, ExportedFile):
            _refuse_what_exports_lack(trained, self.config, self.device, given)
        colours = Colours(self.config.data.mean, self.config.data.std)
        self._scorer = Scorer(
            _network_for(trained, self.config),
            self.device,
            resolve_precision(self.config.precision, self.device),
            colours=None if isinstance(trained, ExportedFile) and trained.normalizes else colours,
            multi_label=self.multi_label,
            views_per_step=self.config.views_per_step or VIEWS_PER_STEP[self.device.type],
        )

    def __call__(self, video: VideoSource, top: int = 5) -> Predictions:
        """Returns the best classes of a video and their scores, best first."""
        return self.best(self.scores(video), top)

    def best(self, scores: np.ndarray, top: int) -> Predictions:
        """Returns the `top` best classes of scores (K,), best first."""
        return [(self.classes[k], float(scores[k])) for k in np.argsort(-scores, kind="stable")[:top]]

    def scores(self, video: VideoSource) -> np.ndarray:
        """Returns a video's scores (K,) float32 over the views of data.test: softmax, or sigmoid for multi-label data.

        Raises:
            DecodeError, SlowVideo: the video cannot be decoded, or not within the time limit.
            RunFailed: the scores are not finite.
            UserError: what is in memory is no video, or frames that come one by one are too many to hold.
        """
        data, test = self.config.data, self.config.data.test
        with self.open(video, data.time_limit_seconds) as opened:
            count = opened.num_frames
            wanted = view_indices(
                test.clip_sampling, test.num_clips, count, data.num_frames, data.frame_stride, opened.fps
            )
            views = views_of(opened, wanted, test.short_side, test.crop_size, test.num_crops)
        by_clips, _, _ = pool(self._view_scores(views), test.pooling)
        return finite_scores(by_clips[-1], video)

    def slide(
        self, video: VideoSource, every_seconds: float | None = None, num_crops: int = 1, progress: bool = False
    ) -> Timeline:
        """Returns the scores of sliding windows of num_frames * frame_stride frames; the last one ends with the video.

        A video shorter than a window is looped. Frames are decoded once, and no more are in memory than go through
        the network together, so memory does not grow with the length of the video.

        Args:
            video: a path, or what is in memory.
            every_seconds: between the starts of windows; None: half a window.
            num_crops: of each window.
            progress: show a progress bar.

        Raises:
            DecodeError: the video cannot be decoded. There is no time limit.
            RunFailed: the scores are not finite.
            UserError: data.test.pooling is sum, or every_seconds not above 0.
        """
        self.check_sliding()
        if isinstance(video, Frames) and not video.is_array:
            return self._slide_frames(video, every_seconds, num_crops, progress)
        data, test, found = self.config.data, self.config.data.test, []
        with self.open(video) as opened:
            every, number = self._steps(every_seconds, opened.fps, num_crops)
            starts = window_starts(opened.num_frames, self.window, every)
            name, lengths = Path(source_name(video)).name, (data.num_frames, data.frame_stride)
            crops = test.short_side, test.crop_size, num_crops
            with progress_bar(total=len(starts), desc=name, unit="window", leave=False, disable=not progress) as bar:
                for views in window_views(opened, starts, lengths, number, *crops):
                    found += self.window_scores(views)
                    bar.update(len(views.frame_index))
            return Timeline(starts, self.window, opened.num_frames, opened.fps, finite_scores(np.stack(found), video))

    def _slide_frames(self, frames: Frames, every_seconds: float | None, num_crops: int, progress: bool) -> Timeline:
        """Slides over frames whose number is not known."""
        data, test, found = self.config.data, self.config.data.test, []
        fps = data.clip_fps or frames.fps
        every, number = self._steps(every_seconds, fps, num_crops)
        resized = (
            resize_frame(frame, resized_size(frame.shape[0], frame.shape[1], test.short_side)) for frame in frames
        )
        taken = at_rate(resized, frames.fps, data.clip_fps)
        windows = GrowingWindows(taken, every, (data.num_frames, data.frame_stride), number, test.crop_size, num_crops)
        with progress_bar(desc=frames.name, unit="window", leave=False, disable=not progress) as bar:
            for views in windows:
                found += self.window_scores(views)
                bar.update(len(views.frame_index))
        starts = np.array(windows.starts)
        return Timeline(starts, self.window, windows.num_frames, fps, finite_scores(np.stack(found), frames))

    @property
    def window(self) -> int:
        """Frames that a clip spans."""
        return self.config.data.num_frames * self.config.data.frame_stride

    def _steps(self, every_seconds: float | None, fps: float, num_crops: int) -> tuple[int, int]:
        """Returns the frames from one window to the next, and how many windows are scored together: as many as fill
        whole steps of views, whose number the last bits of scores depend on."""
        if every_seconds is None:
            every = self.window // 2
        elif every_seconds > 0:
            every = round(min(every_seconds * fps, sys.maxsize))
        else:
            raise UserError(f"every_seconds={every_seconds}: must be above 0, or None.")
        return max(every, 1), math.lcm(num_crops, self._scorer.views_per_step) // num_crops

    def window_scores(self, views: VideoViews) -> list[np.ndarray]:
        """Returns the scores (K,) of each clip, pooled over its crops."""
        reduce = WINDOW_POOLINGS[self.config.data.test.pooling]
        return [reduce(scores, 0) for scores in self._view_scores(views)]

    def check_sliding(self) -> None:
        """Raises UserError if the settings do not suit sliding windows."""
        if self.config.data.test.pooling not in WINDOW_POOLINGS:
            raise UserError("data.test.pooling=sum: sliding windows need mean or max.")

    def pool_windows(self, timeline: Timeline) -> np.ndarray:
        """Returns the scores (K,) of a whole video from those of its windows."""
        return WINDOW_POOLINGS[self.config.data.test.pooling](timeline.scores, 0)

    def open(self, video: VideoSource, time_limit: float | None = None) -> Video:
        """Returns an open video.

        Raises:
            DecodeError: it cannot be decoded, or is a folder that cannot be read.
            UserError: what is in memory is no video.
        """
        data = self.config.data
        settings = data.decoder, time_limit, data.frame_rate
        return open_source(video, *settings, clip_fps=data.clip_fps, index=self._index)

    def _view_scores(self, views: VideoViews) -> np.ndarray:
        """Returns (num_clips, num_crops, K)."""
        return self._scorer.view_scores(self._scorer.upload(views)).cpu().numpy()


def _refuse_idle_settings(given: Mapping[str, Any]) -> None:
    for key in given:
        if key.startswith("data.") and not key.startswith("data.test.") and key not in DATA_KEYS:
            raise UserError(f"{key} has no effect on predictions. Choose from: data.test.*, {', '.join(DATA_KEYS)}.")


def _refuse_what_exports_lack(
    exported: ExportedFile, config: PredictConfig, device: torch.device, given: Mapping[str, Any]
) -> None:
    if device.type != "cpu" or config.precision not in ("auto", "float32"):
        raise UserError(f"{exported.path} runs on the CPU in float32, not on {device.type} in {config.precision}.")
    idle = [key for key in ("data.mean", "data.std") if key in given and exported.normalizes]
    if idle:
        raise UserError(f"{idle[0]} has no effect: {exported.path} normalises its clips itself.")


def _with_names(trained: TrainedCheckpoint | ExportedFile, config: PredictConfig) -> TrainedCheckpoint | ExportedFile:
    """Returns the checkpoint with the names in data.classes.

    Raises:
        UserError: it has names already, or another number of classes.
    """
    names, count = class_names(config.data), len(trained.classes)
    if names is None:
        return trained
    if has_names(trained.classes):
        raise UserError(f"data.classes={config.data.classes} has no effect: the checkpoint names its classes itself.")
    if len(names) != count:
        raise UserError(f"data.classes={config.data.classes} names {len(names)} classes, the network has {count}.")
    return trained.named(names)


def _network_for(trained: TrainedCheckpoint | ExportedFile, config: PredictConfig) -> nn.Module:
    """Returns the network, if it accepts the clips of the config."""
    size = config.data.test.crop_size or config.data.test.short_side
    if isinstance(trained, ExportedFile):
        trained.check_clip(config.data.num_frames, size)
        return trained.network
    network = trained.build_network(config.data.num_frames)
    check_clip(network, config.data.num_frames, size, size)
    return network


def finite_scores(scores: np.ndarray, video: VideoSource) -> np.ndarray:
    """Returns the scores; raises RunFailed if they are not finite."""
    if not np.isfinite(scores).all():
        raise RunFailed(f"The scores of {source_name(video)} are not finite.")
    return scores
