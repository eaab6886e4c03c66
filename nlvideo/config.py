"""What can be configured: the dataclasses, their checks, and the way from Hydra to them.

Defaults stand here, the YAML files under configs/ say what differs. Entry points and builders are the only ones
that see these classes; modules and data sets take plain values.
"""

import dataclasses
import difflib
import functools
import importlib.resources
import math
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nlvideo.distributed import USER_ERRORS, message_of

PRECISIONS = ("auto", "float32", "bfloat16", "float16", "float64")
SCHEDULES = ("steps", "cosine")
RESUMES = ("never", "auto")
POOLINGS = ("mean", "sum", "max")


@dataclass
class ModelConfig:
    layout: str = "i3d"  # c2d or i3d, see LAYOUTS in nlvideo/models/resnet.py
    depth: int = 50  # 50 or 101
    stem: str = "paper"  # how time is thinned out before res3, see STEMS in nlvideo/models/resnet.py
    width: int = 64  # channels of conv1; all others follow
    dropout: float = 0.5  # before the classifier
    frozen_bn: bool = False  # batch norm: fixed statistics, gain and bias
    activation_checkpointing: list[str] = field(default_factory=list)  # stages (res2..res5) computed again for backward
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
    """A set that is written when it is first used (nlvideo/data/synthetic.py)."""

    kind: str = "motions"  # motions: one class a video; actions: several or none at their times, as Charades has them
    num_train: int = 640
    num_val: int = 160
    num_frames: int = 48
    height: int = 96
    seed: int = 0


@dataclass
class ViewsConfig:
    num_clips: int = 10
    num_crops: int = 3
    clip_sampling: str = "uniform"  # see view_indices in nlvideo/data/sampling.py
    short_side: int = 256
    crop_size: int | None = 256  # null: the whole frame, fully convolutional (Sec. 4.1), with num_crops=1
    pooling: str = "mean"  # of a video's scores over its views: mean, sum or max


@dataclass
class DataConfig:
    root: str = MISSING
    format: str = "list"  # of train and val, see FORMATS in nlvideo/data/published.py
    train: str = "train.csv"  # a list of `path label` lines, or a folder with one sub-folder per class
    val: str = "val.csv"
    videos: str = ""  # folder that the lists' paths start from, relative to root
    classes: str | None = None  # file with one class name a line, or the format's own, relative to root
    num_classes: int | None = None  # for lists without a class file; null: the highest label + 1
    num_frames: int = 32
    frame_stride: int = 2
    scale_range: list[int] = field(default_factory=lambda: [256, 320])  # short side in training, both included
    crop_size: int = 224
    flip: bool = True  # off where direction is the label
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # torchvision's, for its weights
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    decoder: str = "pyav"  # pyav, decord or torchcodec
    frame_rate: float = 30.0  # frames a second of videos that are folders of pictures
    num_workers: int = 4  # per process
    start_method: str | None = None  # of the workers: fork, spawn or forkserver; null is the platform's
    time_limit_seconds: float | None = 120.0  # for one sample; a video that takes longer stops the run
    skip_slow: bool = False  # go on without such a video; what is skipped on a clock cannot be reproduced
    max_bad_share: float = 0.02  # training stops when more of its samples than this cannot be decoded
    synthetic: SyntheticConfig | None = None
    test: ViewsConfig = field(default_factory=ViewsConfig)

    @property
    def multi_label(self) -> bool:
        """Whether a video may show several classes or none: sigmoid and binary cross-entropy instead of softmax."""
        from nlvideo.data.published import MULTI_LABEL_FORMATS

        return self.format in MULTI_LABEL_FORMATS


