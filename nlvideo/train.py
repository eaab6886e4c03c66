"""nlvideo-train: the whole training program, in reading order.

N clips of this process, K classes.
"""

import hashlib
import json
import math
import platform
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from torch.nn.parallel import DistributedDataParallel

from nlvideo import distributed as world_of
from nlvideo.checkpoint import config_differences, load_checkpoint, save_checkpoint
from nlvideo.config import TrainConfig, from_container, run_command, to_container, to_dataclass, to_yaml
from nlvideo.data import (
    VideoTable,
    center_batches,
    prepare_data,
    read_train_table,
    read_val_table,
    train_batches,
)
from nlvideo.data.dataset import Batch
from nlvideo.data.decode import load_decoder
from nlvideo.data.transforms import normalize
from nlvideo.logger import CURVES_FILE, LEDGER_FILE, METRICS_FILE, TENSORBOARD_FOLDER, RunLogger
from nlvideo.meter import Meter, timed
from nlvideo.models import build_model, check_clip
from nlvideo.models.resnet import STEMS, VideoResNet, temporal_size
from nlvideo.models.weights import check_blocks_can_learn, load_pretrained
from nlvideo.optim import lr_at, param_groups
from nlvideo.precision import autocast, input_dtype, resolve_precision

CHECKPOINT_FILE = "checkpoint.pt"
CONFIG_FILE = "config.yaml"
# What a resumed run may change, because the result is the same run.
FREE_KEYS = (
    "output_dir num_devices resume log_every_steps validate_every_steps checkpoint_every_steps optim.max_steps "
    "data.root data.num_workers data.start_method data.time_limit_seconds data.skip_slow data.max_bad_share "
    "model.pretrained"
).split()


def main() -> None:
    run_command(run, "train")


