"""What a config may hold: every value that is refused, with its key and the choices."""

import math
import multiprocessing
from typing import Any

from nlvideo.config.extract_checks import check_extraction
from nlvideo.config.schema import DataConfig, EvaluateConfig, ExtractConfig, PredictConfig, SyntheticConfig, TrainConfig
from nlvideo.config.value_checks import check_at_least_one, check_choice, check_not_negative, check_share, value_of
from nlvideo.runtime.errors import UserError

PRECISIONS = ("auto", "float32", "bfloat16", "float16", "float64")
SCHEDULES = ("steps", "cosine")
RESUMES = ("never", "auto")
VIEW_POOLINGS = ("mean", "sum", "max")
OPTIMIZERS = ("sgd", "adamw")
CLASS_WEIGHTS = ("none", "inverse", "effective")
BALANCES = ("none", "sqrt", "classes")
CROPS = ("jitter", "random_resized")
AUGMENTATIONS = {"none": 0.0, "colour": 1.0, "randaugment": 30.0, "trivial": 0.0}  # and their greatest strength
LOGGERS = ("wandb", "mlflow")
MOST_CLIP_FPS = 1000  # beyond it, a slip of the hand that would take all memory
METRICS = {False: ("top1", "top5", "mean_class_accuracy", "loss"), True: ("map", "loss")}  # of multi-label data: True


def check_config(config: Any) -> None:
    """Raises UserError for a value of a command's config that is not allowed; names the key, value and choices."""
    if isinstance(config, TrainConfig):
        _check_training(config)
    elif isinstance(config, EvaluateConfig):
        _check_evaluation(config)
    elif isinstance(config, PredictConfig):
        _check_prediction(config)
    elif isinstance(config, ExtractConfig):
        check_choice("precision", config.precision, PRECISIONS)
        check_extraction(config)
        _check_data(config.data)


def _check_training(config: TrainConfig) -> None:
    # Modes, layouts and places are checked by the network that has them, build_model.
    check_choice("precision", config.precision, PRECISIONS)
    check_choice("resume", config.resume, RESUMES)
    check_at_least_one(
        config,
        "num_devices log_every_steps validate_every_steps checkpoint_every_steps keep patience model.width "
        "optim.batch_size optim.accumulate optim.lr_batch_size optim.max_steps",
    )
    check_not_negative(config, "seed precise_bn_steps profile_steps optim.warmup_steps optim.weight_decay optim.lr")
    check_not_negative(config, "optim.mixup optim.cutmix")
    check_share(config, "model.dropout optim.momentum optim.label_smoothing")
    _check_data(config.data)
    _check_optim(config)
    _check_loss(config)
    _check_model(config)
    _check_freezing(config)
    if config.logger is not None:
        check_choice("logger", config.logger, LOGGERS)
    if config.best_metric is not None:
        check_choice("best_metric", config.best_metric, METRICS[config.data.is_multi_label])


def _check_evaluation(config: EvaluateConfig) -> None:
    check_choice("precision", config.precision, PRECISIONS)
    check_at_least_one(config, "num_devices views_per_step videos_per_step num_threads")
    _check_data(config.data)


def _check_prediction(config: PredictConfig) -> None:
    check_choice("precision", config.precision, PRECISIONS)
    check_at_least_one(config, "top views_per_step num_threads")
    _check_data(config.data)
    if config.every_seconds is not None and not 0 < config.every_seconds < math.inf:
        raise UserError(f"every_seconds={config.every_seconds}: must be above 0, or null.")
    if config.reconnect_seconds is not None and not 0 <= config.reconnect_seconds < math.inf:
        raise UserError(f"reconnect_seconds={config.reconnect_seconds}: must be at least 0, or null.")
    for key in ("every_seconds", "timeline"):
        if value_of(config, key) is not None and not config.sliding:
            raise UserError(f"{key} has no effect without sliding=true.")


def _check_data(data: DataConfig) -> None:
    from nlvideo.data.decoding.opening import DECODERS
    from nlvideo.data.lists.published import FORMATS, MULTI_LABEL_FORMATS
    from nlvideo.data.synthetic.writing import SETS

    check_choice("data.decoder", data.decoder, tuple(DECODERS))
    check_choice("data.format", data.format, FORMATS)
    if data.multi_label and data.format not in ("list", *MULTI_LABEL_FORMATS):
        raise UserError(f"data.multi_label=true: the videos of data.format={data.format} have one class each.")
    if data.synthetic is not None:
        check_choice("data.synthetic.kind", data.synthetic.kind, tuple(SETS))
        _check_long_range(data.synthetic)
    check_at_least_one(
        data,
        "num_classes num_frames frame_stride crop_size clips_per_video test.num_clips test.short_side",
        "data.",
    )
    _check_clips(data)
    _check_augmentation(data)
    _check_views(data)
    _check_loading(data)


