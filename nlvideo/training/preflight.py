"""Before a run: what would make it fail, and the lines that say what it is about to do."""

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import torch

from nlvideo.build.data import check_stores, index_file, num_workers
from nlvideo.build.model import build_model, check_clip
from nlvideo.build.tables import prepare_data, read_train_table, read_val_table
from nlvideo.config.schema import TrainConfig
from nlvideo.data.clips.loading import Share
from nlvideo.data.decoding.opening import load_decoder
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.models.resnet import STEMS, VideoResNet, temporal_size
from nlvideo.runtime import distributed
from nlvideo.runtime.cores import ranks_here
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.files import check_writable
from nlvideo.runtime.shared_memory import SHARED_MEMORY, shared_memory
from nlvideo.training.clip_loss import class_weights
from nlvideo.training.loggers import check_logger

PREFETCHED = 2  # batches that each worker of a DataLoader holds ready


class Inputs(NamedTuple):
    """What a run is made of before it has weights."""

    train_table: VideoTable
    val_table: VideoTable
    network: VideoResNet  # with the random weights of the seed


def check_inputs(config: TrainConfig) -> Inputs:
    """Returns the videos and the network.

    Raises:
        UserError: anything that would make the run fail.
    """
    if distributed.is_first():  # the only rank that writes there
        check_writable(Path(config.output_dir))
    load_decoder(config.data.decoder)
    index_file(config.data)
    check_logger(config.logger)
    prepare_data(config.data)
    train_table = read_train_table(config.data)
    val_table = read_val_table(config.data, train_table.classes)
    for table in (train_table, val_table):
        check_stores(config.data, table)
    if val_table.multi_label and not val_table.targets.any():
        raise UserError(f"data.val={config.data.val}: none of its videos has a label, so nothing can be measured.")
    check_patience(in_steps(config, len(train_table)))
    torch.manual_seed(config.seed)  # the same initial weights on every rank and every time
    network = build_model(config.model, config.block, config.data, len(train_table.classes))
    check_clip(network, config.data.num_frames, config.data.crop_size, config.data.crop_size)
    class_weights(train_table, config.optim, config.data.balance)
    check_norm_batch(config)
    check_shared_memory(config)
    if config.sync_bn and not torch.cuda.is_available():
        raise UserError("sync_bn=true: PyTorch has synchronised batch norm for CUDA only, and there is no GPU here.")
    if config.cuda_graph and not torch.cuda.is_available():
        raise UserError("cuda_graph=true: only NVIDIA GPUs have CUDA graphs, and there is none here.")
    return Inputs(train_table, val_table, network)


def in_steps(config: TrainConfig, num_videos: int) -> TrainConfig:
    """Returns the config with the keys that count steps for those that count epochs, where these are given.

    An epoch is as many clips as there are videos, also where each of them gives several: a recipe keeps its steps.
    """
    optim, every = config.optim, config.validate_every_steps
    if optim.max_epochs is not None:
        optim = dataclasses.replace(optim, max_steps=math.ceil(optim.max_epochs * num_videos / optim.batch_size))
    if config.validate_every_epochs is not None:
        every = max(1, round(config.validate_every_epochs * num_videos / optim.batch_size))
    return dataclasses.replace(config, optim=optim, validate_every_steps=every)


def check_patience(config: TrainConfig) -> None:
    """Raises UserError if there are too few validations for `patience` to end the run."""
    every, steps = config.validate_every_steps, config.optim.max_steps
    before = (steps - 1) // every
    if config.patience is not None and before <= config.patience:
        raise UserError(
            f"patience={config.patience} can never end the run: validate_every_steps={every} gives {before} "
            f"validation{'' if before == 1 else 's'} before step {steps}."
        )


def check_norm_batch(config: TrainConfig) -> None:
    """Raises UserError if a micro-batch gives the batch norms of res5 one value a channel, which has no variance."""
    frames = temporal_size(STEMS[config.model.stem], config.data.num_frames)
    clips = planned_share(config).clips_per_micro_batch
    frozen = config.model.frozen_bn or "res5" in config.model.frozen_parts
    if clips * frames * (-(-config.data.crop_size // 32)) ** 2 == 1 and not frozen:
        raise UserError(
            f"optim.batch_size={config.optim.batch_size}: batch norm in res5 would see a single value per channel in "
            "each micro-batch; use at least two clips per micro-batch, larger crops or longer clips."
        )


def planned_share(config: TrainConfig) -> Share:
    """Returns rank 0's share of each step, also before the ranks have been started."""
    ranks = max(config.num_devices, distributed.num_processes())
    return Share(config.optim.batch_size, 0, ranks, config.optim.accumulate)


def shared_memory_needed(config: TrainConfig) -> int:
    """Returns the bytes of the batches that this machine's workers hold ready and its ranks use, at most."""
    ranks = max(config.num_devices, ranks_here())
    workers = num_workers(config.data, ranks)
    batch = planned_share(config).clips_per_micro_batch * 3 * config.data.num_frames * config.data.crop_size**2
    return batch * batches_at_once(config, workers) * ranks if workers else 0


def batches_at_once(config: TrainConfig, workers: int) -> int:
    """Returns how many micro-batches of a rank are in shared memory at the same time.

    Batches of validation are as large as those of training, whose loader keeps its own meanwhile. Precise statistics
    and centre clips have one loader after the other. A rank holds what it uses and what it collects for the next step.
    """
    ready, parts = workers * PREFETCHED, config.optim.accumulate
    if torch.cuda.is_available():  # what a rank uses is in pinned memory
        return 2 * ready
    training, validation = ready + 2 * parts, 2 * ready + parts + 2
    precise = 2 * ready + 3 * parts if config.precise_bn_steps else 0
    return max(training, validation, precise)


def check_shared_memory(config: TrainConfig) -> None:
    """Raises UserError if shared memory has no room for the batches of so many workers as the config states: the run
    would end when a worker finds none."""
    needed, room = shared_memory_needed(config), shared_memory()
    if config.data.num_workers is None or room is None or needed <= room.free:
        return
    raise UserError(
        f"data.num_workers={config.data.num_workers}: their prefetched batches take {needed / 1e6:.0f} MB of shared "
        f"memory, and {SHARED_MEMORY} has {room}. Use fewer workers, or give it more (docker run --shm-size)."
    )


def fit_workers(config: TrainConfig) -> tuple[TrainConfig, str | None]:
    """Returns the config with the number of workers that shared memory has room for, where the config leaves it open
    and there is too little for all; then also a line that says so. Every rank must call it."""
    wanted, room = num_workers(config.data), shared_memory()
    if config.data.num_workers is not None or room is None:
        return config, None
    fits = (n for n in range(wanted, 0, -1) if shared_memory_needed(with_workers(config, n)) <= room.free)
    number = min(distributed.gather(next(fits, 0)))
    if number == wanted:
        return config, None
    needed = shared_memory_needed(with_workers(config, wanted))
    why = f"{wanted} need {needed / 1e6:.0f} MB of shared memory, and {SHARED_MEMORY} has {room}"
    return with_workers(config, number), f"{number} for each rank: {why} (docker run --shm-size)"


def with_workers(config: TrainConfig, number: int) -> TrainConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=number))
