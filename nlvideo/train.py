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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from nlvideo import distributed as world_of
from nlvideo.checkpoint import config_differences, load_checkpoint, save_checkpoint
from nlvideo.config import RunFailed, TrainConfig, run_command, to_container, to_dataclass, to_yaml
from nlvideo.data import (
    VideoTable,
    build_center_loader,
    build_train_loader,
    prepare_data,
    read_train_table,
    read_val_table,
)
from nlvideo.data.dataset import Batch
from nlvideo.data.transforms import normalize
from nlvideo.logger import CURVES_FILE, METRICS_FILE, TENSORBOARD_FOLDER, RunLogger
from nlvideo.models import build_model
from nlvideo.models.resnet import VideoResNet
from nlvideo.models.weights import check_blocks_can_learn, load_pretrained
from nlvideo.optim import lr_at, param_groups
from nlvideo.precision import autocast, input_dtype, resolve_precision

CHECKPOINT_FILE = "checkpoint.pt"
CONFIG_FILE = "config.yaml"
# What a resumed run may change, because the result is the same run.
FREE_KEYS = (
    "output_dir num_devices resume log_every_steps validate_every_steps checkpoint_every_steps optim.max_steps "
    "data.root data.num_workers data.max_bad_share model.pretrained"
).split()


def main() -> None:
    run_command(run, "train")


def run(composed: DictConfig) -> float:
    """Trains one run and returns its last validation top-1."""
    config = to_dataclass(composed)
    if config.num_devices > 1:
        check_inputs(config)  # before any process is started, so that a mistake is one message
    return world_of.launch(train, config, config.num_devices)