def run(composed: DictConfig) -> float:
    """Trains one run and returns its last validation top-1."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ValueError("-m (--multirun): a sweep's points would share one output_dir; start each run by itself.")
    config = to_dataclass(composed)
    if config.num_devices > 1:
        check_inputs(config)  # before any process is started, so that a mistake is one message
    return world_of.launch(train, config, config.num_devices)


@dataclass
class Run:
    """All that a training process works with."""

    config: TrainConfig
    world: world_of.World
    network: VideoResNet
    model: torch.nn.Module  # the network, wrapped where several processes share the gradients
    optimizer: torch.optim.Optimizer
    dtype: torch.dtype
    train_table: VideoTable
    val_table: VideoTable
    first_step: int  # steps done by the run that this one resumes
    num_bad: int  # samples that it could not decode
    skipped: torch.Tensor  # (training videos,) bool, shared with the workers: those that took too long
    origin: str  # where the weights come from

    def normalize(self, clips: torch.Tensor) -> torch.Tensor:
        mean, std = torch.tensor(self.config.data.mean), torch.tensor(self.config.data.std)
        return normalize(clips.to(self.world.device, non_blocking=True), mean, std, input_dtype(self.dtype))


def train(config: TrainConfig) -> float:
    """Trains in this process, together with the others if there are any; returns the last validation top-1."""
    run = set_up(config)
    stopping = StopSignal()
    folder, logging = Path(config.output_dir), nullcontext()
    if run.world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(to_yaml(config))
        print_start(run)
        logging = RunLogger(folder, run.first_step, config.optim.max_steps)
    with logging as logger:
        step, top1 = train_steps(run, stopping, logger)
    if run.world.is_main:
        print_end(folder, step, config.optim.max_steps, top1)
    world_of.leave_world()
    if stopping.received:
        sys.exit(128 + stopping.received)
    return top1


def train_steps(run: Run, stopping: "StopSignal", logger: RunLogger | None) -> tuple[int, float]:
    """Trains to the last step, or until asked to stop; returns the steps done and the last validation top-1."""
    config, optim, place = run.config, run.config.optim, {"rank": run.world.rank, "size": run.world.size}
    steps = {"first_step": run.first_step, "last_step": optim.max_steps}
    batches = train_batches(
        config.data, run.train_table, optim.batch_size, run.skipped, seed=config.seed, **steps, **place
    )
    meter = Meter(run.world.size, run.num_bad, run.first_step * optim.batch_size)
    step = run.first_step
    top1 = world_of.gather(logger.last_top1() if logger else None)[0]
    due = step > 0 and (step % config.validate_every_steps == 0 or step == optim.max_steps)
    if due and not world_of.gather(logger.has_validation(step) if logger else None)[0]:
        values = validate(run)  # the run was stopped between its checkpoint and its validation
        top1 = values["top1"]
        if logger:
            logger.log("val", step, values)

    for step, batch in enumerate(timed(batches, meter), run.first_step + 1):
        lr = lr_now(config, step - 1)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        # Dropout is a function of (seed, rank, step), so a resumed run needs no saved random state.
        torch.manual_seed(int(np.random.SeedSequence([config.seed, run.world.rank, step]).generate_state(1)[0]))
        loss = train_step(run, batch)

        stop = meter.add(loss, batch, step, run.train_table, run.skipped, stopping.received)
        too_bad = meter.too_many_bad(config.data.max_bad_share, len(run.train_table))
        last = step == optim.max_steps
        saving = step % config.checkpoint_every_steps == 0 or last or stop
        if step % config.log_every_steps == 0 or last or stop or too_bad:
            values = meter.take(lr)
            if logger:
                logger.log("train", step, values)
        if saving or too_bad or step % config.log_every_steps == 0:
            failures = meter.take_failures()
            if logger:
                logger.log_failures(failures)
        if too_bad:
            raise world_of.RunFailed(f"{too_bad}; {Path(config.output_dir) / LEDGER_FILE} names each with its reason.")
        paused = time.monotonic()
        if logger:
            logger.advance()
            if saving:
                save_checkpoint(Path(config.output_dir) / CHECKPOINT_FILE, state_of(run, step, meter.num_bad))
        if (step % config.validate_every_steps == 0 or last) and not stop:
            values = validate(run)
            top1 = values["top1"]
            if logger:
                logger.log("val", step, values)
        meter.exclude(time.monotonic() - paused)
        if stop:
            break
    return step, top1


def set_up(config: TrainConfig) -> Run:
    """Joins the other processes and builds the network with its weights, new or resumed, and the optimizer."""
    world = world_of.init_world()
    world_of.check_same(hashlib.sha256(to_yaml(config).encode()).hexdigest(), "configuration")
    if config.optim.batch_size % world.size:
        raise ValueError(f"optim.batch_size={config.optim.batch_size} cannot be shared by {world.size} processes.")
    if world.is_main:
        prepare_data(config.data)
    world_of.wait_for_all()
    train_table, val_table, network, checkpoint = check_inputs(config)
    if checkpoint:
        network.load_state_dict(checkpoint["model"])
        origin = f"resumed after step {checkpoint['step']}"
        if checkpoint["num_processes"] != world.size:
            origin += (
                f"; {world.size} processes instead of {checkpoint['num_processes']}: the same clips a step, but "
                "trained batch norm and dropout act within each process"
            )
    else:
        origin = initialize(network, config, train_table)
    dtype = resolve_precision(config.precision, world.device)
    network = network.to(world.device, input_dtype(dtype), memory_format=torch.channels_last_3d)
    optim = config.optim
    optimizer = torch.optim.SGD(
        param_groups(network, optim.weight_decay), optim.lr, optim.momentum, nesterov=optim.nesterov
    )
    if checkpoint:
        optimizer.load_state_dict(checkpoint["optimizer"])
    model = network
    if world.size > 1:
        model = DistributedDataParallel(network, device_ids=[world.device] if world.device.type == "cuda" else None)
    first_step, num_bad = (checkpoint["step"], checkpoint["bad_samples"]) if checkpoint else (0, 0)
    skipped = torch.zeros(len(train_table), dtype=torch.bool).share_memory_()
    if checkpoint:
        skipped[checkpoint.get("slow_videos", [])] = True
    return Run(
        config, world, network, model, optimizer, dtype, train_table, val_table, first_step, num_bad, skipped, origin
    )


def train_step(run: Run, batch: Batch) -> torch.Tensor:
    """Updates the weights once and returns the mean loss of this process's clips."""
    run.model.train()
    with autocast(run.world.device, run.dtype):
        logits = run.model(run.normalize(batch.clips))  # (N, K)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(logits, batch.targets.to(run.world.device, non_blocking=True))
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    run.optimizer.step()
    return loss.detach()


