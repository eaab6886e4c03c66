"""A run: all that a training process works with, how it is put together, and what a checkpoint holds of it."""

import hashlib
import platform
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from nlvideo.build.data import prepare_data
from nlvideo.config.compose import to_container, to_yaml
from nlvideo.config.schema import TrainConfig
from nlvideo.data.clips.loading import Share
from nlvideo.data.clips.normalize import normalize
from nlvideo.data.lists.path_list import VideoTable
from nlvideo.models.resnet import VideoResNet
from nlvideo.runtime import distributed
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.folder_lock import lock_folder
from nlvideo.runtime.precision import autocast, input_dtype, resolve_precision, use_tf32
from nlvideo.training.optim import param_groups
from nlvideo.training.preflight import Inputs, check_inputs
from nlvideo.training.resume import find_checkpoint, notes_on
from nlvideo.training.step_metrics import Meter
from nlvideo.training.step_timer import StepTimer
from nlvideo.weights.pretrained import check_blocks_can_learn, load_pretrained


@dataclass
class Run:
    """All that a training process works with."""

    config: TrainConfig
    world: distributed.World
    network: VideoResNet
    model: torch.nn.Module  # the network, wrapped where several processes share the gradients
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of the loss, for float16; otherwise it does nothing
    timer: StepTimer
    dtype: torch.dtype
    inputs: Inputs
    first_step: int  # steps done by the run that this one resumes
    meter_state: dict[str, Any]  # of that run
    skipped: torch.Tensor  # (training videos,) bool, shared with the workers: those that took too long
    notes: list[str]  # where the weights come from, and what differs from the run that this one resumes

    @property
    def train_table(self) -> VideoTable:
        return self.inputs.train_table

    @property
    def headline(self) -> str:
        return "map" if self.train_table.multi_label else "top1"

    def share(self) -> Share:
        optim = self.config.optim
        return Share(optim.batch_size, self.world.rank, self.world.size, optim.accumulate)

    def normalize(self, clips: torch.Tensor) -> torch.Tensor:
        mean, std = torch.tensor(self.config.data.mean), torch.tensor(self.config.data.std)
        return normalize(clips.to(self.world.device, non_blocking=True), mean, std, input_dtype(self.dtype))

    def autocast(self) -> torch.autocast:
        return autocast(self.world.device, self.dtype)


def set_up(config: TrainConfig) -> Run:
    """Joins the other processes and builds the network with its weights, new or resumed, and the optimizer."""
    world = distributed.init_world()
    distributed.check_same(hashlib.sha256(to_yaml(config).encode()).hexdigest(), "configuration")
    if config.optim.batch_size % (world.size * config.optim.accumulate):
        raise UserError(
            f"optim.batch_size={config.optim.batch_size} cannot be shared evenly by {world.size} processes with "
            f"optim.accumulate={config.optim.accumulate} passes each."
        )
    dtype = resolve_precision(config.precision, world.device)
    use_tf32(config.tf32, world.device)
    distributed.on_main(prepare_data, config.data)
    inputs = distributed.together(check_inputs, config)
    if not config.dry_run:
        distributed.on_main(lock_folder, Path(config.output_dir))
    found = distributed.on_main(find_checkpoint, config, inputs.train_table)
    network, checkpoint = inputs.network, found and found.content
    if checkpoint:
        network.load_state_dict(checkpoint["model"])
        notes = notes_on(found, config, world.size, str(dtype).removeprefix("torch."))
    else:
        notes = [distributed.on_main(initialize, network, config, inputs.train_table)]
    network = network.to(world.device, input_dtype(dtype), memory_format=torch.channels_last_3d)
    if config.sync_bn:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    optim = config.optim
    optimizer = torch.optim.SGD(
        param_groups(network, optim.weight_decay), optim.lr, optim.momentum, nesterov=optim.nesterov
    )
    scaler = torch.amp.GradScaler(world.device.type, enabled=dtype == torch.float16)
    if checkpoint:
        optimizer.load_state_dict(checkpoint["optimizer"])
        if checkpoint["scaler"] and scaler.is_enabled():
            scaler.load_state_dict(checkpoint["scaler"])
    if config.compile:
        network.compile()
    model, timer = share_gradients(network, world), StepTimer(world.device)
    if isinstance(model, DistributedDataParallel):
        timer.watch(model)
    skipped = torch.zeros(len(inputs.train_table), dtype=torch.bool).share_memory_()
    first_step, meter_state = 0, {}
    if checkpoint:
        first_step, meter_state = checkpoint["step"], checkpoint["meter"]
        skipped[checkpoint["slow_videos"]] = True
    return Run(
        config, world, network, model, optimizer, scaler, timer, dtype, inputs, first_step, meter_state, skipped, notes
    )


def share_gradients(network: VideoResNet, world: distributed.World) -> torch.nn.Module:
    """Returns the network so that all processes start from rank 0's weights and average their gradients."""
    if world.size == 1:
        return network
    # Gradients of 1x1x1 convolutions may come contiguous or channels last, which are the same order of numbers.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(network, device_ids=[world.device] if world.device.type == "cuda" else None)


def initialize(network: VideoResNet, config: TrainConfig, table: VideoTable) -> str:
    """Gives a new run its weights and returns a sentence that says where they come from."""
    loaded = "random weights"
    if config.model.pretrained is not None:
        loaded = load_pretrained(
            network, config.model.pretrained, config.model.depth, list(table.classes), config.model.keep_head
        )
    check_blocks_can_learn(network)
    return loaded


def state_of(run: Run, step: int, meter: Meter, precise_bn: dict[str, torch.Tensor] | None = None) -> dict[str, Any]:
    """Returns what a checkpoint holds besides its format and digest.

    The step is the data's position too, and random numbers are functions of it. `precise_bn` is for evaluation and
    kept apart from the running statistics in `model`.
    """
    return {
        "model": run.network.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "precise_bn": precise_bn,
        "step": step,
        "meter": meter.state(),
        "slow_videos": run.skipped.nonzero().flatten().tolist(),
        "config": to_container(run.config),
        "classes": list(run.train_table.classes),
        "list_sha256": run.train_table.digest(),
        "world": {"size": run.world.size, "dtype": str(run.dtype).removeprefix("torch.")},
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__, "python": platform.python_version()},
    }