def train(config: TrainConfig) -> float:
    """Trains in this process, together with the others if there are any; returns the last validation top-1."""
    world = world_of.init_world()
    world_of.check_same(hashlib.sha256(to_yaml(config).encode()).hexdigest(), "configuration")
    if config.optim.batch_size % world.size:
        raise ValueError(f"optim.batch_size={config.optim.batch_size} cannot be shared by {world.size} processes.")
    if world.is_main:
        prepare_data(config.data)
    world_of.wait_for_all()
    train_table, val_table, network, checkpoint = check_inputs(config)
    first_step = checkpoint["step"] if checkpoint else 0

    torch.manual_seed(config.seed)  # the same initial weights in every process
    if checkpoint:
        network.load_state_dict(checkpoint["model"])
    loaded = initialize(network, config, train_table) if not checkpoint else f"resumed after step {first_step}"
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

    folder, logger = Path(config.output_dir), None
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(to_yaml(config))
        print_start(config, network, train_table, val_table, loaded, world, dtype)
        logger = RunLogger(folder, first_step, optim.max_steps)

    train_loader = build_train_loader(
        config.data,
        train_table,
        optim.batch_size,
        seed=config.seed,
        first_step=first_step,
        last_step=optim.max_steps,
        rank=world.rank,
        size=world.size,
    )
    share = optim.batch_size // world.size
    val_loader = build_center_loader(config.data, val_table, share, rank=world.rank, size=world.size)
    stopping = StopSignal()
    meter = Meter(world.size, checkpoint["bad_samples"] if checkpoint else 0, first_step * optim.batch_size)
    top1 = float("nan")
    step = first_step
    for step, batch in enumerate(timed(train_loader, meter), first_step + 1):
        lr = lr_now(config, step - 1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        # Dropout is a function of (seed, rank, step), so a resumed run needs no saved random state.
        torch.manual_seed(int(np.random.SeedSequence([config.seed, world.rank, step]).generate_state(1)[0]))
        loss = train_step(model, optimizer, batch, config, world.device, dtype)

        stop = meter.add(loss, batch, step, train_table, stopping.received)
        meter.check_bad_share(config.data.max_bad_share, len(train_table))
        if logger:
            logger.advance()
        if step % config.log_every_steps == 0 or step == optim.max_steps or stop:
            values = meter.take(lr)
            if logger:
                logger.log("train", step, values)
        if (step % config.validate_every_steps == 0 or step == optim.max_steps) and not stop:
            values = validate(network, val_loader, config, world, dtype)
            top1 = values["top1"]
            if logger:
                logger.log("val", step, values)
            meter.restart_clock()
        if step % config.checkpoint_every_steps == 0 or step == optim.max_steps or stop:
            if logger:
                save_checkpoint(folder / CHECKPOINT_FILE, state_of(config, network, optimizer, step, train_table, meter))
        if stop:
            break

    if logger:
        logger.close()
        print_end(folder, step, optim.max_steps, top1)
    world_of.leave_world()
    if stopping.received:
        sys.exit(128 + stopping.received)
    return top1


def train_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: TrainConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Updates the weights once and returns the mean loss of this process's clips."""
    mean, std = torch.tensor(config.data.mean), torch.tensor(config.data.std)
    model.train()
    clips = normalize(batch.clips.to(device, non_blocking=True), mean, std, input_dtype(dtype))
    with autocast(device, dtype):
        logits = model(clips)  # (N, K)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(logits, batch.targets.to(device, non_blocking=True))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.inference_mode()
def validate(
    network: VideoResNet, loader: DataLoader, config: TrainConfig, world: world_of.World, dtype: torch.dtype
) -> dict[str, float]:
    """Returns top-1 and top-5 on the centre clips; every video counts once, an undecodable one as wrong."""
    mean, std = torch.tensor(config.data.mean), torch.tensor(config.data.std)
    world_of.copy_from_main(list(network.buffers()))  # each process updated its batch norms with its own clips
    network.eval()
    top1 = top5 = total = bad = 0.0
    for batch in loader:
        bad += len(batch.failures)
        total += len(batch.failures) + len(batch.targets)
        if len(batch.targets) == 0:
            continue
        clips = normalize(batch.clips.to(world.device, non_blocking=True), mean, std, input_dtype(dtype))
        with autocast(world.device, dtype):
            logits = network(clips)
        best = logits.topk(min(5, logits.shape[1])).indices.cpu()
        right = best == batch.targets[:, None]
        top1 += right[:, 0].sum().item()
        top5 += right.any(1).sum().item()
    top1, top5, total, bad = world_of.sum_over_ranks([top1, top5, total, bad])
    return {"top1": top1 / total, "top5": top5 / total, "num_videos": int(total), "num_undecodable": int(bad)}


def check_inputs(config: TrainConfig) -> tuple[VideoTable, VideoTable, VideoResNet, dict[str, Any] | None]:
    """Returns the videos, the network without its weights' values, and the checkpoint to resume from, if any.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: anything that would make the run fail or overwrite another.
    """
    prepare_data(config.data)
    train_table = read_train_table(config.data)
    val_table = read_val_table(config.data, train_table.classes)
    network = build_model(config.model, config.block, config.data, len(train_table.classes))
    return train_table, val_table, network, find_checkpoint(config, train_table)


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
    if CHECKPOINT_FILE not in held:
        return None
    checkpoint = load_checkpoint(folder / CHECKPOINT_FILE)
    changed = [
        line
        for line in config_differences(checkpoint["config"], to_container(config))
        if not any(line.startswith(f"{key}:") or line.startswith(f"{key}.") for key in FREE_KEYS)
    ]
    if checkpoint["list_sha256"] != table.digest():
        changed.append(f"the training list: {table.source} has other videos, labels or class names than before")
    if changed:
        raise ValueError(f"{folder / CHECKPOINT_FILE} is of another run than the one asked for:\n  " + "\n  ".join(changed))
    if checkpoint["step"] >= config.optim.max_steps:
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


def state_of(
    config: TrainConfig,
    network: VideoResNet,
    optimizer: torch.optim.Optimizer,
    step: int,
    table: VideoTable,
    meter: "Meter",
) -> dict[str, Any]:
    """Returns what a checkpoint holds besides its format."""
    return {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "config": to_container(config),
        "classes": list(table.classes),
        "list_sha256": table.digest(),
        "bad_samples": meter.num_bad,
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__, "python": platform.python_version()},
    }


