"""What can be configured: the dataclasses and their checks.

Defaults live here; the YAML files under configs/ state what differs. Only entry points and builders see these classes;
modules and data sets take plain values.
"""

import math
import multiprocessing
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from nlvideo.runtime.errors import UserError

PRECISIONS = ("auto", "float32", "bfloat16", "float16", "float64")
SCHEDULES = ("steps", "cosine")
RESUMES = ("never", "auto")
VIEW_POOLINGS = ("mean", "sum", "max")


@dataclass
class ModelConfig:
    layout: str = "i3d"  # c2d, i3d, i3d_333 or slow, see LAYOUTS in nlvideo/models/resnet.py
    depth: int = 50  # 50 or 101
    stem: str = "paper"  # how time is downsampled before res3, see STEMS in nlvideo/models/resnet.py
    width: int = 64  # channels of conv1; all others follow
    dropout: float = 0.5  # before the classifier
    frozen_bn: bool = False  # batch norm: fixed statistics, gain and bias
    activation_checkpointing: list[str] = field(default_factory=list)  # stages (res2..res5) recomputed in backward
    pretrained: str | None = None  # null, imagenet, or a file: torchvision weights or an nlvideo checkpoint
    keep_head: bool = True  # of an nlvideo checkpoint with the same classes


@dataclass
class BlockConfig:
    kind: str = "none"  # none, non_local, simplified_non_local, global_context
    places: dict[str, list[str]] = field(default_factory=dict)  # r50, r101: the residual blocks it follows
    mode: str = "embedded_gaussian"  # gaussian, embedded_gaussian, dot_product, concatenation
    extent: str = "spacetime"  # spacetime, space, time
    subsample: bool = True  # keys and values at half the height and width
    pool: str = "before"  # subsample before the 1x1x1 convolutions (released code, Table 2e) or after them (Sec. 3.3)
    scale: bool = False  # logits times D ** -0.5 (released code), embedded_gaussian only
    bias: bool = True  # non_local: theta, phi, g and W_z add one
    norm: bool = True  # non_local: batch norm with zero gain after W_z, else a zero W_z; global_context: layer norm
    init: str = "paper"  # He et al. (paper) or N(0, 0.01) (released)
    group_frames: dict[str, int] = field(default_factory=dict)  # {res3: 4}: attend inside groups of 4 frames only
    ratio: int = 4  # global_context: channels / ratio inside
    pooling: str = "attention"  # global_context: attention or average
    fusion: str = "add"  # global_context: add, or mul, which halves its input when new
    inside: bool = False  # the block stands in the residual branch, before the sum, instead of behind it


@dataclass
class SyntheticConfig:
    """A set that is written when it is first used (nlvideo/data/synthetic/writing.py)."""

    kind: str = (
        "motions"  # or actions: several or none at their times; long_range, short_range, stills: see relations.py
    )
    num_train: int = 640
    num_val: int = 160
    num_frames: int = 48
    height: int = 96
    seed: int = 0
    gap_frames: int = 12  # long_range: from the beginning, which has to be remembered, to the end, which asks
    distance: float = 0.25  # long_range: from where the disc was to where it comes back, as a share of the height
    num_distractors: int = 2  # long_range: at a time, between the beginning and the end


@dataclass
class ViewsConfig:
    num_clips: int = 10
    num_crops: int = 3
    clip_sampling: str = "uniform"  # see view_indices in nlvideo/data/clips/view_sampling.py
    short_side: int = 256
    crop_size: int | None = 256  # null: the whole frame, fully convolutional (Sec. 4.1), with num_crops=1
    pooling: str = "mean"  # of a video's scores over its views: mean, sum or max


