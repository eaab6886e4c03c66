"""What a training step costs: time, kernels, synchronisations, memory. For D and for the parts that time steps too."""

import dataclasses
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from nlvideo.build.model import build_model
from nlvideo.config.compose import compose_train_config
from nlvideo.config.schema import TrainConfig
from nlvideo.data.clips.batch import Batch
from nlvideo.models.cost import count_cost
from nlvideo.runtime.distributed import World
from nlvideo.train import train_step
from nlvideo.training.clip_loss import ClipLoss
from nlvideo.training.learner import Learner, build_learner
from nlvideo.training.memory_trial import noise_batch
from nlvideo.training.step_metrics import LateResult

NUM_CLASSES = 400
COMMON = ["data.root=none", "model.pretrained=null"]
SMALL = ["experiment=quickstart", "data.num_frames=8", "optim.lr=0.001"]  # for a CPU
SYNCHRONISED = "called a synchronizing CUDA operation"  # what PyTorch warns of


class KernelTimes(NamedTuple):
    """Of one step: milliseconds in which any kernel ran, and shares of the kernels' time; None where not measured."""

    busy: float | None
    convolution: float
    batch_norm: float


def step_config(clips: int, *overrides: str) -> TrainConfig:
    batch = [f"optim.batch_size={clips}", f"optim.lr_batch_size={clips}"]
    return compose_train_config([*overrides, *COMMON, *batch])


def make_learner(config: TrainConfig, device: torch.device, dtype: torch.dtype, world: World | None = None) -> Learner:
    """Returns the training program's own learner, with new weights that are the same each time."""
    torch.manual_seed(0)
    network = build_model(config.model, config.block, config.data, NUM_CLASSES)
    return build_learner(config, network, world or World(0, 0, 1, device), dtype, loss=ClipLoss(False))


def pinned_batch(learner: Learner) -> Batch:
    """Returns clips of noise for one step, as the loader gives them: in pinned memory where there is a GPU."""
    batch = noise_batch(learner, learner.config.optim.batch_size)
    if learner.world.device.type != "cuda":
        return batch
    return batch._replace(clips=batch.clips.pin_memory(), targets=batch.targets.pin_memory())


def random_batch(config: TrainConfig, clips: int, part: int = 0, parts: int = 1) -> Batch:
    """Returns one of the equal parts of a batch of different clips, the same each time."""
    random, side = torch.Generator().manual_seed(1), config.data.crop_size
    shape = (clips, config.data.num_frames, side, side, 3)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=random).permute(0, 4, 1, 2, 3)
    targets = torch.randint(NUM_CLASSES, (clips,), generator=random)
    places = torch.arange(clips)
    own = slice(part * clips // parts, (part + 1) * clips // parts)
    return Batch(pixels[own], targets[own], places[own], [], places[own])


def one_step(learner: Learner, batch: Batch) -> Callable[[], None]:
    """Returns a step as the program does it: it reads the result of the one before."""
    launched: list[LateResult] = []

    def step() -> None:
        launched.append(train_step(learner, [batch]))
        if len(launched) > 1:
            launched.pop(0).read()

    return step


def milliseconds_a_step(step: Callable[[], object], device: torch.device, steps: int, warm_up: int = 3) -> float:
    """Returns the mean time of steps that follow each other without waiting, after some that are not counted."""
    for _ in range(warm_up):
        step()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return 1000 * (time.perf_counter() - start) / steps


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def synchronisations(step: Callable[[], object], steps: int = 3) -> float:
    """Returns how often the CPU waits for the GPU in a step, as PyTorch counts it; on a GPU only."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(steps):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(SYNCHRONISED in str(warning.message) for warning in caught) / steps


def kernel_times(step: Callable[[], object], device: torch.device, steps: int = 3) -> KernelTimes:
    """Returns what the kernels of a step take, from PyTorch's profiler; on a CPU the operations take their place."""
    cuda = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    synchronize(device)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(steps):
            step()
        synchronize(device)
    operations = [event for event in profile.key_averages() if event.device_type == torch.autograd.DeviceType.CPU]
    own = {e.key: e.self_device_time_total if cuda else e.self_cpu_time_total for e in operations}
    total = sum(own.values())
    busy = None
    if cuda:
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder, "trace.json")
            profile.export_chrome_trace(str(trace))
            busy = busy_milliseconds(json.loads(trace.read_text())["traceEvents"]) / steps
    return KernelTimes(busy, share_of("conv", own, total), share_of("batch_norm", own, total))


def share_of(part: str, own: dict[str, float], total: float) -> float:
    return sum(value for name, value in own.items() if part in name) / total


def busy_milliseconds(events: Iterable[dict]) -> float:
    """Returns the time in which at least one kernel of a chrome trace ran; kernels of several streams overlap."""
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "kernel")
    total, until = 0.0, 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total / 1000  # from microseconds


def matmul_rate(device: torch.device) -> float:
    """Returns the TFLOP/s that this device reaches in the product of two bfloat16 matrices of 8192 x 8192."""
    size, repeats = (8192, 20) if device.type == "cuda" else (512, 5)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / milliseconds_a_step(lambda: a @ b, device, repeats) / 1e9


def step_flops(config: TrainConfig) -> float:
    """Returns the floating-point operations of a clip in a step: forward, and twice that backward."""
    with torch.device("meta"):
        network = build_model(config.model, config.block, config.data, NUM_CLASSES)
    side = config.data.crop_size
    return 3 * 2 * count_cost(network, config.data.num_frames, side, side).multiply_adds_computed


def loss_of(learner: Learner, batch: Batch) -> float:
    """Returns the loss of a batch with the weights as they are."""
    with torch.no_grad(), learner.autocast():
        logits = learner.network(learner.normalize(batch.clips)).float()
    return learner.loss(logits, batch.targets.to(logits.device)).item()


def in_micro_batches(config: TrainConfig, number: int) -> TrainConfig:
    """Returns the config with so many micro-batches a step."""
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulate=number))