@torch.inference_mode()
def validate(run: Run) -> dict[str, float]:
    """Returns top-1 and top-5 on the centre clips; every video counts once, an undecodable one as wrong."""
    world_of.copy_from_main(list(run.network.buffers()))  # each process updated its batch norms with its own clips
    run.network.eval()
    top1 = top5 = total = bad = 0.0
    data, world = run.config.data, run.world
    clips_a_step = run.config.optim.batch_size // world.size
    for batch in center_batches(data, run.val_table, clips_a_step, rank=world.rank, size=world.size):
        bad += len(batch.failures)
        total += len(batch.failures) + len(batch.targets)
        if len(batch.targets) == 0:
            continue
        with autocast(run.world.device, run.dtype):
            logits = run.network(run.normalize(batch.clips))
        best = logits.topk(min(5, logits.shape[1])).indices.cpu()
        right = best == batch.targets[:, None]
        top1 += right[:, 0].sum().item()
        top5 += right.any(1).sum().item()
    top1, top5, total, bad = world_of.sum_over_ranks([top1, top5, total, bad])
    return {"top1": top1 / total, "top5": top5 / total, "num_videos": int(total), "num_undecodable": int(bad)}


def check_inputs(config: TrainConfig) -> tuple[VideoTable, VideoTable, VideoResNet, dict[str, Any] | None]:
    """Returns the videos, the network with random weights, and the checkpoint to resume from, if any.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: anything that would make the run fail or overwrite another.
    """
    load_decoder(config.data.decoder)
    prepare_data(config.data)
    train_table = read_train_table(config.data)
    val_table = read_val_table(config.data, train_table.classes)
    torch.manual_seed(config.seed)  # the same initial weights in every process and every time
    network = build_model(config.model, config.block, config.data, len(train_table.classes))
    check_clip(network, config.data.num_frames, config.data.crop_size, config.data.crop_size)
    check_norm_batch(config)
    return train_table, val_table, network, find_checkpoint(config, train_table)


def check_norm_batch(config: TrainConfig) -> None:
    """Raises ValueError if a process gives the batch norms of res5 one value a channel, which has no variance."""
    clips = config.optim.batch_size // max(config.num_devices, world_of.num_processes())
    frames = temporal_size(STEMS[config.model.stem], config.data.num_frames)
    if clips * frames * (-(-config.data.crop_size // 32)) ** 2 == 1 and not config.model.frozen_bn:
        raise ValueError(
            f"optim.batch_size={config.optim.batch_size}: batch norm in res5 would see a single value a channel in "
            "each process; give at least two clips a process, larger crops or longer clips."
        )


def initialize(network: VideoResNet, config: TrainConfig, table: VideoTable) -> str:
    """Gives a new run its weights and returns a sentence that says where they come from."""
    loaded = "random weights"
    if config.model.pretrained is not None:
        loaded = load_pretrained(network, config.model.pretrained, config.model.depth, list(table.classes))
    check_blocks_can_learn(network)
    return loaded


def find_checkpoint(config: TrainConfig, table: VideoTable) -> dict[str, Any] | None:
    """Returns the checkpoint that the run goes on from, None for a new run.

    Raises:
        FileExistsError: the folder holds a run and resume is not "auto".
        ValueError: it is the checkpoint of another run.
    """
    folder = Path(config.output_dir)
    held = [name for name in (CHECKPOINT_FILE, METRICS_FILE, CONFIG_FILE) if (folder / name).exists()]
    if not held:
        return None
    if config.resume != "auto":
        raise FileExistsError(
            f"output_dir={config.output_dir} holds a run already ({', '.join(held)}): continue it with resume=auto, or "
            "give another output_dir. Nothing is overwritten."
        )
    checkpoint, stored = None, None
    if CHECKPOINT_FILE in held:
        checkpoint = load_checkpoint(folder / CHECKPOINT_FILE)
        stored = checkpoint["config"]
        if "optimizer" not in checkpoint:
            raise ValueError(f"{folder / CHECKPOINT_FILE} holds weights, not a run; use it as model.pretrained.")
    elif CONFIG_FILE in held:
        stored = OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE))
    old = to_container(from_container(TrainConfig, stored or {}))  # keys that are newer than the run get their defaults
    free = FREE_KEYS if config.optim.schedule == "steps" else [key for key in FREE_KEYS if key != "optim.max_steps"]
    changed = [
        line
        for line in config_differences(old, to_container(config))
        if stored and not any(line.startswith(f"{key}:") or line.startswith(f"{key}.") for key in free)
    ]
    if checkpoint and checkpoint["list_sha256"] != table.digest():
        changed.append(f"the training list: {table.source} has other videos, labels or class names than before")
    if changed:
        lines = "\n  ".join(changed)
        raise ValueError(f"{folder} holds another run than the one asked for:\n  {lines}")
    if checkpoint and checkpoint["step"] >= config.optim.max_steps:
        print(f"{folder} has been trained for {checkpoint['step']} steps already; nothing is left to do.")
    return checkpoint