def _check_clips(data: DataConfig) -> None:
    for name, values in (("mean", data.mean), ("std", data.std)):
        if len(values) != 3:
            raise UserError(f"data.{name}={values}: must be three numbers, for red, green and blue.")
        if not all(math.isfinite(value) and (value > 0 or name == "mean") for value in values):
            raise UserError(f"data.{name}={values}: must be finite numbers, std above 0.")
    low, high = data.scale_range if len(data.scale_range) == 2 else (0, 0)
    smallest = data.crop_size if data.crop == "jitter" else 1  # random_resized takes no scale from here
    if not smallest <= low <= high:
        raise UserError(
            f"data.scale_range={data.scale_range}: must be two short sides in pixels, the smaller first, "
            f"neither below data.crop_size={data.crop_size}."
        )


def _check_augmentation(data: DataConfig) -> None:
    check_choice("data.balance", data.balance, BALANCES)
    check_choice("data.crop", data.crop, CROPS)
    check_choice("data.augment", data.augment, tuple(AUGMENTATIONS))
    low, high = data.crop_area if len(data.crop_area) == 2 else (0, 0)
    if not 0 < low <= high <= 1:
        raise UserError(f"data.crop_area={data.crop_area}: must be two shares of a frame, the smaller first, above 0.")
    if data.crop == "jitter" and data.crop_area != type(data)().crop_area:
        raise UserError(f"data.crop_area={data.crop_area} has no effect on data.crop=jitter.")
    strength, greatest = data.augment_strength, AUGMENTATIONS[data.augment]
    if strength is not None and not greatest:
        raise UserError(f"data.augment_strength={strength} has no effect on data.augment={data.augment}.")
    if strength is not None and not 0 < strength <= greatest:
        raise UserError(
            f"data.augment_strength={strength}: must be above 0 and not exceed {greatest:g} for data.augment="
            f"{data.augment}, or null."
        )
    if data.augment == "randaugment" and strength is not None and strength != int(strength):
        raise UserError(
            f"data.augment_strength={strength}: the magnitude of data.augment=randaugment is a whole number."
        )
    if not 0 <= data.erasing <= 1:
        raise UserError(f"data.erasing={data.erasing}: must be a probability, from 0 to 1.")


def _check_stores(data: DataConfig) -> None:
    from nlvideo.data.stores.addresses import check_address, is_address

    for key in ("root", "videos", "train", "val", "classes"):
        value = getattr(data, key)
        if value is not None and is_address(value):
            check_address(value, f"data.{key}")
            if data.format != "list":
                raise UserError(
                    f"data.format={data.format} reads folders of this machine, and not data.{key}={value}: for a "
                    "store, write lists of paths and labels (data=list)."
                )
    for key in ("index", "cache_dir"):
        if (value := getattr(data, key)) is not None and is_address(value):
            check_address(value, f"data.{key}")
            raise UserError(f"data.{key}={value}: must be on a disk of this machine.")
    if not 0 < data.cache_gb < math.inf:
        raise UserError(f"data.cache_gb={data.cache_gb}: must be a number of 1e9 bytes above 0.")


def _check_loading(data: DataConfig) -> None:
    _check_stores(data)
    if data.num_workers is not None:
        check_not_negative(data, "num_workers", "data.")
    check_share(data, "max_bad_share", "data.")
    if data.start_method is not None:
        check_choice("data.start_method", data.start_method, tuple(multiprocessing.get_all_start_methods()))
    if data.clip_fps is not None and not 0 < data.clip_fps <= MOST_CLIP_FPS:
        raise UserError(f"data.clip_fps={data.clip_fps}: must be above 0 and at most {MOST_CLIP_FPS}, or null.")
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
            if getattr(synthetic, key) != getattr(type(synthetic), key):
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
    check_choice("data.test.clip_sampling", test.clip_sampling, CLIP_SAMPLINGS)
    check_choice("data.test.num_crops", test.num_crops, NUM_CROPS)
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
    check_choice("data.test.pooling", test.pooling, VIEW_POOLINGS)
    if data.is_multi_label and test.pooling == "sum":
        raise UserError(
            "data.test.pooling=sum: the classes of multi-label data have probabilities of their own, whose sum over "
            "views is none; choose from mean, max."
        )