@dataclass
class OptimConfig:
    lr: float = 0.01  # for lr_batch_size clips a step; scaled linearly to batch_size
    lr_batch_size: int = 64
    batch_size: int = 64  # clips in one step, over all devices
    accumulate: int = 1  # passes in one step: each device takes its clips in so many parts
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
        from nlvideo.data.decode import DECODERS
        from nlvideo.data.published import FORMATS
        from nlvideo.data.sampling import CLIP_SAMPLINGS, NUM_CROPS
        from nlvideo.data.synthetic import SETS
        from nlvideo.models.resnet import STAGES

        # Modes, layouts and places are checked by the network that has them, build_model.
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("resume", self.resume, RESUMES)
        _check_choice("optim.schedule", self.optim.schedule, SCHEDULES)
        _check_choice("data.test.clip_sampling", self.data.test.clip_sampling, CLIP_SAMPLINGS)
        _check_choice("data.test.num_crops", self.data.test.num_crops, NUM_CROPS)
        _check_choice("data.decoder", self.data.decoder, DECODERS)
        _check_choice("data.format", self.data.format, FORMATS)
        if self.data.synthetic is not None:
            _check_choice("data.synthetic.kind", self.data.synthetic.kind, SETS)
        if not 0 < self.data.frame_rate < math.inf:
            raise ValueError(f"data.frame_rate={self.data.frame_rate}: must be above 0.")
        if self.data.start_method is not None:
            _check_choice("data.start_method", self.data.start_method, multiprocessing.get_all_start_methods())
        limit = self.data.time_limit_seconds
        if limit is not None and not 0 < limit < math.inf:
            raise ValueError(f"data.time_limit_seconds={limit}: must be a number of seconds above 0, or null.")
        if self.data.skip_slow and limit is None:
            raise ValueError("data.skip_slow=true needs a data.time_limit_seconds.")
        for key in (
            "num_devices log_every_steps validate_every_steps checkpoint_every_steps model.width "
            "data.num_frames data.frame_stride data.crop_size data.test.num_clips data.test.short_side "
            "optim.batch_size optim.accumulate optim.lr_batch_size optim.max_steps keep"
        ).split():
            value = _value(self, key)
            if value < 1:
                raise ValueError(f"{key}={value}: must be at least 1.")
        for key in "data.std data.mean".split():
            if not all(math.isfinite(v) and (v > 0 or key == "data.mean") for v in _value(self, key)):
                raise ValueError(f"{key}={_value(self, key)}: must be finite numbers, std above 0.")
        if self.data.num_classes is not None and self.data.num_classes < 1:
            raise ValueError(f"data.num_classes={self.data.num_classes}: must be at least 1.")
        for key in (
            "seed precise_bn_steps profile_steps data.num_workers optim.warmup_steps optim.weight_decay optim.lr"
        ).split():
            value = _value(self, key)
            if not 0 <= value < math.inf:
                raise ValueError(f"{key}={value}: must be a number that is not negative.")
        for key in "model.dropout data.max_bad_share optim.momentum".split():
            value = _value(self, key)
            if not 0 <= value < 1:
                raise ValueError(f"{key}={value}: must be at least 0 and below 1.")
        low, high = self.data.scale_range if len(self.data.scale_range) == 2 else (0, 0)
        if not self.data.crop_size <= low <= high:
            raise ValueError(
                f"data.scale_range={self.data.scale_range}: must be two short sides in pixels, the smaller first, "
                f"neither below data.crop_size={self.data.crop_size}."
            )
        _check_views(self.data)
        if self.data.crop_size > self.data.test.short_side:
            raise ValueError(
                f"data.crop_size={self.data.crop_size}: must not exceed data.test.short_side="
                f"{self.data.test.short_side}, from which the centre crops of the validation are taken."
            )
        for key in ("data.mean", "data.std"):
            if len(_value(self, key)) != 3:
                raise ValueError(f"{key}={_value(self, key)}: must be three numbers, for red, green and blue.")
        passes = self.num_devices * self.optim.accumulate
        if self.optim.batch_size % passes:
            raise ValueError(
                f"optim.batch_size={self.optim.batch_size} cannot be shared evenly by num_devices={self.num_devices} "
                f"with optim.accumulate={self.optim.accumulate} passes each; it must be a multiple of {passes}."
            )
        if self.optim.max_grad_norm is not None and not 0 < self.optim.max_grad_norm < math.inf:
            raise ValueError(f"optim.max_grad_norm={self.optim.max_grad_norm}: must be above 0, or null.")
        for key in ("sync_bn", "precise_bn_steps"):
            if self.model.frozen_bn and _value(self, key):
                raise ValueError(f"{key}={_value(self, key)} has no effect with model.frozen_bn=true.")
        for stage in self.model.activation_checkpointing:
            _check_choice("model.activation_checkpointing", stage, STAGES)
        if self.compile and self.model.activation_checkpointing:
            raise ValueError(
                f"model.activation_checkpointing={self.model.activation_checkpointing} does not go together with "
                "compile=true, which decides itself what is computed again."
            )
        if self.optim.milestones != sorted(set(self.optim.milestones)):
            raise ValueError(f"optim.milestones={self.optim.milestones}: must be rising steps.")
        if self.optim.nesterov and self.optim.momentum == 0:
            raise ValueError("optim.nesterov=true needs a momentum; optim.momentum=0.")


