"""What can be configured: the dataclasses; checks.py holds what they refuse.

Defaults live here; the YAML files under configs/ state what differs. Only entry points and builders see these classes;
modules and data sets take plain values.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


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
    keep_head: bool = True  # of pretrained weights with the same class names
    train: str = "all"  # all, or head: everything before the classifier keeps its pretrained weights
    freeze: list[str] = field(default_factory=list)  # parts that keep their pretrained weights: stem, res2..res5, head

    @property
    def frozen_parts(self) -> list[str]:
        """The parts that keep their weights and statistics, in the order of the network."""
        from nlvideo.models.resnet import PARTS

        return [part for part in PARTS if part in self.freeze or self.train == "head" and part != "head"]


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
    crop: str = "jitter"  # jitter: any place of the frame at a drawn scale; random_resized: a drawn area and aspect
    crop_area: list[float] = field(default_factory=lambda: [0.08, 1.0])  # random_resized: its share of the frame
    flip: bool = True  # off where direction is the label
    augment: str = "none"  # none, colour, randaugment or trivial
    augment_strength: float | None = None  # colour: 0 to 1, null is 0.4; randaugment: 0 to 30, null is 9
    erasing: float = 0.0  # probability of erasing a rectangle of the clip
    clips_per_video: int = 1  # that training takes of a video, opened once; an epoch remains as many clips as videos
    balance: str = "none"  # how often classes are drawn: none as listed, sqrt by root of their size, classes evenly
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # torchvision's, for its weights
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    decoder: str = "pyav"  # pyav, decord or torchcodec
    index: str | None = None  # file of what is known of the videos; null: one in root; none: no such file
    cache_dir: str | None = None  # folder of this node for videos of stores; null: ~/.cache/nlvideo/videos
    cache_gb: float = 100.0  # 1e9 bytes that it may hold; those not used for longest go first
    frame_rate: float = 30.0  # frames a second of videos that are folders of pictures
    clip_fps: float | None = None  # frames a second that are taken by time; null: each video's own rate
    num_workers: int | None = None  # per process; null: by its cores, see nlvideo/build/data.py
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
    kind: str = "sgd"  # sgd or adamw
    lr: float = 0.01  # for lr_batch_size clips a step; scaled linearly to batch_size
    lr_batch_size: int = 64
    batch_size: int = 64  # clips in one step, over all devices
    accumulate: int = 1  # micro-batches per step: each device takes its clips in so many parts
    max_steps: int = 400_000
    max_epochs: float | None = None  # instead of max_steps: one is as many clips as the training list has videos
    schedule: str = "steps"  # steps or cosine
    milestones: list[int] = field(default_factory=lambda: [150_000, 300_000])  # lr / 10 at each, for steps
    warmup_steps: int = 0
    new_lr_factor: float = 1.0  # learning rate of the head and blocks that are new, relative to pretrained weights
    momentum: float = 0.9  # sgd
    nesterov: bool = True  # sgd
    weight_decay: float = 1e-4  # none on norm parameters
    max_grad_norm: float | None = None  # gradients are scaled down to this norm
    ema_decay: float | None = None  # validate and evaluate with an exponential moving average of the weights
    label_smoothing: float = 0.0
    mixup: float = 0.0  # mix neighbouring clips, their shares drawn from Beta(mixup, mixup)
    cutmix: float = 0.0  # exchange a box of neighbouring clips, its share drawn from Beta(cutmix, cutmix)
    class_weights: str = "none"  # of the loss: none, inverse or effective
    class_weights_beta: float = 0.999  # effective: the smaller, the fewer videos of a class count as new


@dataclass
class TrainConfig:
    name: str = "default"
    output_dir: str = "outputs/${name}"
    seed: int = 0
    num_devices: int = 1
    precision: str = "auto"
    tf32: bool = False  # CUDA: float32 products with 10 bits of mantissa
    compile: bool = False  # torch.compile
    cuda_graph: bool = False  # record the training passes once and replay them: faster with few clips per GPU
    sync_bn: bool = False  # CUDA: batch norm over the clips of all devices
    precise_bn_steps: int = 0  # validate with statistics of the batch norms over the clips of so many steps
    resume: str = "never"  # never, auto
    dry_run: bool = False  # say what would be trained, try a few steps, write nothing
    log_every_steps: int = 20
    validate_every_steps: int = 5000
    validate_every_epochs: float | None = None  # instead: counted as optim.max_epochs
    checkpoint_every_steps: int = 1000
    best_metric: str | None = None  # top1, top5, mean_class_accuracy, map or loss; null: top1, or map
    patience: int | None = None  # stop after so many validations without a better best_metric
    logger: str | None = None  # besides TensorBoard: wandb or mlflow
    keep: int = 3  # checkpoints; the best is kept besides
    profile_steps: int = 0  # a trace of so many steps, for torch's viewers
    model: ModelConfig = field(default_factory=ModelConfig)
    block: BlockConfig = field(default_factory=BlockConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass
class EvaluateConfig:
    checkpoint: Any = MISSING  # a file, a run folder, or several as [a.pt,b.pt] or with wildcards
    output_dir: str | None = None  # null: a folder beside each checkpoint, named by step and views
    num_devices: int = 1
    precision: str = "auto"
    views_per_step: int | None = None  # of one video, through the network together; null: 2 on a CPU, 15 on a GPU
    videos_per_step: int = 1  # whose scores are fetched from the device and kept together
    num_threads: int | None = None  # of each process, which the last bits of scores depend on; null: its cores
    report: bool = True  # report.html, with pictures
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class PredictConfig:
    checkpoint: str = MISSING
    trusted: bool = False  # that checkpoint=FILE.pt2 may be read, which can run code
    top: int = 5  # classes of each video, or moment
    json: bool = False  # a line of JSON for each video, and nothing else, on the standard output
    sliding: bool = False  # scores from moment to moment, by windows of num_frames * frame_stride frames
    every_seconds: float | None = None  # from one window to the next; null: half a window
    reconnect_seconds: float | None = 60.0  # how long a stream that broke off is tried again; null: without end
    timeline: str | None = None  # with sliding: a PNG of the scores over time
    write: str | None = None  # an mp4: the video with its classes written on it
    precision: str = "auto"
    views_per_step: int | None = None  # through the network together; null: 2 on a CPU, 15 on a GPU
    num_threads: int | None = None  # null: the machine's cores
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class SnippetConfig:
    """Which frames of a video each of its snippets takes; null is the preset's."""

    frames: int | None = None
    stride: int | None = None  # from one frame of a snippet to the next
    stride_seconds: float | None = None  # the same in seconds
    step: int | None = None  # frames from the start of one snippet to that of the next
    step_seconds: float | None = None  # the same in seconds


