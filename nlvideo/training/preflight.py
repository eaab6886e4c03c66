"""Before a run: what would make it fail, what it is about to do, and, as a dry run, what it will cost."""

import os
import resource
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from nlvideo.build.data import prepare_data, read_train_table, read_val_table
from nlvideo.build.model import build_model, check_clip
from nlvideo.config.schema import TrainConfig
from nlvideo.data.decoding.opening import load_decoder
from nlvideo.data.lists.path_list import VideoTable
from nlvideo.models.cost import activation_bytes, cost_table
from nlvideo.models.resnet import STEMS, VideoResNet, temporal_size
from nlvideo.runtime import distributed
from nlvideo.runtime.errors import UserError

SHARED_MEMORY = Path("/dev/shm")
PREFETCHED = 2  # batches that each worker of a DataLoader holds ready
LOADERS = 2  # while a run validates, its training batches wait


class Inputs(NamedTuple):
    """What a run is made of before it has weights."""

    train_table: VideoTable
    val_table: VideoTable
    network: VideoResNet  # with the random weights of the seed


class Trial(NamedTuple):
    """What a dry run measured of a step of one process, in seconds."""

    loading: float  # without workers
    computing: float
    num_steps: int  # of which these are means


def check_inputs(config: TrainConfig) -> Inputs:
    """Returns the videos and the network.

    Raises:
        UserError: anything that would make the run fail.
    """
    check_writable(Path(config.output_dir))
    load_decoder(config.data.decoder)
    prepare_data(config.data)
    train_table = read_train_table(config.data)
    val_table = read_val_table(config.data, train_table.classes)
    if val_table.multi_label and not val_table.targets.any():
        raise UserError(f"data.val={config.data.val}: none of its videos holds an action, so nothing can be measured.")
    torch.manual_seed(config.seed)  # the same initial weights in every process and every time
    network = build_model(config.model, config.block, config.data, len(train_table.classes))
    check_clip(network, config.data.num_frames, config.data.crop_size, config.data.crop_size)
    check_norm_batch(config)
    check_shared_memory(config)
    if config.sync_bn and not torch.cuda.is_available():
        raise UserError("sync_bn=true: PyTorch has synchronised batch norm for CUDA only, and there is no GPU here.")
    return Inputs(train_table, val_table, network)


def check_writable(folder: Path) -> None:
    """Raises UserError if a run could not write into its folder; nothing is left behind."""
    existing = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    if not existing.is_dir():
        raise UserError(f"output_dir={folder}: {existing} is a file, not a folder.")
    probe = existing / f".writable_{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"output_dir={folder} cannot be written: {error.strerror} ({existing}).") from None