@dataclass
class DataConfig:
    root: str = MISSING
    format: str = "list"  # of train and val, see FORMATS in nlvideo/data/lists/published.py
    train: str = "train.csv"  # a list, such as `path label` lines, or a folder with one sub-folder per class
    val: str = "val.csv"
    videos: str = ""  # folder that the lists' paths start from, relative to root
    classes: str | None = None  # file with the class names, see nlvideo/data/lists/class_file.py, relative to root
    num_classes: int | None = None  # for lists without a class file; null: the highest label + 1, or all names
    multi_label: bool = False  # of lists: a video may show several classes or none; charades always is
    num_frames: int = 32
    frame_stride: int = 2
    scale_range: list[int] = field(default_factory=lambda: [256, 320])  # short side in training, both included
    crop_size: int = 224
    flip: bool = True  # off where direction is the label
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # torchvision's, for its weights
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    decoder: str = "pyav"  # pyav, decord or torchcodec
    frame_rate: float = 30.0  # frames a second of videos that are folders of pictures
    clip_fps: float | None = None  # frames a second that are taken by time; null: each video's own rate
    num_workers: int = 4  # per process
    start_method: str | None = None  # of the workers: fork, spawn or forkserver; null is the platform's
    time_limit_seconds: float | None = 120.0  # for one sample; a video that takes longer stops the run
    skip_slow: bool = False  # skip such a video; a run that skips by the clock cannot be reproduced
    max_bad_share: float = 0.02  # training stops when more of its samples than this cannot be decoded
    synthetic: SyntheticConfig | None = None
    test: ViewsConfig = field(default_factory=ViewsConfig)

    @property
    def is_multi_label(self) -> bool:
        """Whether a video may show several classes or none: sigmoid and binary cross-entropy instead of softmax."""
        from nlvideo.data.lists.published import MULTI_LABEL_FORMATS

        return self.multi_label or self.format in MULTI_LABEL_FORMATS


@dataclass
class OptimConfig:
    lr: float = 0.01  # for lr_batch_size clips a step; scaled linearly to batch_size
    lr_batch_size: int = 64
    batch_size: int = 64  # clips in one step, over all devices
    accumulate: int = 1  # micro-batches per step: each device takes its clips in so many parts
    max_steps: int = 400_000
    schedule: str = "steps"  # steps or cosine
    milestones: list[int] = field(default_factory=lambda: [150_000, 300_000])  # lr / 10 at each, for steps
    warmup_steps: int = 0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4  # none on norm parameters
    max_grad_norm: float | None = None  # gradients are scaled down to this norm


@dataclass
class TrainConfig:
    name: str = "default"
    output_dir: str = "outputs/${name}"
    seed: int = 0
    num_devices: int = 1
    precision: str = "auto"
    tf32: bool = False  # CUDA: float32 products with 10 bits of mantissa
    compile: bool = False  # torch.compile
    sync_bn: bool = False  # CUDA: batch norm over the clips of all devices
    precise_bn_steps: int = 0  # validate with statistics of the batch norms over the clips of so many steps
    resume: str = "never"  # never, auto
    dry_run: bool = False  # say what would be trained, try a few steps, write nothing
    log_every_steps: int = 20
    validate_every_steps: int = 5000
    checkpoint_every_steps: int = 1000
    keep: int = 3  # checkpoints; the best is kept besides
    profile_steps: int = 0  # a trace of so many steps, for torch's viewers
    model: ModelConfig = field(default_factory=ModelConfig)
    block: BlockConfig = field(default_factory=BlockConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self):
        # Modes, layouts and places are checked by the network that has them, build_model.
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("resume", self.resume, RESUMES)
        _check_at_least_one(
            self,
            "num_devices log_every_steps validate_every_steps checkpoint_every_steps keep model.width "
            "optim.batch_size optim.accumulate optim.lr_batch_size optim.max_steps",
        )
        _check_not_negative(self, "seed precise_bn_steps profile_steps optim.warmup_steps optim.weight_decay optim.lr")
        _check_share(self, "model.dropout optim.momentum")
        _check_data(self.data)
        _check_optim(self)
        _check_model(self)


@dataclass
class EvaluateConfig:
    checkpoint: Any = MISSING  # a file, a run folder, or several as [a.pt,b.pt] or with wildcards
    output_dir: str | None = None  # null: a folder beside each checkpoint, named by step and views
    num_devices: int = 1
    precision: str = "auto"
    views_per_step: int | None = None  # of one video, through the network together; null: 2 on a CPU, 15 on a GPU
    videos_per_step: int = 1  # whose scores are fetched from the device and kept together
    num_threads: int | None = None  # of each process, which the last bits of scores depend on; null: one for each core
    report: bool = True  # report.html, with pictures
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self):
        _check_choice("precision", self.precision, PRECISIONS)
        _check_at_least_one(self, "num_devices views_per_step videos_per_step num_threads")
        _check_data(self.data)


