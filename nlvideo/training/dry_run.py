"""dry_run=true: what a run would cost, from shapes and from a few steps that leave nothing behind."""

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

from nlvideo.build.data import batches_of_clips, num_workers, train_clips
from nlvideo.build.model import build_model
from nlvideo.config.schema import DataConfig, TrainConfig
from nlvideo.data.clips.batch import Batch
from nlvideo.models.cost import cost_table
from nlvideo.runtime import distributed
from nlvideo.runtime.cores import cores_of_rank, ranks_here
from nlvideo.runtime.distributed import World
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.free_memory import free_memory, peak_memory
from nlvideo.runtime.shared_memory import room_line
from nlvideo.training.memory import savings, step_memory
from nlvideo.training.memory_trial import free_cache, largest_measured
from nlvideo.training.preflight import Inputs, planned_share, shared_memory_needed
from nlvideo.training.setup import Run
from nlvideo.training.throughput import Rank, StepParts, Work, step_parts, throughput_rows

DRY_STEPS = 3  # the first one warms up

Timed = TypeVar("Timed")


def try_steps(run: Run, train_step: Callable[[Any, list], object]) -> None:
    """Prints what the run would cost, then trains a few steps and prints what they took.

    Raises:
        UserError: a step does not fit into the device's memory.
    """
    distributed.on_main(print_plan, run.config, run.inputs, run.world)
    trial = time_steps(run, train_step)
    if run.world.is_main:
        if trial:
            print_trial(run, trial)
        try_sizes(run, train_step)
    if not trial:
        raise UserError(
            f"optim.batch_size={run.config.optim.batch_size}: a step with micro-batches of "
            f"{run.share().clips_per_micro_batch} clips does not fit into the memory of {run.world.device}. Raise "
            f"optim.accumulate={run.config.optim.accumulate}, or take one of the settings in the table."
        )
    if run.world.is_main:
        print(f"Dry run: nothing was written to {run.config.output_dir}.")


def time_steps(run: Run, train_step: Callable[[Any, list], object]) -> StepParts | None:
    """Returns the means of a few steps, None if the GPU has too little memory for them.

    With several ranks they do not wait for each other's data, and each step is computed once more by every rank alone.
    """
    learner, device = run.learner, run.world.device
    alone = dataclasses.replace(learner, model=learner.network, world=dataclasses.replace(run.world, size=1))
    found = []
    with closing(_steps_in_this_process(run, run.config.data, DRY_STEPS)) as steps:
        for _ in range(DRY_STEPS):
            with threads_of_loading(run.config.data):
                batches, decoding = timed(device, next, steps)
            distributed.wait_for_all()
            learner.timer.take()
            try:
                batches, copying = timed(device, on_device, batches, device)
                together = timed(device, train_step, learner, batches)[1]
                spent = learner.timer.take()
                by_itself = timed(device, train_step, alone, batches)[1] if run.world.size > 1 else together
            except torch.OutOfMemoryError:
                return None
            of_step = {"together": together, "alone": by_itself, "communication": spent["communication"]}
            found.append(step_parts(decoding, copying, spent["forward"], **of_step))
    return StepParts(*np.mean(found[1:], axis=0).tolist())


def decoding_apart(run: Run) -> float | None:
    """Returns the seconds that loading a step's clips takes with one of each video, as validation has them; None where
    training has one of each, too."""
    if run.config.data.clips_per_video == 1:
        return None
    data = dataclasses.replace(run.config.data, clips_per_video=1)
    with closing(_steps_in_this_process(run, data, 1)) as steps, threads_of_loading(data):
        return timed(run.world.device, next, steps)[1]


def _steps_in_this_process(run: Run, data: DataConfig, count: int) -> Generator[list[Batch], None, None]:
    """Returns the batches of steps, loaded here: workers deliver their first ones together, which would hide what one
    batch costs."""
    place = {"first_step": run.first_step, "last_step": run.first_step + count}
    data = dataclasses.replace(data, num_workers=0)
    clips = train_clips(data, run.train_table, run.skipped, seed=run.config.seed, index_grows=False)
    return batches_of_clips(data, clips, run.share(), **place)


