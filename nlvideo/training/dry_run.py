"""dry_run=true: what a run would cost, from shapes and from a few steps that leave nothing behind."""

import dataclasses
import resource
import shutil
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from nlvideo.build.data import num_workers, train_batches
from nlvideo.build.model import build_model
from nlvideo.config.schema import TrainConfig
from nlvideo.models.cost import cost_table
from nlvideo.runtime import distributed
from nlvideo.runtime.cores import cores_of_rank, ranks_here
from nlvideo.runtime.distributed import World
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.free_memory import free_memory
from nlvideo.training.memory import savings, step_memory
from nlvideo.training.memory_trial import free_cache, largest_measured
from nlvideo.training.preflight import SHARED_MEMORY, Inputs, planned_share, shared_memory_needed
from nlvideo.training.setup import Run

DRY_STEPS = 3  # the first one warms up


class Trial(NamedTuple):
    """What a dry run measured of a step of one process, in seconds."""

    loading: float  # without workers
    computing: float
    num_steps: int  # that these are means of


def try_steps(run: Run, train_step: Callable[[Any, list], object]) -> None:
    """Prints what the run would cost, then trains a few steps and prints what they took.

    Raises:
        UserError: a step does not fit into the device's memory.
    """
    distributed.on_main(print_plan, run.config, run.inputs, run.world)
    trial = time_steps(run, train_step)
    if run.world.is_main:
        if trial:
            print_trial(run.config, run.inputs, run.world, trial)
        try_sizes(run, train_step)
    if not trial:
        raise UserError(
            f"optim.batch_size={run.config.optim.batch_size}: a step with micro-batches of "
            f"{run.share().clips_per_micro_batch} clips does not fit into the memory of {run.world.device}. Raise "
            f"optim.accumulate={run.config.optim.accumulate}, or take one of the settings in the table."
        )
    if run.world.is_main:
        print(f"Dry run: nothing was written to {run.config.output_dir}.")


def time_steps(run: Run, train_step: Callable[[Any, list], object]) -> Trial | None:
    """Returns what a few steps took, None if the GPU has too little memory for them."""
    # Loaded in this process: workers deliver their first batches together, which would hide what one batch costs.
    steps = train_batches(
        dataclasses.replace(run.config.data, num_workers=0),
        run.train_table,
        run.share(),
        run.skipped,
        seed=run.config.seed,
        first_step=run.first_step,
        last_step=run.first_step + DRY_STEPS,
    )
    loading, computing, started = [], [], time.monotonic()
    for batches in steps:
        loaded = time.monotonic()
        try:
            train_step(run.learner, batches)
        except torch.OutOfMemoryError:
            return None
        loading.append(loaded - started)
        started = time.monotonic()
        computing.append(started - loaded)
    return Trial(np.mean(loading[1:]).item(), np.mean(computing[1:]).item(), DRY_STEPS - 1)


def try_sizes(run: Run, train_step: Callable[[Any, list], object]) -> None:
    """Prints the largest micro-batch that a GPU takes; comes last, because it spoils the weights."""
    run.learner.optimizer.zero_grad(set_to_none=True)
    together = run.config.sync_bn and run.world.size > 1  # such a step cannot be tried by one rank
    if run.world.device.type != "cuda" or together:
        return
    free_cache()
    now = step_memory(run.config, run.network.num_classes, run.world)
    most = max(1, now.largest(torch.cuda.get_device_properties(run.world.device).total_memory))
    largest = largest_measured(run.learner, train_step, most)
    print(f"largest   a micro-batch of at most {largest} clips fits (measured, to a sixteenth)", flush=True)


def print_plan(config: TrainConfig, inputs: Inputs, world: World) -> None:
    """Prints what a dry run knows without computing anything.

    Raises:
        UserError: the device has less memory than a step needs.
    """
    from rich.console import Console
    from rich.table import Table

    console, data = Console(width=max(Console().width, 100)), config.data
    with torch.device("meta"):  # the run's own may have been made for a GPU
        network = build_model(config.model, config.block, data, inputs.network.num_classes)
    table = Table("part", "output", "M parameters", "G multiply-adds", title=f"one clip, {data.num_frames} frames")
    for row in cost_table(network, data.num_frames, data.crop_size, data.crop_size):
        table.add_row(row.name, row.output, f"{row.params / 1e6:.3f}", f"{row.multiply_adds / 1e9:.3f}")
    console.print(table)

    table = Table("list", "videos", "classes", "missing files", "SHA-256")
    for name, videos in (("train", inputs.train_table), ("val", inputs.val_table)):
        missing = videos.missing()
        shown = f"{len(missing)}" + (f", first {missing[0]}" if missing else "")
        table.add_row(name, str(len(videos)), str(len(videos.classes)), shown, videos.digest()[:16])
    console.print(table)

    print_memory(config, inputs, world)