class Meter:
    """Counts over all processes: loss, speed, waiting for data, and samples that could not be decoded."""

    def __init__(self, world_size: int, num_bad: int, num_samples: int):
        self.world_size, self.num_bad, self.num_samples = world_size, num_bad, num_samples
        self.wait = 0.0
        self._losses: list[torch.Tensor] = []
        self._clips = 0
        self._start = time.monotonic()

    def add(self, loss: torch.Tensor, batch: Batch, step: int, table: VideoTable, stop: int) -> bool:
        """Counts a step; returns whether any process was asked to stop.

        Raises:
            RunFailed: the loss is not finite in some process; names the step and that process's videos.
        """
        finite = math.isfinite(loss.item())
        stopping, broken, bad, clips = world_of.sum_over_ranks(
            [bool(stop), not finite, len(batch.failures), len(batch.targets)]
        )
        if not finite:
            videos = ", ".join(table.name(i) for i in batch.videos.tolist())
            raise RunFailed(f"The loss is {loss.item()} at step {step}, on the videos {videos}.")
        if broken:
            raise RunFailed(f"The loss is not finite at step {step} in another process, which names the videos.")
        self._losses.append(loss)
        self._clips += int(clips)
        self.num_bad += int(bad)
        self.num_samples += int(clips)
        return stopping > 0

    def check_bad_share(self, allowed: float, num_videos: int) -> None:
        """Raises RunFailed if more samples were bad than allowed, of all so far or of the first thousand."""
        seen = max(self.num_samples, min(1000, num_videos))
        if self.num_bad > allowed * seen:
            raise RunFailed(
                f"{self.num_bad} of the first {self.num_samples} samples could not be decoded, more than "
                f"data.max_bad_share={allowed} allows."
            )

    def take(self, lr: float) -> dict[str, float]:
        """Returns the values since the last call, the same in every process, and starts again."""
        seconds = time.monotonic() - self._start
        losses = torch.stack(self._losses).double()
        loss, wait = world_of.sum_over_ranks([losses.mean().item(), self.wait / seconds])
        values = {
            "loss": loss / self.world_size,
            "lr": lr,
            "clips_per_second": self._clips / seconds,
            "data_wait_share": wait / self.world_size,
            "bad_share": self.num_bad / self.num_samples,
        }
        self._losses, self._clips = [], 0
        self.restart_clock()
        return values

    def restart_clock(self) -> None:
        self.wait, self._start = 0.0, time.monotonic()


def timed(loader: Iterable[Batch], meter: Meter) -> Iterable[Batch]:
    """Yields the loader's batches and adds the time spent waiting for each to the meter."""
    batches = iter(loader)
    while True:
        start = time.monotonic()
        batch = next(batches, None)
        meter.wait += time.monotonic() - start
        if batch is None:
            return
        yield batch


class StopSignal:
    """Remembers SIGINT (Ctrl-C) or SIGTERM, so that the step is finished and a checkpoint written."""

    def __init__(self):
        self.received = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame) -> None:
        self.received = number


def print_start(
    config: TrainConfig,
    network: VideoResNet,
    train_table: VideoTable,
    val_table: VideoTable,
    loaded: str,
    world: world_of.World,
    dtype: torch.dtype,
) -> None:
    """Says what is trained, on what, from which weights, and why at this learning rate."""
    optim, data = config.optim, config.data
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    places = f"after {', '.join(network.places)}" if network.places else ""
    print(to_yaml(config))
    print(f"network   {config.model.layout} R{config.model.depth}, {millions:.2f} M parameters, {loaded}")
    print(f"blocks    {len(network.places)} {config.block.kind if network.places else ''} {places}")
    for name, table in (("train", train_table), ("val", val_table)):
        print(f"{name:9} {len(table)} videos of {len(table.classes)} classes, {table.source}")
    scaled = optim.lr * optim.batch_size / optim.lr_batch_size
    print(
        f"lr        {scaled:g} = {optim.lr:g} x {optim.batch_size}/{optim.lr_batch_size}: {optim.lr:g} is for "
        f"{optim.lr_batch_size} clips a step, this run takes {optim.batch_size} ({world.size} x "
        f"{optim.batch_size // world.size}), scaled linearly"
    )
    epochs = optim.max_steps * optim.batch_size / len(train_table)
    print(f"steps     {optim.max_steps} of {optim.batch_size} clips, {epochs:.1f} epochs")
    print(f"clips     {data.num_frames} frames, every {data.frame_stride}., {data.crop_size} x {data.crop_size} pixels")
    print(f"device    {world.size} x {world.device.type}, {str(dtype).removeprefix('torch.')}", flush=True)


def print_end(folder: Path, step: int, max_steps: int, top1: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{step} of {max_steps} steps", title_justify="left", show_header=False)
    if not math.isnan(top1):
        table.add_row("validation top-1, one centre clip", f"{100 * top1:.2f} %")
    rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    if losses:
        table.add_row("training loss", f"{losses[-1]:.4f}")
    table.add_row("checkpoint", str(folder / CHECKPOINT_FILE))
    table.add_row("TensorBoard", f"tensorboard --logdir {folder / TENSORBOARD_FOLDER}")
    table.add_row("curves", str(folder / CURVES_FILE))
    Console(soft_wrap=True).print(table)
    if step < max_steps:
        print("Stopped before the end; the same command with resume=auto goes on from here.")


if __name__ == "__main__":
    main()