@dataclass
class EvaluateConfig:
    checkpoint: Any = MISSING  # a file, or several as [a.pt,b.pt] or with wildcards
    output_dir: str | None = None  # null: a folder beside each checkpoint, named by step and views
    num_devices: int = 1
    precision: str = "auto"
    views_per_step: int | None = None  # of one video, through the network together; null: 2 on a CPU, 15 on a GPU
    videos_per_step: int = 1  # whose scores are fetched from the device and kept together
    num_threads: int | None = (
        None  # of each process; null: the machine's cores. Scores are the same for the same number
    )
    report: bool = True  # report.html, with pictures
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self):
        _check_choice("precision", self.precision, PRECISIONS)
        for key in ("num_devices", "views_per_step", "videos_per_step", "num_threads"):
            value = _value(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}={value}: must be at least 1.")


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
        for key in ("top", "views_per_step", "num_threads"):
            value = _value(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}={value}: must be at least 1.")
        if self.every_seconds is not None and not 0 < self.every_seconds < math.inf:
            raise ValueError(f"every_seconds={self.every_seconds}: must be above 0, or null.")
        for key in ("every_seconds", "timeline"):
            if _value(self, key) is not None and not self.sliding:
                raise ValueError(f"{key} has no effect without sliding=true.")


def store_schemas() -> None:
    """Makes the dataclasses known to Hydra, as the base that train.yaml, evaluate.yaml and predict.yaml start from."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="predict_schema", node=PredictConfig)


def to_dataclass(config: DictConfig) -> Any:
    """Returns the composed config as its dataclass, checked.

    Raises:
        ValueError: a missing value, an unknown key, or a value that is not allowed; says which.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{missing[0]} has no value; give it as {missing[0]}=... on the command line.")
    made = OmegaConf.to_object(config)
    _refuse_unknown_keys(made, "")
    return made


def from_container(cls: type, container: dict) -> Any:
    """Returns the dataclass of a plain dict, as a checkpoint holds it."""
    return to_dataclass(OmegaConf.merge(OmegaConf.structured(cls), container))


def to_container(config: Any) -> dict:
    """Returns the config as plain dicts, lists, strings and numbers."""
    return dataclasses.asdict(config)


def to_yaml(config: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(to_container(config)))


def command_line_keys(config: DictConfig) -> dict[str, Any]:
    """Returns {key: value} for what the command line set; a chosen group file counts as the keys it states."""
    given = {}
    for override in OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task)):
        key, value = override.key_or_group, override.value()
        chosen = OmegaConf.is_config(OmegaConf.select(config, key)) and isinstance(value, str)
        stated = _group_file(key, value) if chosen else OmegaConf.create(value) if isinstance(value, dict) else None
        keys = [key] if stated is None else [f"{key}.{name}" for name in _leaves(stated)]
        for name in keys:
            node = OmegaConf.select(config, name)
            given[name] = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return given


