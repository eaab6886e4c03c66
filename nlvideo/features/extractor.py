"""A checkpoint's network that turns videos into features, snippet by snippet."""

import copy
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlvideo.build.data import build_index
from nlvideo.build.model import check_clip
from nlvideo.config.schema import ExtractConfig
from nlvideo.data.clips.batch import Colours, Normalizer
from nlvideo.data.decoding.opening import load_decoder
from nlvideo.data.decoding.sources import VideoSource, open_source
from nlvideo.data.decoding.video import DecodeError
from nlvideo.features.crops import Place, crop_places, cut_places, stack_views
from nlvideo.features.frame_source import FrameSource, needed_frames, plan_for, size_for, source_of
from nlvideo.features.network_outputs import outputs_of
from nlvideo.features.presets import extract_settings, recipe_of
from nlvideo.features.snippets import SnippetPlan, snippets_of
from nlvideo.models.resnet import VideoResNet
from nlvideo.runtime.copy_stream import CopyStream, HostCopy
from nlvideo.runtime.cores import cores_of_rank
from nlvideo.runtime.errors import RunFailed, UserError
from nlvideo.runtime.precision import autocast, input_dtype, resolve_precision, use_tf32
from nlvideo.weights.exported_network import ExportedFile, read_network
from nlvideo.weights.trained_network import TrainedCheckpoint

# The last bits of features depend on it, so it is fixed, and recorded.
VIEWS_PER_PASS = {"cpu": 2, "cuda": 20}
# Keys of the command that say nothing of one video.
COMMAND_KEYS = "checkpoint preset videos output format shard num_devices videos_at_once".split()
MOST_VIDEOS_AT_ONCE = 8  # on a GPU: more threads hold each other up
# Of one video, beyond which no memory is enough: pixels of uint8 take 3 bytes, normalised ones up to 12, and the layers
# of a network more.
MOST_PIXELS = 2**30  # of a snippet: 32 frames of 7680x4320
MOST_FRAMES = 10**8  # 46 days at 25 frames a second
PASSES_AHEAD = 2  # that are launched before the results of an earlier one are fetched


class NotFinite(RunFailed):
    """The features of a video are not finite. Has `reason`."""

    def __init__(self, video: str, dtype: np.dtype):
        self.reason = f"its features are not finite in {dtype}"
        super().__init__(f"{video}: {self.reason}")