@dataclass
class PredictConfig:
    checkpoint: str = MISSING
    top: int = 5  # classes of each video, or moment
    json: bool = False  # a line of JSON for each video, and nothing else, on the standard output
    sliding: bool = False  # scores from moment to moment, by windows of num_frames * frame_stride frames
    every_seconds: float | None = None  # from one window to the next; null: half a window
    timeline: str | None = None  # with sliding: a PNG of the scores over time
    write: str | None = None  # an mp4: the video with its classes written on it
    precision: str = "auto"
    views_per_step: int | None = None  # through the network together; null: 2 on a CPU, 15 on a GPU
    num_threads: int | None = None  # null: the machine's cores
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self):
        _check_choice("precision", self.precision, PRECISIONS)
        _check_at_least_one(self, "top views_per_step num_threads")
        _check_data(self.data)
        if self.every_seconds is not None and not 0 < self.every_seconds < math.inf:
            raise UserError(f"every_seconds={self.every_seconds}: must be above 0, or null.")
        for key in ("every_seconds", "timeline"):
            if _value(self, key) is not None and not self.sliding:
                raise UserError(f"{key} has no effect without sliding=true.")


def _check_at_least_one(config: Any, keys: str, prefix: str = "") -> None:
    for key in keys.split():
        value = _value(config, key)
        if value is not None and value < 1:
            raise UserError(f"{prefix}{key}={value}: must be at least 1.")


def _check_not_negative(config: Any, keys: str, prefix: str = "") -> None:
    for key in keys.split():
        value = _value(config, key)
        if not 0 <= value < math.inf:
            raise UserError(f"{prefix}{key}={value}: must be a number that is not negative.")


def _check_share(config: Any, keys: str, prefix: str = "") -> None:
    for key in keys.split():
        value = _value(config, key)
        if not 0 <= value < 1:
            raise UserError(f"{prefix}{key}={value}: must be at least 0 and below 1.")


def _check_data(data: DataConfig) -> None:
    from nlvideo.data.decoding.opening import DECODERS
    from nlvideo.data.lists.published import FORMATS, MULTI_LABEL_FORMATS
    from nlvideo.data.synthetic.writing import SETS

    _check_choice("data.decoder", data.decoder, tuple(DECODERS))
    _check_choice("data.format", data.format, FORMATS)
    if data.multi_label and data.format not in ("list", *MULTI_LABEL_FORMATS):
        raise UserError(f"data.multi_label=true: the videos of data.format={data.format} have one class each.")
    if data.synthetic is not None:
        _check_choice("data.synthetic.kind", data.synthetic.kind, tuple(SETS))
        _check_long_range(data.synthetic)
    _check_at_least_one(data, "num_classes num_frames frame_stride crop_size test.num_clips test.short_side", "data.")
    _check_clips(data)
    _check_views(data)
    _check_loading(data)


def _check_clips(data: DataConfig) -> None:
    for name, values in (("mean", data.mean), ("std", data.std)):
        if len(values) != 3:
            raise UserError(f"data.{name}={values}: must be three numbers, for red, green and blue.")
        if not all(math.isfinite(value) and (value > 0 or name == "mean") for value in values):
            raise UserError(f"data.{name}={values}: must be finite numbers, std above 0.")
    low, high = data.scale_range if len(data.scale_range) == 2 else (0, 0)
    if not data.crop_size <= low <= high:
        raise UserError(
            f"data.scale_range={data.scale_range}: must be two short sides in pixels, the smaller first, "
            f"neither below data.crop_size={data.crop_size}."
        )


def _check_loading(data: DataConfig) -> None:
    _check_not_negative(data, "num_workers", "data.")
    _check_share(data, "max_bad_share", "data.")
    if data.start_method is not None:
        _check_choice("data.start_method", data.start_method, tuple(multiprocessing.get_all_start_methods()))
    if data.clip_fps is not None and not 0 < data.clip_fps < math.inf:
        raise UserError(f"data.clip_fps={data.clip_fps}: must be above 0, or null.")
    if not 0 < data.frame_rate < math.inf:
        raise UserError(f"data.frame_rate={data.frame_rate}: must be above 0.")
    limit = data.time_limit_seconds
    if limit is not None and not 0 < limit < math.inf:
        raise UserError(f"data.time_limit_seconds={limit}: must be a number of seconds above 0, or null.")
    if data.skip_slow and limit is None:
        raise UserError("data.skip_slow=true needs a data.time_limit_seconds.")


