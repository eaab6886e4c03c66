"""A trained network, ready for videos: their classes, whole or from moment to moment.

K classes.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from nlvideo.config.compose import from_container
from nlvideo.config.schema import PredictConfig, TrainConfig
from nlvideo.data.clips.datasets import VideoViews, views_of
from nlvideo.data.clips.sampling import clip_indices, resized_size, view_indices
from nlvideo.data.decoding.opening import load_decoder, open_video
from nlvideo.data.decoding.video import DecodeError, Video
from nlvideo.evaluate import VIEWS_PER_STEP, load_network, merge_data
from nlvideo.evaluation.scoring import Scorer, pool
from nlvideo.runtime.errors import RunFailed, UserError
from nlvideo.runtime.precision import resolve_precision, use_tf32
from nlvideo.weights.checkpoint_file import load_checkpoint

BLOCK_BYTES = 2**28  # of frames in memory together; every block costs the way from the keyframe before it
# Of the data settings, these say how a video is scored; the others name lists and how to train.
DATA_KEYS = [
    f"data.{name}" for name in "num_frames frame_stride mean std decoder frame_rate time_limit_seconds".split()
]

Predictions = list[tuple[str, float]]


def predict(checkpoint: str | os.PathLike, path: str | os.PathLike, top: int = 5) -> Predictions:
    """Returns the best classes of a video and their scores, as Predictor does, which keeps the network for many."""
    return Predictor(checkpoint)(path, top)


class Stretch(NamedTuple):
    """A part of a video that shows the same best class."""

    start: float  # seconds
    end: float
    best: int  # class
    score: float  # of it, the mean over the part's windows


class Timeline(NamedTuple):
    """Scores of windows that slide over a video. Seconds are frames at its average rate."""

    starts: np.ndarray  # (n,) int64, the first frame of each window
    window: int  # frames
    num_frames: int  # of the video
    fps: float
    scores: np.ndarray  # (n, K) float32

    def edges(self) -> np.ndarray:
        """Returns the frames (n + 1,) where each window's part of the video begins and ends.

        Windows overlap, or leave gaps; a moment belongs to the one whose middle is nearest.
        """
        between = (self.starts[:-1] + self.starts[1:] + self.window) // 2
        return np.concatenate([[0], between, [self.num_frames]])

    def stretches(self) -> list[Stretch]:
        """Returns the parts of the video with the same best class, in the order of time."""
        best, edges = self.scores.argmax(1), self.edges() / self.fps
        firsts = np.flatnonzero(np.r_[True, best[1:] != best[:-1]])
        return [
            Stretch(edges[i], edges[j], int(best[i]), float(self.scores[i:j, best[i]].mean()))
            for i, j in zip(firsts, [*firsts[1:], len(best)], strict=True)
        ]


class Predictor:
    """A checkpoint's network, ready for videos: files, or folders of frames as pictures.

    The same video, settings, device and number of threads give the scores that nlvideo-evaluate writes, bit for bit.

    Args:
        checkpoint: an nlvideo checkpoint.
        device: None takes the GPU if there is one.
        precision: one of nlvideo.config.schema.PRECISIONS; None is the checkpoint's.
        settings: keys as on the command line, such as {"data.test.num_clips": 1}; the others are the checkpoint's.

    Attributes:
        config: the settings in use.
        classes: names, in the order of the scores.

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
        given |= {} if precision is None else {"precision": precision}
        for key in given:
            if key.startswith("data.") and not key.startswith("data.test.") and key not in DATA_KEYS:
                raise UserError(
                    f"{key} has no effect on predictions. Choose from: data.test.*, {', '.join(DATA_KEYS)}."
                )
        content = load_checkpoint(checkpoint)
        trained = from_container(TrainConfig, content["config"])
        with redirect_stdout(sys.stderr):  # it prints what is replaced; the standard output is for results
            self.config: PredictConfig = merge_data(PredictConfig, trained, given)
        self.classes, self.multi_label = list(content["classes"]), trained.data.multi_label
        load_decoder(self.config.data.decoder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        use_tf32(False, self.device)
        self._scorer = Scorer(
            load_network(content, trained, self.config),
            self.device,
            resolve_precision(self.config.precision, self.device),
            mean=self.config.data.mean,
            std=self.config.data.std,
            multi_label=self.multi_label,
            views_per_step=self.config.views_per_step or VIEWS_PER_STEP[self.device.type],
        )

    def __call__(self, path: str | os.PathLike, top: int = 5) -> Predictions:
        """Returns the best classes of a video and their scores, the best first."""
        return self.best(self.scores(path), top)

    def best(self, scores: np.ndarray, top: int) -> Predictions:
        """Returns the `top` best classes of scores (K,), the best first."""
        return [(self.classes[k], float(scores[k])) for k in np.argsort(-scores, kind="stable")[:top]]

    def scores(self, path: str | os.PathLike) -> np.ndarray:
        """Returns a video's scores (K,) float32 over the views of data.test: softmax, or sigmoid for multi-label data.

        Raises:
            DecodeError, SlowVideo: the video cannot be decoded, or not in time.
            RunFailed: the scores are not finite.
        """
        data, test = self.config.data, self.config.data.test
        with self.open(path, data.time_limit_seconds) as video:
            count = video.num_frames
            wanted = view_indices(
                test.clip_sampling, test.num_clips, count, data.num_frames, data.frame_stride, video.fps
            )
            views = self._views(video, wanted, test.num_crops)
        scores = pool(self._scorer.view_scores(views).cpu().numpy(), test.pooling)[0][-1]
        return _finite(scores, path)

    def slide(
        self, path: str | os.PathLike, every_seconds: float | None = None, num_crops: int = 1, progress: bool = False
    ) -> Timeline:
        """Returns the scores of windows of num_frames * frame_stride frames, one every so many seconds and a last one
        at the end; a shorter video is looped over.

        Frames are read in blocks of BLOCK_BYTES, or one window if that is more, so a long video takes no more memory.

        Args:
            every_seconds: None is half a window.
            num_crops: of each window.
            progress: shows how far it is.

        Raises:
            DecodeError: the video cannot be decoded. There is no time limit.
            RunFailed: the scores are not finite.
        """
        if self.config.data.test.pooling == "sum":
            raise UserError("data.test.pooling=sum: scores from moment to moment need mean or max.")
        data, reduce, found = self.config.data, reduction(self.config), []
        window = data.num_frames * data.frame_stride
        with self.open(path) as video:
            every = window // 2 if every_seconds is None else round(every_seconds * video.fps)
            starts = window_starts(video.num_frames, window, max(every, 1))
            height, width = resized_size(video.height, video.width, data.test.short_side)
            with progress_bar(progress, total=len(starts), desc=Path(path).name, unit="window", leave=False) as bar:
                for some in blocks_of(starts, window, BLOCK_BYTES // (3 * height * width)):
                    wanted = [clip_indices(s, video.num_frames, data.num_frames, data.frame_stride) for s in some]
                    views = self._views(video, np.stack(wanted), num_crops)
                    found += [reduce(crops, 0) for crops in self._crop_scores(views, bar)]
            return Timeline(starts, window, video.num_frames, video.fps, _finite(np.stack(found), path))

    @contextmanager
    def open(self, path: str | os.PathLike, time_limit: float | None = None) -> Iterator[Video]:
        """Yields an open video; a folder that may not be read is a DecodeError as all else is."""
        try:
            video = open_video(os.fspath(path), self.config.data.decoder, time_limit, self.config.data.frame_rate)
        except OSError as error:
            raise DecodeError(os.fspath(path), error.strerror or str(error)) from None
        with video:
            yield video

    def _views(self, video: Video, wanted: np.ndarray, num_crops: int) -> VideoViews:
        test = self.config.data.test
        return views_of(video, wanted, test.short_side, test.crop_size, num_crops)

    def _crop_scores(self, views: VideoViews, bar: tqdm) -> np.ndarray:
        """Returns (num_clips, num_crops, K)."""
        found, crops = [], len(views.crops)
        for clips in views.chunks(self._scorer.views_per_step):
            found.append(self._scorer.clip_scores(clips).cpu())
            bar.update(len(clips) / crops)
        return torch.cat(found).unflatten(0, (-1, crops)).numpy()


def window_starts(num_video_frames: int, window: int, every: int) -> np.ndarray:
    """Returns the first frames (n,) of windows: every so many frames, and the last that fits."""
    last = max(num_video_frames - window, 0)
    return np.unique([*range(0, last, every), last])


def blocks_of(starts: np.ndarray, window: int, limit: int) -> Iterator[np.ndarray]:
    """Yields consecutive starts whose windows cover at most `limit` frames, or one of them."""
    first = 0
    while first < len(starts):
        stop = max(first + 1, int(np.searchsorted(starts, starts[first] + limit - window, "right")))
        yield starts[first:stop]
        first = stop


def reduction(config: PredictConfig) -> Any:
    return {"mean": np.mean, "max": np.max}[config.data.test.pooling]


def _finite(scores: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise RunFailed(f"The scores of {os.fspath(path)} are not finite.")
    return scores


def progress_bar(shown: bool, items: Iterable | None = None, **options: Any) -> tqdm:
    return tqdm(items, disable=not shown, mininterval=0.2 if sys.stderr.isatty() else 10, **options)