def check_norm_batch(config: TrainConfig) -> None:
    """Raises UserError if a pass gives the batch norms of res5 one value a channel, which has no variance."""
    frames = temporal_size(STEMS[config.model.stem], config.data.num_frames)
    if clips_a_pass(config) * frames * (-(-config.data.crop_size // 32)) ** 2 == 1 and not config.model.frozen_bn:
        raise UserError(
            f"optim.batch_size={config.optim.batch_size}: batch norm in res5 would see a single value a channel in "
            "each pass; give at least two clips a pass, larger crops or longer clips."
        )


def clips_a_pass(config: TrainConfig) -> int:
    """Returns how many clips go through the network of one process together."""
    processes = max(config.num_devices, distributed.num_processes())
    return config.optim.batch_size // processes // config.optim.accumulate


def shared_memory_needed(config: TrainConfig) -> int:
    """Returns the bytes in which this machine's workers hold their batches ready."""
    data = config.data
    batch = clips_a_pass(config) * 3 * data.num_frames * data.crop_size**2
    processes = max(config.num_devices, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return batch * data.num_workers * PREFETCHED * processes * LOADERS


def check_shared_memory(config: TrainConfig) -> None:
    """Raises UserError if the workers' batches do not fit: they would die of a bus error, somewhere in the run."""
    if not SHARED_MEMORY.is_dir():
        return
    needed, total = shared_memory_needed(config), shutil.disk_usage(SHARED_MEMORY).total
    if needed > total:
        raise UserError(
            f"data.num_workers={config.data.num_workers}: the batches that they hold ready take {needed / 1e6:.0f} MB "
            f"of shared memory, and {SHARED_MEMORY} has {total / 1e6:.0f} MB. Give fewer workers, or more of it "
            "(docker run --shm-size)."
        )


def describe(
    config: TrainConfig, inputs: Inputs, world: distributed.World, dtype: torch.dtype, notes: list[str]
) -> list[str]:
    """Returns lines: what is trained, on what, from which weights, and why at this learning rate.

    Args:
        notes: where the weights come from, then what differs from the run that this one goes on with.
    """
    network, optim, data = inputs.network, config.optim, config.data
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    places = f"after {', '.join(network.places)}" if network.places else ""
    lines = [
        f"network   {config.model.layout} R{config.model.depth}, {millions:.2f} M parameters, {notes[0]}",
        *(f"          {note}" for note in notes[1:]),
        f"blocks    {len(network.places)} {config.block.kind if network.places else ''} {places}",
    ]
    for name, table in (("train", inputs.train_table), ("val", inputs.val_table)):
        lines.append(f"{name:9} {len(table)} videos of {len(table.classes)} classes, {table.source}")
    clips = optim.batch_size // world.size // optim.accumulate
    shares = f"{world.size} x {clips}" + (f" x {optim.accumulate} passes" if optim.accumulate > 1 else "")
    lines.append(
        f"lr        {optim.lr * optim.batch_size / optim.lr_batch_size:g} = {optim.lr:g} x "
        f"{optim.batch_size}/{optim.lr_batch_size}: {optim.lr:g} is for {optim.lr_batch_size} clips a step, this run "
        f"takes {optim.batch_size} ({shares}), scaled linearly"
    )
    if config.model.frozen_bn or not any(isinstance(module, _BatchNorm) for module in network.modules()):
        lines.append("norm      frozen: statistics, gain and bias")
    else:
        clips = optim.batch_size // optim.accumulate if config.sync_bn else clips
        lines.append(f"norm      over the {clips} clips of a pass" + (" of all devices" if config.sync_bn else ""))
    epochs = optim.max_steps * optim.batch_size / len(inputs.train_table)
    lines.append(f"steps     {optim.max_steps} of {optim.batch_size} clips, {epochs:.1f} epochs")
    lines.append(
        f"clips     {data.num_frames} frames, every {data.frame_stride}., {data.crop_size} x {data.crop_size} pixels"
    )
    lines.append(f"device    {world.size} x {world.device.type}, {str(dtype).removeprefix('torch.')}")
    return lines


def print_plan(config: TrainConfig, inputs: Inputs, world: distributed.World, dtype: torch.dtype) -> None:
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

    clips = clips_a_pass(config)
    activations = activation_bytes(network, (clips, 3, data.num_frames, data.crop_size, data.crop_size), dtype)
    params = sum(p.nbytes for p in network.parameters())
    weights = params * (3 + (world.size > 1))  # with gradients, momentum and, among several, their buckets
    needed, there = weights + activations, _device_memory(world.device)
    parts = f"weights, gradients and momentum {weights / 1e9:.2f}, activations of {clips} clips {activations / 1e9:.2f}"
    print(f"memory    {needed / 1e9:.2f} GB predicted: {parts}; {there / 1e9:.2f} GB are there", flush=True)
    if needed > there:
        raise UserError(
            f"optim.batch_size={config.optim.batch_size}: a pass of {clips} clips needs {needed / 1e9:.1f} GB or more, "
            f"and this device has {there / 1e9:.1f}. Give a larger optim.accumulate={config.optim.accumulate}, more "
            "devices, or model.activation_checkpointing."
        )


def print_trial(config: TrainConfig, inputs: Inputs, world: distributed.World, trial: Trial) -> None:
    """Prints what a dry run measured, and what follows for the whole run."""
    from rich.console import Console
    from rich.table import Table

    data, optim = config.data, config.optim
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    cuda = world.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cores, processes = len(os.sched_getaffinity(0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    loading = trial.loading / max(1, min(data.num_workers, cores / processes))
    # On a GPU loading and computing go on at the same time; on a CPU they share its cores.
    seconds = max(loading, trial.computing) if cuda else loading + trial.computing
    hours = optim.max_steps * seconds / 3600
    table = Table("what", "value", show_header=False)
    for name, value in (
        ("memory, measured", f"{peak / 1e9:.2f} GB at most in these steps, with all that the process has loaded"),
        ("CPU cores", f"{cores} for {data.num_workers} workers of each of {processes} processes here"),
        ("shared memory", f"{shared_memory_needed(config) / 1e6:.0f} MB for the workers' batches, "
         f"{free / 1e6:.0f} MB free"),
        ("steps in an epoch", f"{len(inputs.train_table) / optim.batch_size:.1f}"),
        ("computing a step", f"{trial.computing:.2f} s, mean of {trial.num_steps} steps"),
        ("loading a step", f"{loading:.2f} s with these workers, from {trial.loading:.2f} s in one process"),
        ("a step", f"about {seconds:.2f} s, {optim.batch_size / seconds:.1f} clips/s"),
        ("the whole run", f"about {hours:.1f} hours for {optim.max_steps} steps, without validation"),
    ):  # fmt: skip
        table.add_row(name, value)
    Console(width=max(Console().width, 100)).print(table)
    print(f"Dry run: {config.output_dir} was left as it is.")


def _device_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
