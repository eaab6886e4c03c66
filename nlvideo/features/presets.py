"""From a preset, a checkpoint and what the user gave to one recipe: which pixels of a video make its features."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nlvideo.config.schema import ExtractConfig, TrainConfig
from nlvideo.evaluation.settings import merge_settings
from nlvideo.features.crops import Crops
from nlvideo.runtime.errors import UserError

# The data settings that features depend on, and data.root, where the paths of a list start.
EXTRACT_DATA_KEYS = [f"data.{name}" for name in "root mean std decoder frame_rate clip_fps index".split()]


@dataclass(frozen=True)
class Preset:
    """How published features are made. None is the checkpoint's.

    Attributes:
        frames, stride, step: of snippets, in frames.
        min_frames: of a video; a shorter one is refused although a snippet may fit.
        size: (height, width) that frames are forced to, whatever their shape; None: their aspect is kept.
        short_side: that frames are resized to if their aspect is kept.
        lanczos: resized by Pillow's LANCZOS; otherwise bilinearly with antialiasing, as for training.
        crops: a choice of FEATURE_CROPS.
        colours: mean and standard deviation of each channel, between 0 and 1.
        precision: that the network computes in.
    """

    frames: int | None = None
    stride: int | None = None
    step: int | None = None
    min_frames: int = 1
    size: tuple[int, int] | None = None
    short_side: int = 256
    lanczos: bool = False
    crops: Crops = 3
    colours: float | None = None
    precision: str | None = None


PRESETS = {
    # Sec. 4.1 of the paper, snippet by snippet: short side 256, three crops of 256.
    "paper": Preset(),
    # What RTFM and its successors are trained on (extract_features.py of I3D_Feature_Extraction_resnet): the start of
    # the last snippet is the last multiple of 16 that leaves 16 frames, and `assert frame_cnt > chunk_size`. Values
    # 2x/255 - 1 are those of mean and std 1/2.
    "rtfm": Preset(16, 1, 16, 17, (256, 340), lanczos=True, crops=10, colours=0.5, precision="float32"),
}
SMALL_CROP, LARGE_CROP = 224, 256  # of short side 256: the corners of the small ones differ


@dataclass(frozen=True)
class Recipe:
    """Which frames and which part of them make the features of a video.

    Attributes:
        frames: of a snippet.
        stride: from one of them to the next, in frames, or in seconds if `stride_by_time`.
        step: from one snippet to the next, in frames, or in seconds if `step_by_time`; None: frames times stride.
        min_frames, size, short_side, lanczos: as of a Preset.
        crops: a choice of FEATURE_CROPS.
        crop_size: of the square crops; None: the whole frame.
    """

    frames: int
    stride: float
    stride_by_time: bool
    step: float | None
    step_by_time: bool
    min_frames: int
    size: tuple[int, int] | None
    short_side: int
    lanczos: bool
    crops: Crops
    crop_size: int | None


def extract_settings(trained: TrainConfig, given: Mapping[str, Any]) -> ExtractConfig:
    """Returns the settings: those given, over the preset's, over the checkpoint's.

    Raises:
        UserError: a key or value that is not allowed, or that would have no effect.
    """
    for key in given:
        if key.startswith("data.") and key not in EXTRACT_DATA_KEYS:
            raise UserError(f"{key} has no effect on features. Choose from: {', '.join(EXTRACT_DATA_KEYS)}.")
    # An unknown one is refused with its choices, below.
    preset = PRESETS.get(str(given.get("preset")), PRESETS["paper"])
    data = trained.data
    if preset.colours is not None:
        data = replace(data, mean=[preset.colours] * 3, std=[preset.colours] * 3, clip_fps=None)
    before = replace(trained, data=data, precision=preset.precision or trained.precision)
    config = merge_settings(ExtractConfig, before, dict(given))
    return replace(config, data=replace(config.data, root=given.get("data.root", "")))  # not that of the training


def recipe_of(config: ExtractConfig) -> Recipe:
    """Returns the recipe that the settings say.

    Raises:
        UserError: crops that are larger than the frames.
    """
    preset, snippet = PRESETS[config.preset], config.snippet
    frames = snippet.frames or preset.frames or config.data.num_frames
    crops = config.crops or preset.crops
    smallest = min(preset.size) if preset.size else config.short_side or preset.short_side
    size = None
    if crops != "full":
        size = config.crop_size or (LARGE_CROP if crops in (1, 3) and preset.size is None else SMALL_CROP)
        if size > smallest:
            raise UserError(f"crop_size={size}: must not exceed the frames' short side, {smallest}.")
    return Recipe(
        frames,
        stride=snippet.stride_seconds or snippet.stride or preset.stride or config.data.frame_stride,
        stride_by_time=snippet.stride_seconds is not None,
        step=snippet.step_seconds or snippet.step or preset.step,
        step_by_time=snippet.step_seconds is not None,
        min_frames=preset.min_frames,
        size=preset.size,
        short_side=smallest,
        lanczos=preset.lanczos,
        crops=crops,
        crop_size=size,
    )