def lr_now(config: TrainConfig, step: int) -> float:
    optim = config.optim
    return lr_at(
        step,
        lr=optim.lr * optim.batch_size / optim.lr_batch_size,
        max_steps=optim.max_steps,
        schedule=optim.schedule,
        milestones=optim.milestones,
        warmup_steps=optim.warmup_steps,
    )


def state_of(run: Run, step: int, num_bad: int) -> dict[str, Any]:
    """Returns what a checkpoint holds besides its format."""
    return {
        "model": run.network.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "step": step,
        "config": to_container(run.config),
        "classes": list(run.train_table.classes),
        "list_sha256": run.train_table.digest(),
        "bad_samples": num_bad,
        "slow_videos": run.skipped.nonzero().flatten().tolist(),
        "num_processes": run.world.size,
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__, "python": platform.python_version()},
    }


class StopSignal:
    """Remembers SIGINT (Ctrl-C) or SIGTERM, so that the step is finished and a checkpoint written."""

    def __init__(self):
        self.received = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame) -> None:
        self.received = number


def print_start(run: Run) -> None:
    """Says what is trained, on what, from which weights, and why at this learning rate."""
    config, network, world = run.config, run.network, run.world
    optim, data = config.optim, config.data
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    places = f"after {', '.join(network.places)}" if network.places else ""
    print(to_yaml(config))
    print(f"network   {config.model.layout} R{config.model.depth}, {millions:.2f} M parameters, {run.origin}")
    print(f"blocks    {len(network.places)} {config.block.kind if network.places else ''} {places}")
    for name, table in (("train", run.train_table), ("val", run.val_table)):
        print(f"{name:9} {len(table)} videos of {len(table.classes)} classes, {table.source}")
    scaled = optim.lr * optim.batch_size / optim.lr_batch_size
    print(
        f"lr        {scaled:g} = {optim.lr:g} x {optim.batch_size}/{optim.lr_batch_size}: {optim.lr:g} is for "
        f"{optim.lr_batch_size} clips a step, this run takes {optim.batch_size} ({world.size} x "
        f"{optim.batch_size // world.size}), scaled linearly"
    )
    epochs = optim.max_steps * optim.batch_size / len(run.train_table)
    print(f"steps     {optim.max_steps} of {optim.batch_size} clips, {epochs:.1f} epochs")
    print(f"clips     {data.num_frames} frames, every {data.frame_stride}., {data.crop_size} x {data.crop_size} pixels")
    print(f"device    {world.size} x {world.device.type}, {str(run.dtype).removeprefix('torch.')}", flush=True)


def print_end(folder: Path, step: int, max_steps: int, top1: float) -> None:
    """Prints the table of results and, in lines of their own that no terminal cuts, where everything lies."""
    from rich.console import Console
    from rich.table import Table

    rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    table = Table("steps", "training loss", "validation top-1, one centre clip")
    table.add_row(
        f"{step} of {max_steps}",
        f"{losses[-1]:.4f}" if losses else "-",
        "-" if math.isnan(top1) else f"{100 * top1:.2f} %",
    )
    Console().print(table)
    print(f"checkpoint   {folder / CHECKPOINT_FILE}")
    print(f"curves       {folder / CURVES_FILE}")
    print(f"TensorBoard  tensorboard --logdir {folder / TENSORBOARD_FOLDER}")
    if step < max_steps:
        print("Stopped before the end; the same command with resume=auto goes on from here.")


if __name__ == "__main__":
    main()