def print_memory(config: TrainConfig, inputs: Inputs, world: World) -> None:
    """Prints the memory that a step needs, what would save some of it, and the largest micro-batch that fits.

    Raises:
        UserError: the device has less memory than a step needs.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    num_classes, clips = inputs.network.num_classes, planned_share(config).clips_per_micro_batch
    now, there = step_memory(config, num_classes, world), _memory_for(inputs, world)
    table = Table("memory predicted, GB", "weights*", "activations", "together", "of now", "clips that fit")
    for label, use in [("as configured", now), *savings(config, num_classes, world, now)]:
        sizes = (f"{size / 1e9:.2f}" for size in (use.weights, use.activations, use.total))
        table.add_row(Text(label), *sizes, f"{100 * use.total / now.total:.0f} %", str(use.largest(there)))
    Console(width=max(Console().width, 130)).print(table)
    state = "momentum" if config.optim.kind == "sgd" else "moments"
    averaged = ", averaged weights" if config.optim.ema_decay else ""
    print(f"          * with gradients, {state}{averaged}; checkpointing takes the block that it recomputes on top")
    parts = f"weights, gradients and {state} {now.weights / 1e9:.2f}, activations of {clips} clips"
    parts += f" {now.activations / 1e9:.2f}; {there / 1e9:.2f} GB available"
    print(f"memory    {now.total / 1e9:.2f} GB predicted: {parts}")
    print(f"largest   a micro-batch of at most {now.largest(there)} clips fits into that (computed)", flush=True)
    if now.total > there:
        raise UserError(
            f"optim.batch_size={config.optim.batch_size}: a micro-batch of {clips} clips needs at least "
            f"{now.total / 1e9:.1f} GB, and this device has {there / 1e9:.1f}. Raise optim.accumulate="
            f"{config.optim.accumulate}, use more devices, or model.activation_checkpointing."
        )


def print_trial(config: TrainConfig, inputs: Inputs, world: World, trial: Trial) -> None:
    """Prints what a dry run measured, and what follows for the whole run."""
    from rich.console import Console
    from rich.table import Table

    data, optim = config.data, config.optim
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    cuda = world.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cores, workers = cores_of_rank(), num_workers(data)
    loading = trial.loading / max(1, min(workers, cores))
    # On a GPU loading and computing overlap; on a CPU they share its cores.
    seconds = max(loading, trial.computing) if cuda else loading + trial.computing
    hours = optim.max_steps * seconds / 3600
    table = Table("what", "value", show_header=False)
    for name, value in (
        ("memory, measured", f"{peak / 1e9:.2f} GB peak in these steps, of the whole process"),
        ("CPU cores", f"{cores} for each of {ranks_here()} processes here, which has {workers} workers"),
        ("shared memory", f"{shared_memory_needed(config) / 1e6:.0f} MB for the workers' batches, "
         f"{free / 1e6:.0f} MB free"),
        ("steps per epoch", f"{len(inputs.train_table) / optim.batch_size:.1f}"),
        ("computing a step", f"{trial.computing:.2f} s, mean of {trial.num_steps} steps"),
        ("loading a step", f"{loading:.2f} s with these workers, from {trial.loading:.2f} s in one process"),
        ("a step", f"about {seconds:.2f} s, {optim.batch_size / seconds:.1f} clips/s"),
        ("the whole run", f"about {hours:.1f} hours for {optim.max_steps} steps, without validation"),
    ):  # fmt: skip
        table.add_row(name, value)
    Console(width=max(Console().width, 100)).print(table)


def _memory_for(inputs: Inputs, world: World) -> int:
    """Returns the bytes that this rank can have, with those that its weights take already."""
    free = free_memory(world.device)
    if world.device.type != "cuda":
        free //= ranks_here()  # all of this machine's ranks share it
    return free + sum(p.nbytes for p in inputs.network.parameters())