@contextmanager
def threads_of_loading(data: DataConfig) -> Iterator[None]:
    """Gives torch as many threads as it has where the run loads its data; PyTorch gives each worker one."""
    threads = torch.get_num_threads()
    if num_workers(data):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def timed(device: torch.device, function: Callable[..., Timed], *args: Any) -> tuple[Timed, float]:
    """Returns function(*args) and the seconds until the device has done what it asked for."""
    _finish(device)
    started = time.perf_counter()
    result = function(*args)
    _finish(device)
    return result, time.perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_device(batches: list[Batch], device: torch.device) -> list[Batch]:
    """Returns the batches with their clips on the device."""
    return [batch._replace(clips=batch.clips.to(device, non_blocking=True)) for batch in batches]


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
        fit = "unknown" if there is None else str(use.largest(there))
        table.add_row(Text(label), *sizes, f"{100 * use.total / now.total:.0f} %", fit)
    Console(width=max(Console().width, 130)).print(table)
    state = "momentum" if config.optim.kind == "sgd" else "moments"
    averaged = ", averaged weights" if config.optim.ema_decay else ""
    print(f"          * with gradients, {state}{averaged}; checkpointing takes the block that it recomputes on top")
    parts = f"weights, gradients and {state} {now.weights / 1e9:.2f}, activations of {clips} clips"
    parts += (
        f" {now.activations / 1e9:.2f}; " + ("unknown" if there is None else f"{there / 1e9:.2f} GB") + " available"
    )
    print(f"memory    {now.total / 1e9:.2f} GB predicted: {parts}", flush=True)
    if there is None:
        return
    print(f"largest   a micro-batch of at most {now.largest(there)} clips fits into that (computed)", flush=True)
    if now.total > there:
        raise UserError(
            f"optim.batch_size={config.optim.batch_size}: a micro-batch of {clips} clips needs at least "
            f"{now.total / 1e9:.1f} GB, and this device has {there / 1e9:.1f}. Raise optim.accumulate="
            f"{config.optim.accumulate}, use more devices, or model.activation_checkpointing."
        )


def print_trial(run: Run, parts: StepParts) -> None:
    """Prints what a dry run measured, what bounds the run, and how long it takes."""
    from rich.console import Console
    from rich.table import Table

    config, work = run.config, work_of(run)._replace(decoding_apart=decoding_apart(run))
    rank = Rank(cores_of_rank(), num_workers(config.data), run.world.device.type == "cuda")
    peak = peak_memory(run.world.device)
    table = Table("what", "value", show_header=False)
    if peak is not None:
        table.add_row("memory, measured", f"{peak / 1e9:.2f} GB peak in these steps, of the whole process")
    table.add_row(
        "CPU cores", f"{rank.cores} for each of {ranks_here()} processes here, which has {rank.workers} workers"
    )
    table.add_row(
        "shared memory", f"{shared_memory_needed(config) / 1e6:.0f} MB for the workers' batches; {room_line()}"
    )
    table.add_row("steps per epoch", f"{len(run.train_table) / config.optim.batch_size:.1f}")
    for name, value in throughput_rows(parts, rank, work):
        table.add_row(name, value)
    Console(width=max(Console().width, 100)).print(table)


def work_of(run: Run) -> Work:
    """Returns what the whole run does, from its first step."""
    config = run.config
    return Work(
        steps=config.optim.max_steps - run.first_step,
        clips=config.optim.batch_size // run.world.size,
        ranks=run.world.size,
        validations=math.ceil(config.optim.max_steps / config.validate_every_steps)
        - run.first_step // config.validate_every_steps,
        videos=len(run.inputs.val_table),
        precise_bn_steps=config.precise_bn_steps,
    )


def _memory_for(inputs: Inputs, world: World) -> int | None:
    """Returns the bytes that this rank can have, with those that its weights take already; None if unknown."""
    free = free_memory(world.device)
    if free is None:
        return None
    if world.device.type != "cuda":
        free //= ranks_here()  # all of this machine's ranks share it
    return free + sum(p.nbytes for p in inputs.network.parameters())