def _check_long_range(synthetic: SyntheticConfig) -> None:
    from nlvideo.data.synthetic.relations import LONG_RANGE_OPTIONS

    if synthetic.kind != "long_range":
        for key in LONG_RANGE_OPTIONS:
            if getattr(synthetic, key) != getattr(SyntheticConfig, key):
                raise UserError(
                    f"data.synthetic.{key}={getattr(synthetic, key)} has no effect on kind={synthetic.kind}; "
                    "kind=long_range takes it."
                )
    elif not 0 < synthetic.gap_frames < synthetic.num_frames - 1:
        raise UserError(
            f"data.synthetic.gap_frames={synthetic.gap_frames}: must be at least 1 and leave two or more of "
            f"data.synthetic.num_frames={synthetic.num_frames}."
        )
    elif not 0 <= synthetic.distance <= 0.5:
        raise UserError(f"data.synthetic.distance={synthetic.distance}: must be from 0 to 0.5 of the height.")
    elif synthetic.num_distractors < 0:
        raise UserError(f"data.synthetic.num_distractors={synthetic.num_distractors}: must not be negative.")


def _check_views(data: DataConfig) -> None:
    from nlvideo.data.clips.view_sampling import CLIP_SAMPLINGS, NUM_CROPS

    test = data.test
    _check_choice("data.test.clip_sampling", test.clip_sampling, CLIP_SAMPLINGS)
    _check_choice("data.test.num_crops", test.num_crops, NUM_CROPS)
    if test.crop_size is None and test.num_crops != 1:
        raise UserError(
            f"data.test.num_crops={test.num_crops}: data.test.crop_size=null takes the whole frame, once; give "
            "data.test.num_crops=1."
        )
    if test.crop_size is not None and not 1 <= test.crop_size <= test.short_side:
        raise UserError(
            f"data.test.crop_size={test.crop_size}: must be at least 1 and not exceed data.test.short_side="
            f"{test.short_side}."
        )
    if data.crop_size > test.short_side:
        raise UserError(
            f"data.crop_size={data.crop_size}: must not exceed data.test.short_side={test.short_side}, from which the "
            "centre crops of the validation are taken."
        )
    _check_choice("data.test.pooling", test.pooling, VIEW_POOLINGS)
    if data.is_multi_label and test.pooling == "sum":
        raise UserError(
            "data.test.pooling=sum: the classes of multi-label data have probabilities of their own, whose sum over "
            "views is none; choose from mean, max."
        )


def _check_optim(config: TrainConfig) -> None:
    optim = config.optim
    _check_choice("optim.schedule", optim.schedule, SCHEDULES)
    parts = config.num_devices * optim.accumulate
    if optim.batch_size % parts:
        raise UserError(
            f"optim.batch_size={optim.batch_size} cannot be divided evenly among num_devices={config.num_devices} "
            f"with optim.accumulate={optim.accumulate} micro-batches each; it must be a multiple of {parts}."
        )
    if optim.max_grad_norm is not None and not 0 < optim.max_grad_norm < math.inf:
        raise UserError(f"optim.max_grad_norm={optim.max_grad_norm}: must be above 0, or null.")
    if optim.milestones != sorted(set(optim.milestones)):
        raise UserError(f"optim.milestones={optim.milestones}: must be rising steps.")
    if optim.nesterov and optim.momentum == 0:
        raise UserError("optim.nesterov=true needs a momentum; optim.momentum=0.")


def _check_model(config: TrainConfig) -> None:
    from nlvideo.models.resnet import STAGES

    model = config.model
    for key in ("sync_bn", "precise_bn_steps"):
        if model.frozen_bn and _value(config, key):
            raise UserError(f"{key}={_value(config, key)} has no effect with model.frozen_bn=true.")
    for stage in model.activation_checkpointing:
        _check_choice("model.activation_checkpointing", stage, STAGES)
    if config.compile and model.activation_checkpointing:
        raise UserError(
            f"model.activation_checkpointing={model.activation_checkpointing} does not go together with "
            "compile=true, which decides itself what is computed again."
        )


def _check_choice(key: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise UserError(f"{key}={value}: choose from {', '.join(map(str, allowed))}.")


def _value(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config
