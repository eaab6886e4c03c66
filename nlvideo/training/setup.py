"""A run: everything a training process works with, how it is put together, and what a checkpoint holds of it."""

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlvideo.build.tables import prepare_data
from nlvideo.config.compose import to_container, to_yaml, without_places
from nlvideo.config.schema import TrainConfig
from nlvideo.data.clips.loading import Share
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.models.resnet import VideoResNet
from nlvideo.runtime import distributed
from nlvideo.runtime.distributed import World
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.files import check_writable
from nlvideo.runtime.folder_lock import lock_folder
from nlvideo.runtime.precision import resolve_precision, use_tf32
from nlvideo.training.bad_videos import BadVideos
from nlvideo.training.clip_loss import build_loss
from nlvideo.training.data_wait import DataWait
from nlvideo.training.learner import Learner, build_learner
from nlvideo.training.nodes import check_newest_on_main, check_same_on_all
from nlvideo.training.preflight import Inputs, check_inputs, fit_workers, in_steps
from nlvideo.training.resume import find_checkpoint, notes_on
from nlvideo.training.step_files import FoundCheckpoint
from nlvideo.training.step_metrics import StepMetrics
from nlvideo.training.weight_average import resume_average
from nlvideo.weights.pretrained import Loaded, check_blocks_can_learn, load_pretrained


@dataclass(kw_only=True)
class Run:
    """Everything a training process works with.

    Attributes:
        first_step: steps that were done before this start.
        skipped: (training videos,) bool, shared with the workers: videos that took too long and are not opened again.
        notes: where the weights come from, then what differs from the run that is resumed.
        new_parts: names of the modules that did not start from pretrained weights.
        workers_note: why there are fewer workers than cores would allow, if so.
    """

    config: TrainConfig
    world: World
    learner: Learner
    inputs: Inputs
    first_step: int
    metrics: StepMetrics
    data_wait: DataWait
    bad_videos: BadVideos
    skipped: Tensor
    notes: list[str]
    new_parts: list[str]
    workers_note: str | None

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def network(self) -> VideoResNet:
        return self.learner.network

    @property
    def train_table(self) -> VideoTable:
        return self.inputs.train_table

    @property
    def headline(self) -> str:
        return "map" if self.train_table.multi_label else "top1"

    @property
    def best_metric(self) -> str:
        return self.config.best_metric or self.headline

    def share(self) -> Share:
        optim = self.config.optim
        return Share(optim.batch_size, self.world.rank, self.world.size, optim.accumulate)


def set_up(config: TrainConfig) -> Run:
    """Joins the other ranks and builds the network with its weights, new or resumed, and the optimizer."""
    world = distributed.init_world()
    distributed.check_same(hashlib.sha256(to_yaml(without_places(config)).encode()).hexdigest(), "configuration")
    check_shares(config, world)
    dtype = resolve_precision(config.precision, world.device)
    use_tf32(config.tf32, world.device)
    distributed.on_main(check_writable, Path(config.output_dir))
    distributed.on_each_node(prepare_data, config.data)
    inputs = distributed.together(check_inputs, config)
    check_same_on_all(inputs, dtype)
    config, workers_note = fit_workers(in_steps(config, len(inputs.train_table)))
    if not config.dry_run:
        distributed.on_main(lock_folder, Path(config.output_dir))
    found = distributed.on_main(find_checkpoint, config, inputs.train_table)
    check_newest_on_main(Path(config.output_dir), found)
    if found:
        inputs.network.load_state_dict(found.content["model"])
        notes = notes_on(found, config, world.size, str(dtype).removeprefix("torch."))
        new_parts = found.content.get("new_parts", [])
    else:
        loaded = distributed.on_main(initialize, inputs.network, config, inputs.train_table)
        notes, new_parts = [loaded.sentence], loaded.new_parts
    loss = build_loss(config, inputs.train_table, world.device)
    learner = build_learner(config, inputs.network, world, dtype, loss=loss, new_parts=new_parts)
    if found:
        resume_learner(learner, found.content)
    return _run_from(learner, inputs, found, notes, new_parts, workers_note)


def resume_learner(learner: Learner, checkpoint: dict[str, Any]) -> None:
    """Gives the optimizer, the loss scaler and the average the state that they had at a checkpoint."""
    learner.optimizer.load_state_dict(checkpoint["optimizer"])
    if checkpoint["scaler"] and learner.scaler.is_enabled():
        learner.scaler.load_state_dict(checkpoint["scaler"])
    if learner.averaged is not None:
        resume_average(learner.averaged, checkpoint["ema"], checkpoint["step"])