def _group_file(group: str, choice: str) -> DictConfig:
    """Returns what the file of a chosen group states, wherever on Hydra's search path it lies."""
    for source in HydraConfig.get().runtime.config_sources:
        if source.schema == "pkg":
            folder = Path(str(importlib.resources.files(source.path)))
        else:
            folder = Path(source.path)
        if (folder / group / f"{choice}.yaml").is_file():
            return OmegaConf.load(folder / group / f"{choice}.yaml")
    raise ValueError(f"{group}={choice}: no such file on the search path.")


def _leaves(config: DictConfig, prefix: str = "") -> list[str]:
    """Returns the dotted keys of all values that are not groups of others; an empty group is a value."""
    names = []
    for key in config:
        node = config._get_node(key)
        if isinstance(node, DictConfig) and len(node):
            names += _leaves(node, f"{prefix}{key}.")
        elif key != "defaults":
            names.append(f"{prefix}{key}")
    return names


def run_command(function: Callable[[DictConfig], Any], config_name: str) -> None:
    """Composes the config from the command line and calls `function` with it; a mistake of the user is one message."""

    @functools.wraps(function)
    def guarded(config: DictConfig) -> Any:
        try:
            return function(config)
        except USER_ERRORS as error:
            sys.exit(message_of(error))

    store_schemas()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # so that its errors reach the lines below
    try:
        hydra.main(version_base="1.3", config_path="pkg://nlvideo.configs", config_name=config_name)(guarded)()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain(error)}")


def explain(error: Exception) -> str:
    """Returns Hydra's or OmegaConf's message, with the allowed keys where a key is unknown."""
    lines, cause = [], error
    while cause is not None:
        lines += [
            line for line in str(cause).splitlines() if line.strip() and not line.strip().startswith("reference_")
        ]
        cause, known = cause.__cause__, _known_keys(cause)
        if known:
            lines.append(known)
    return "\n".join(dict.fromkeys(line.strip() for line in lines if "object_type" not in line))


def _known_keys(error: BaseException) -> str | None:
    if getattr(error, "key", None) is None or not dataclasses.is_dataclass(getattr(error, "object_type", None)):
        return None
    names = [f.name for f in dataclasses.fields(error.object_type)]
    if str(error.key) in names:
        return None
    close = difflib.get_close_matches(str(error.key), names, 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"Known keys there: {', '.join(names)}.{hint}"


def _refuse_unknown_keys(config: Any, path: str) -> None:
    names = {f.name for f in dataclasses.fields(config)}
    for key, value in vars(config).items():
        if key not in names:
            raise ValueError(f"{path}{key}={value!r} is no known key. Choose from: {', '.join(sorted(names))}.")
        if dataclasses.is_dataclass(value):
            _refuse_unknown_keys(value, f"{path}{key}.")


def _check_views(data: DataConfig) -> None:
    test = data.test
    if test.crop_size is None and test.num_crops != 1:
        raise ValueError(
            f"data.test.num_crops={test.num_crops}: data.test.crop_size=null takes the whole frame, once; give "
            "data.test.num_crops=1."
        )
    if test.crop_size is not None and not 1 <= test.crop_size <= test.short_side:
        raise ValueError(
            f"data.test.crop_size={test.crop_size}: must be at least 1 and not exceed data.test.short_side="
            f"{test.short_side}."
        )
    _check_choice("data.test.pooling", test.pooling, POOLINGS)
    if data.multi_label and test.pooling == "sum":
        raise ValueError(
            "data.test.pooling=sum: the classes of multi-label data have probabilities of their own, whose sum over "
            "views is none; choose from mean, max."
        )


def _check_choice(key: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{key}={value}: choose from {', '.join(map(str, allowed))}.")


def _value(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config