@dataclass
class ExtractConfig:
    checkpoint: str = MISSING
    trusted: bool = False  # that checkpoint=FILE.pt2 may be read, which can run code
    videos: str = MISSING  # a list, a folder or one video
    output: str = MISSING  # a folder; what it holds already of the same network and settings is not computed again
    preset: str = "paper"  # paper or rtfm, see PRESETS in nlvideo/features/presets.py
    layer: str = "res5"  # res5, res4 or head
    positions: bool = False  # every position in time and space instead of their mean
    crops: Any = None  # 1, 3, 5, 10 or full; null is the preset's
    crop_size: int | None = None  # null is the preset's
    short_side: int | None = None  # that frames are resized to; null is the preset's
    format: str = "npy"  # a file for each video, or one for all: hdf5 or safetensors
    dtype: str = "float32"  # of what is written: float32 or float16
    shard: str | None = None  # I/N: this command does the I-th of N parts of the videos, counted from 1
    num_devices: int = 1
    precision: str = "auto"
    views_per_step: int | None = None  # of one video, through the network together; null: 2 on a CPU, 20 on a GPU
    videos_at_once: int | None = None  # each read by a thread; null: 1 on a CPU, on a GPU half the cores, at most 8
    num_threads: int | None = None  # of each process; null: its cores
    snippet: SnippetConfig = field(default_factory=SnippetConfig)
    data: DataConfig = field(default_factory=DataConfig)