def _run_from(
    learner: Learner,
    inputs: Inputs,
    found: FoundCheckpoint | None,
    notes: list[str],
    new_parts: list[str],
    workers_note: str | None,
) -> Run:
    config = learner.config
    checkpoint: dict[str, Any] = found.content if found else {"step": 0, "meter": {}, "slow_videos": []}
    skipped = torch.zeros(len(inputs.train_table), dtype=torch.bool).share_memory_()
    skipped[checkpoint["slow_videos"]] = True
    num_samples = checkpoint["step"] * config.optim.batch_size // config.data.clips_per_video
    num_bad = checkpoint["meter"].get("num_bad", 0)
    return Run(
        config=config,
        world=learner.world,
        learner=learner,
        inputs=inputs,
        first_step=checkpoint["step"],
        metrics=StepMetrics(checkpoint["meter"]),
        data_wait=DataWait(config.data, checkpoint["step"]),
        bad_videos=BadVideos(inputs.train_table, num_samples, num_bad),
        skipped=skipped,
        notes=notes,
        new_parts=new_parts,
        workers_note=workers_note,
    )


def check_shares(config: TrainConfig, world: World) -> None:
    """Raises UserError if a step's clips cannot be divided among the ranks and their micro-batches."""
    optim, together = config.optim, config.data.clips_per_video
    if optim.batch_size % (world.size * optim.accumulate):
        raise UserError(
            f"optim.batch_size={optim.batch_size} cannot be divided evenly among {world.size} ranks with "
            f"optim.accumulate={optim.accumulate} micro-batches each."
        )
    if optim.batch_size % (together * world.size * optim.accumulate):
        raise UserError(
            f"data.clips_per_video={together}: the clips of a video stay in one micro-batch, so optim.batch_size="
            f"{optim.batch_size} must be a multiple of {together * world.size * optim.accumulate}, as many times the "
            f"{world.size} ranks with optim.accumulate={optim.accumulate}."
        )
    if (optim.mixup or optim.cutmix) and optim.batch_size % (2 * together * world.size * optim.accumulate):
        several = f" and data.clips_per_video={together}" if together > 1 else ""
        raise UserError(
            f"optim.mixup={optim.mixup:g} optim.cutmix={optim.cutmix:g} mix the clips of a micro-batch in pairs"
            f"{' of two videos' if together > 1 else ''}: optim.batch_size={optim.batch_size} must be a multiple of "
            f"{2 * together * world.size * optim.accumulate}, twice the {world.size} ranks with optim.accumulate="
            f"{optim.accumulate}{several}."
        )


def initialize(network: VideoResNet, config: TrainConfig, table: VideoTable) -> Loaded:
    """Gives a new run its weights."""
    loaded = Loaded("random weights", [])
    if config.model.pretrained is not None:
        loaded = load_pretrained(network, config, table.classes)
    if "fc" in loaded.new_parts and "head" in network.frozen:
        raise UserError(
            f"model.freeze={config.model.freeze}: the head is new and could never learn; model.pretrained has other "
            "classes, or none."
        )
    check_blocks_can_learn(network, loaded.new_parts)
    return loaded


def state_of(run: Run, step: int, precise_bn: dict[str, Tensor] | None = None) -> dict[str, Any]:
    """Returns what a checkpoint holds besides its format and digest.

    The step is also the position in the data, and random numbers are functions of it. `precise_bn` is for evaluation;
    the running statistics in `model` stay what training made them.
    """
    learner = run.learner
    return {
        "model": learner.network.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "ema": None if learner.averaged is None else learner.averaged.module.state_dict(),
        "precise_bn": precise_bn,
        "step": step,
        "meter": {"num_bad": run.bad_videos.num_bad, **run.metrics.state()},
        "new_parts": run.new_parts,
        "slow_videos": run.skipped.nonzero().flatten().tolist(),
        "config": to_container(run.config),
        "classes": list(run.train_table.classes),
        "list_sha256": run.train_table.digest(),
        "world": {"size": run.world.size, "dtype": str(learner.dtype).removeprefix("torch.")},
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__, "python": platform.python_version()},
    }