class FeatureExtractor:
    """A network that is ready for videos.

    Args:
        checkpoint: an nlvideo checkpoint, the folder of a run, another project's file of weights, or with layer=head
            an .onnx or, with {"trusted": True}, .pt2 file of tools/export.py, which runs on the CPU.
        preset: "paper" or "rtfm".
        device: None: the GPU if there is one.
        settings: keys as on the command line, such as {"crops": 1, "snippet.step_seconds": 1}.

    Attributes:
        config: the settings in use.
        recipe: which pixels are used.

    Raises:
        UserError: no such checkpoint, or settings that do not fit it.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike,
        preset: str = "paper",
        device: torch.device | str | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        for key in settings or {}:
            if key in COMMAND_KEYS:
                raise UserError(f"{key} has no effect in the settings of a FeatureExtractor.")
        given = dict(settings or {}) | {"checkpoint": os.fspath(checkpoint), "preset": preset}
        for place in ("videos", "output"):  # of the command
            given.setdefault(place, "")
        trained = read_network(os.fspath(checkpoint), given.get("trusted") is True)
        with redirect_stdout(sys.stderr):
            if trained.note:
                print(trained.note)
            self._prepare(extract_settings(trained.config, given), trained, device)

    @classmethod
    def from_config(
        cls, config: ExtractConfig, trained: TrainedCheckpoint | ExportedFile, device: torch.device
    ) -> "FeatureExtractor":
        """Returns the extractor of settings that have been merged already."""
        made = cls.__new__(cls)
        made._prepare(config, trained, device)
        return made

    def _prepare(
        self, config: ExtractConfig, trained: TrainedCheckpoint | ExportedFile, device: torch.device | str | None
    ) -> None:
        if isinstance(trained, ExportedFile):
            config, device = trained.extraction(config), "cpu"
        self.config, self.recipe = config, recipe_of(config)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        load_decoder(config.data.decoder)
        self._index = build_index(config.data) if config.data.index is not None else None
        use_tf32(False, self.device)
        self.dtype = resolve_precision(config.precision, self.device)
        self.views_per_step = config.views_per_step or VIEWS_PER_PASS[self.device.type]
        self.multi_label = trained.config.data.is_multi_label
        size, floating = self.recipe.crop_size or self.recipe.short_side, input_dtype(self.dtype)
        self._normalize: Callable[[Tensor], Tensor] = Normalizer(
            Colours(config.data.mean, config.data.std), self.device, floating
        )
        if isinstance(trained, ExportedFile):
            trained.check_clip(self.recipe.frames, size, "snippet.frames, crop_size")
            self.network = trained.network
            if trained.normalizes:
                self._normalize = lambda clips: clips
        else:
            network = trained.build_network(self.recipe.frames)
            _check_fit(network, self.recipe.frames, size)
            self.network = network.to(self.device, floating, memory_format=torch.channels_last_3d).eval()
        self._copy = CopyStream(self.device)

    def lanes(self, num_videos: int) -> list["FeatureExtractor"]:
        """Returns an extractor for each thread that shall read videos at the same time; they share the network."""
        most = 1 if self.device.type == "cpu" else max(1, min(MOST_VIDEOS_AT_ONCE, cores_of_rank() // 2))
        number = max(1, min(num_videos, self.config.videos_at_once or most))
        others = [copy.copy(self) for _ in range(number - 1)]
        for other in others:
            other._index = copy.copy(self._index)  # with a connection of its own
        return [self, *others]

    def __call__(self, video: VideoSource) -> np.ndarray:
        """Returns a video's features (snippets, crops, channels), or (snippets, crops, T, H, W, channels) of positions;
        of the head, its logits (snippets, crops, classes).

        Raises:
            DecodeError: the video cannot be decoded, or is shorter than a snippet.
            NotFinite: the features are not finite.
            UserError: what is in memory is no video.
        """
        with self.open(video) as source:
            return np.stack([arrays[0] for arrays in self.rows(source, self.plan(source))])

    @contextmanager
    def open(self, video: VideoSource, part: tuple[float, float] | None = None) -> Iterator[FrameSource]:
        """Yields the frames of a video, or of a part of one from start to end in seconds.

        Raises:
            DecodeError: it cannot be decoded, is a folder that cannot be read, or is neither file nor folder.
        """
        data = self.config.data
        settings = data.decoder, None, data.frame_rate
        with open_source(video, *settings, part=part, clip_fps=data.clip_fps, index=self._index) as opened:
            yield source_of(opened)

    def plan(self, source: FrameSource) -> SnippetPlan:
        """Returns the snippets of a video.

        Raises:
            DecodeError: it is too short for one, or has frames so large or so many that no memory is enough.
        """
        plan = plan_for(self.recipe, source.fps)
        wanted = max(plan.span, self.recipe.min_frames)
        if source.num_frames < wanted:
            preset = f" with preset={self.config.preset}" if self.recipe.min_frames > plan.span else ""
            plural = "" if source.num_frames == 1 else "s"
            reason = f"it has {source.num_frames} frame{plural}, and features{preset} take at least {wanted}"
            raise DecodeError(source.name, reason)
        height, width = size_for(self.recipe, source)
        if plan.frames * height * width > MOST_PIXELS:
            reason = f"its frames of {source.width}x{source.height} become {width}x{height}"
            raise DecodeError(source.name, f"{reason}, too large for snippets of {plan.frames} frames")
        if source.num_frames > MOST_FRAMES:
            raise DecodeError(source.name, f"it has {source.num_frames} frames, and at most {MOST_FRAMES} are taken")
        return plan

    def rows(
        self, source: FrameSource, plan: SnippetPlan, stopped: Callable[[], Any] = lambda: False
    ) -> Iterator[list[np.ndarray]]:
        """Yields the arrays of one snippet after the other, each (crops, ...) in the dtype of the settings.

        Ends early when `stopped` says so. Views go through the network views_per_step at a time from the first of the
        video on, so no value depends on what else is computed.

        Raises:
            DecodeError: a frame cannot be decoded.
            NotFinite: a value is not finite.
            RunFailed: the device has no memory.
        """
        dtype, waiting = np.dtype(self.config.dtype), list[list[np.ndarray]]()
        crops = len(self.places(source))
        for outputs in self.passes(source, plan):
            waiting += zip(*outputs, strict=True)  # type: ignore[arg-type]
            while len(waiting) >= crops:
                snippet, waiting = waiting[:crops], waiting[crops:]
                with np.errstate(over="ignore"):  # said below
                    arrays = [np.stack(values).astype(dtype) for values in zip(*snippet, strict=True)]
                if not all(np.isfinite(array).all() for array in arrays):
                    raise NotFinite(source.name, dtype)
                yield arrays
            if stopped():
                return

    def places(self, source: FrameSource) -> list[Place]:
        """Returns the crops of each frame."""
        return crop_places(self.recipe.crops, *size_for(self.recipe, source), self.recipe.crop_size)

    def passes(self, source: FrameSource, plan: SnippetPlan) -> Iterator[list[np.ndarray]]:
        """Yields what comes of each pass through the network, each array (views, ...)."""
        views, launched = self._views(source, plan), deque[list[HostCopy]]()
        while batch := list(islice(views, self.views_per_step)):
            launched.append([HostCopy(output) for output in self.outputs(stack_views(batch))])
            if len(launched) > PASSES_AHEAD:
                yield [copy.read().numpy() for copy in launched.popleft()]
        for copies in launched:
            yield [copy.read().numpy() for copy in copies]

    def _views(self, source: FrameSource, plan: SnippetPlan) -> Iterator[Tensor]:
        """Yields every crop (T, H, W, 3) of every snippet on the device, normalised: once, not crop by crop."""
        places = self.places(source)
        for frames in snippets_of(needed_frames(source, plan, self.recipe), plan):
            (there,) = self._copy(frames.pin_memory() if self.device.type == "cuda" else frames)
            yield from cut_places(self._normalize(stack_views([there]))[0].permute(1, 2, 3, 0), places)

    @torch.inference_mode()
    def outputs(self, clips: Tensor) -> list[Tensor]:
        """Returns what is written of normalised clips (N, 3, T, H, W), each (N, ...)."""
        config = self.config
        try:
            with autocast(self.device, self.dtype):
                return outputs_of(self.network, clips, config.layer, config.positions, self.multi_label)
        except torch.OutOfMemoryError:
            if self.recipe.crops == "full":
                raise  # other videos may have smaller frames
            raise RunFailed(
                f"The device has no memory for {len(clips)} views of {'x'.join(map(str, clips.shape[2:]))} at a time; "
                f"use a smaller views_per_step={self.views_per_step}, or free it of other programs."
            ) from None


def _check_fit(network: VideoResNet, frames: int, size: int) -> None:
    """Raises UserError if a block of the network cannot take clips of this size."""
    try:
        check_clip(network, frames, size, size)
    except UserError as error:
        reason = str(error).partition(";")[0].removesuffix(".")  # without advice for training
        raise UserError(f"The network cannot take snippets of {frames} frames of {size}x{size} ({reason}).") from None