def _check_optim(config: TrainConfig) -> None:
    optim = config.optim
    check_choice("optim.schedule", optim.schedule, SCHEDULES)
    parts = config.num_devices * optim.accumulate
    if optim.batch_size % parts:
        raise UserError(
            f"optim.batch_size={optim.batch_size} cannot be divided evenly among num_devices={config.num_devices} "
            f"with optim.accumulate={optim.accumulate} micro-batches each; it must be a multiple of {parts}."
        )
    together = config.data.clips_per_video
    if optim.batch_size % (together * parts):
        raise UserError(
            f"data.clips_per_video={together}: the clips of a video stay in one micro-batch, so optim.batch_size="
            f"{optim.batch_size} must be a multiple of {together * parts}, with num_devices={config.num_devices} and "
            f"optim.accumulate={optim.accumulate}."
        )
    if optim.max_grad_norm is not None and not 0 < optim.max_grad_norm < math.inf:
        raise UserError(f"optim.max_grad_norm={optim.max_grad_norm}: must be above 0, or null.")
    if optim.milestones != sorted(set(optim.milestones)):
        raise UserError(f"optim.milestones={optim.milestones}: must be rising steps.")
    check_choice("optim.kind", optim.kind, OPTIMIZERS)
    if optim.kind == "sgd" and optim.nesterov and optim.momentum == 0:
        raise UserError("optim.nesterov=true needs a momentum; optim.momentum=0.")
    for key in ("momentum", "nesterov"):
        if optim.kind != "sgd" and getattr(optim, key) != getattr(type(optim), key):
            raise UserError(f"optim.{key}={getattr(optim, key)} has no effect on optim.kind={optim.kind}.")
    for key in ("optim.max_epochs", "validate_every_epochs"):
        if value_of(config, key) is not None and not 0 < value_of(config, key) < math.inf:
            raise UserError(f"{key}={value_of(config, key)}: must be above 0, or null.")
    if not 0 < optim.new_lr_factor < math.inf:
        raise UserError(f"optim.new_lr_factor={optim.new_lr_factor}: must be above 0.")
    if optim.ema_decay is not None and not 0 < optim.ema_decay < 1:
        raise UserError(f"optim.ema_decay={optim.ema_decay}: must be above 0 and below 1, or null.")


def _check_loss(config: TrainConfig) -> None:
    optim = config.optim
    check_choice("optim.class_weights", optim.class_weights, CLASS_WEIGHTS)
    if not 0 <= optim.class_weights_beta < 1:
        raise UserError(f"optim.class_weights_beta={optim.class_weights_beta}: must be at least 0 and below 1.")
    if optim.class_weights != "effective" and optim.class_weights_beta != type(optim).class_weights_beta:
        raise UserError(
            f"optim.class_weights_beta={optim.class_weights_beta} has no effect on optim.class_weights="
            f"{optim.class_weights}."
        )
    together = config.data.clips_per_video
    pairs = 2 * together * config.num_devices * optim.accumulate
    for key in ("mixup", "cutmix"):
        if getattr(optim, key) and optim.batch_size % pairs:
            several = f" of two videos with data.clips_per_video={together}" if together > 1 else ""
            raise UserError(
                f"optim.{key}={getattr(optim, key)} mixes the clips of a micro-batch in pairs{several}: "
                f"optim.batch_size={optim.batch_size} must be a multiple of {pairs}."
            )


def _check_model(config: TrainConfig) -> None:
    from nlvideo.models.resnet import STAGES

    model = config.model
    for key in ("sync_bn", "precise_bn_steps"):
        if model.frozen_bn and value_of(config, key):
            raise UserError(f"{key}={value_of(config, key)} has no effect with model.frozen_bn=true.")
        if len(model.frozen_parts) == 1 + len(STAGES) and "head" not in model.frozen_parts and value_of(config, key):
            raise UserError(f"{key}={value_of(config, key)} has no effect where only the head is trained.")
    for stage in model.activation_checkpointing:
        check_choice("model.activation_checkpointing", stage, STAGES)
    if config.cuda_graph:
        _check_recordable(config)
    if config.compile and model.activation_checkpointing:
        raise UserError(
            f"model.activation_checkpointing={model.activation_checkpointing} does not go together with "
            "compile=true, which decides itself what is computed again."
        )


def _check_recordable(config: TrainConfig) -> None:
    """Refuses what a recorded pass would do wrongly or not at all."""
    model, optim = config.model, config.optim
    for key, excluded, reason in (
        ("compile", config.compile, "a compiled network starts its kernels in its own way"),
        ("sync_bn", config.sync_bn, "ranks would wait for each other inside of the recording"),
        ("model.activation_checkpointing", model.activation_checkpointing, "a recording cannot save random states"),
        ("optim.accumulate", optim.accumulate > 1, "the gradients of a pass lie where those of the next one will"),
    ):
        if excluded:
            value = str(value_of(config, key)).lower()
            raise UserError(f"cuda_graph=true does not go together with {key}={value}: {reason}.")


def _check_freezing(config: TrainConfig) -> None:
    from nlvideo.models.resnet import PARTS

    model = config.model
    check_choice("model.train", model.train, ("all", "head"))
    for part in model.freeze:
        check_choice("model.freeze", part, PARTS)
    if set(model.frozen_parts) == set(PARTS):
        raise UserError(f"model.train={model.train} model.freeze={model.freeze}: nothing would be left to train.")
    if model.frozen_parts and model.pretrained is None:
        raise UserError(
            f"model.{'freeze=' + str(model.freeze) if model.freeze else 'train=head'} keeps pretrained weights, and "
            "model.pretrained=null has none; give it a file, or imagenet."
        )
