"""Time and peak memory of the model's parts, plain against ours, measured in one run.

    python tools/benchmark_model.py ops                            # the pairwise operations, forward + backward
    python tools/benchmark_model.py network i3d_r50_nl5_128x1      # a whole network, one clip, forward + backward
    python tools/benchmark_model.py step i3d_r50_nl5_8x8           # training steps: ours against the plain network
    python tools/benchmark_model.py step i3d_r50_nl5 --batch 8 16 32 --compile --peak-tflops 989     # on a GPU

Each case of ops and network runs in a process of its own, in turn with the others, several times; the median is shown.
Steps take turns in one process: plain is float32, contiguous, with the matrices of all pairs.
"""

import argparse
import dataclasses
import gc
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from nlvideo.build.model import build_model
from nlvideo.config.compose import compose_train_config
from nlvideo.config.schema import TrainConfig
from nlvideo.data.clips.batch import Batch
from nlvideo.models import pairwise
from nlvideo.models.cost import count_cost
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.runtime.distributed import World
from nlvideo.train import train_step
from nlvideo.training.clip_loss import ClipLoss
from nlvideo.training.learner import build_learner

# mode: (ours, plain, how much wider than g theta and phi are); concatenation uses one channel of theta and phi
OPERATIONS: dict[str, tuple[Callable, Callable, int]] = {
    "dot_product": (
        pairwise.dot_product,
        lambda theta, phi, g: pairwise.apply_map(pairwise.dot_product_map(theta, phi), g),
        1,
    ),
    "concatenation": (
        lambda theta, phi, g: pairwise.concatenation(theta[:, 0], phi[:, 0], g),
        lambda theta, phi, g: pairwise.apply_map(pairwise.concatenation_map(theta[:, 0], phi[:, 0]), g),
        1,
    ),
    "embedded_gaussian": (
        pairwise.embedded_gaussian,
        lambda theta, phi, g: pairwise.apply_map(pairwise.embedded_gaussian_map(theta, phi), g),
        1,
    ),
    "gaussian": (  # theta = phi = x
        pairwise.embedded_gaussian,
        lambda theta, phi, g: pairwise.apply_map(pairwise.embedded_gaussian_map(theta, phi), g),
        2,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    ops = commands.add_parser("ops", help="the pairwise operations")
    ops.add_argument("--batch", type=int, default=2)
    ops.add_argument("--width", type=int, default=256, help="D and E (default: res3 of R50)")
    ops.add_argument("--positions", type=int, default=16 * 28 * 28, help="N (default: res3 of 128 frames)")
    ops.add_argument("--keys", type=int, default=16 * 14 * 14, help="M")
    ops.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    ops.add_argument("--repeats", type=int, default=5)
    network = commands.add_parser("network", help="a whole network")
    network.add_argument("experiment")
    network.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    step = commands.add_parser("step", help="training steps")
    step.add_argument("experiment")
    step.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    step.add_argument("--batch", type=int, nargs="+", default=[4], metavar="N", help="clips of a step")
    step.add_argument("--compile", action="store_true", help="with torch.compile too")
    step.add_argument("--rounds", type=int, default=5)
    step.add_argument("--peak-tflops", type=float, help="of the device in bfloat16, for the share that is reached")
    arguments = parser.parse_args()
    if arguments.command == "ops":
        benchmark_ops(arguments)
    elif arguments.command == "step":
        for batch in arguments.batch:
            benchmark_steps(arguments, batch)
    else:
        benchmark_network(arguments)


def benchmark_network(arguments: argparse.Namespace) -> None:
    overrides = (f"experiment={arguments.experiment}", *arguments.overrides)
    table = Table("pairwise products", "seconds", "peak MB", title=f"{' '.join(overrides)}, one clip, float32")
    for plain in (True, False):
        seconds, peak = _in_process(_measure_network, overrides, plain)
        table.add_row("plain" if plain else "ours", f"{seconds:.1f}", f"{peak / 1e6:.0f}")
    Console().print(table)


def benchmark_steps(arguments: argparse.Namespace, batch: int) -> None:
    """Prints the time of training steps on the same clips from the same weights."""
    overrides = [f"experiment={arguments.experiment}", *arguments.overrides]
    config = _composed([*overrides, f"optim.batch_size={batch}", f"optim.lr_batch_size={batch}"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    variants: dict[str, tuple[str, bool] | None] = {
        "plain float32": None,
        "ours float32": ("float32", False),
        "ours bfloat16": ("bfloat16", False),
    }
    if arguments.compile:
        variants |= {"ours bfloat16, compiled": ("bfloat16", True)}
    clips, size = random_batch(config, batch), config.data.crop_size
    steps = {
        n: our_step(config, clips, device, *how) if how else plain_step(config, clips) for n, how in variants.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks = dict.fromkeys(steps, 0)
    for _ in range(1 + arguments.rounds):
        for name, step in steps.items():
            used_bytes(device)
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
            peaks[name] = peak_bytes(device) if device.type == "cuda" else 0
    with torch.device("meta"):
        network = build_model(config.model, config.block, config.data, 400)
    work = 3 * 2 * count_cost(network, config.data.num_frames, size, size).multiply_adds_computed * batch
    what = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    table = Table(
        "step", "seconds", "clips/s", "plain / this", "TFLOP/s", "share of peak", "GB on the GPU",
        title=f"{' '.join(overrides)}, batch {batch}, {what}, {arguments.rounds} rounds",
    )  # fmt: skip
    for name, (_, *times) in seconds.items():
        ratios = [plain / ours for plain, ours in zip(seconds["plain float32"][1:], times, strict=True)]
        median, reached = statistics.median(times), work / statistics.median(times) / 1e12
        table.add_row(
            name,
            f"{median:.3f}",
            f"{batch / median:.2f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"{reached:.2f}",
            f"{100 * reached / arguments.peak_tflops:.1f} %" if arguments.peak_tflops else "-",
            f"{peaks[name] / 1e9:.2f}" if peaks[name] else "-",
        )
    Console(width=130).print(table)


def random_batch(config: TrainConfig, size: int) -> Batch:
    torch.manual_seed(0)
    side, places = config.data.crop_size, torch.arange(size)
    clips = torch.randint(256, (size, config.data.num_frames, side, side, 3), dtype=torch.uint8).permute(0, 4, 1, 2, 3)
    return Batch(clips, torch.randint(400, (size,)), places, [], places)


def our_step(config: TrainConfig, clips: Batch, device: torch.device, precision: str, compiled: bool) -> Callable:
    """Returns the training program's own step."""
    torch.manual_seed(0)
    network = build_model(config.model, config.block, config.data, 400)
    config = dataclasses.replace(config, compile=compiled)
    learner = build_learner(config, network, World(0, 0, 1, device), getattr(torch, precision), loss=ClipLoss(False))

    def step() -> None:
        train_step(learner, [clips])
        learner.timer.take()

    return step


def plain_step(config: TrainConfig, clips: Batch) -> Callable:
    """Returns a step as it is usually written: float32, contiguous clips and weights, the matrices of all pairs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    network = build_model(config.model, config.block, config.data, 400).to(device).train()
    for module in network.modules():
        if isinstance(module, NonLocalBlock):
            module.plain = True
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (config.data.mean, config.data.std))
    inputs = ((clips.clips.float() / 255 - mean) / std).contiguous().to(device)
    targets, optim = clips.targets.to(device), config.optim
    optimizer = torch.optim.SGD(
        network.parameters(), optim.lr, optim.momentum, weight_decay=optim.weight_decay, nesterov=optim.nesterov
    )

    def step() -> None:
        loss = F.cross_entropy(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _measure_network(overrides: tuple[str, ...], plain: bool) -> tuple[float, float]:
    """Returns the seconds and the peak of additional bytes of one forward and backward pass."""
    config = _composed(overrides)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build_model(config.model, config.block, config.data, 400)
    network = network.to(device, memory_format=torch.channels_last_3d).train()
    for module in network.modules():
        if isinstance(module, NonLocalBlock):
            module.plain = plain
    size = config.data.crop_size
    clip = torch.randn(1, 3, config.data.num_frames, size, size, device=device)
    clip = clip.contiguous(memory_format=torch.channels_last_3d)
    before = used_bytes(device)
    start = time.perf_counter()
    network(clip).square().mean().backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, peak_bytes(device) - before


def _composed(overrides: Sequence[str]) -> TrainConfig:
    return compose_train_config([*overrides, "data.root=none", "model.pretrained=null"])


def benchmark_ops(arguments: argparse.Namespace) -> None:
    sizes = (arguments.batch, arguments.width, arguments.positions, arguments.keys, arguments.dtype)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    table = Table(
        "mode", "plain s", "ours s", "plain / ours", "plain MB", "ours MB", "ours / plain",
        title=f"forward + backward, B {sizes[0]}, D = E {sizes[1]}, N {sizes[2]}, M {sizes[3]}, {sizes[4]}, {device}",
    )  # fmt: skip
    for mode in OPERATIONS:
        measured: dict[bool, list[tuple[float, float]]] = {
            True: [],
            False: [],
        }  # plain or not -> (seconds, bytes) of each repeat
        for _ in range(arguments.repeats):
            for plain in (True, False):
                measured[plain].append(_in_process(_measure_operation, mode, plain, sizes))
        seconds = {plain: statistics.median(row[0] for row in rows) for plain, rows in measured.items()}
        memory = {plain: statistics.median(row[1] for row in rows) for plain, rows in measured.items()}
        ratios = [p[0] / o[0] for p, o in zip(measured[True], measured[False], strict=True)]
        table.add_row(
            mode,
            f"{seconds[True]:.3f}",
            f"{seconds[False]:.3f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"{memory[True] / 1e6:.0f}",
            f"{memory[False] / 1e6:.0f}",
            f"{100 * memory[False] / memory[True]:.0f} %",
        )
    Console(width=130).print(table)


def _measure_operation(mode: str, plain: bool, sizes: tuple) -> tuple[float, float]:
    """Returns the seconds of a forward and backward pass, and the peak of additional bytes of the first one.

    The first pass also makes the kernels for these sizes and grows the process, which training does once; it is not
    timed. Those after it are, until a second has gone by: their median is the time.
    """
    batch, width, positions, keys, dtype = sizes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ours, plain_form, wider = OPERATIONS[mode]
    operation = plain_form if plain else ours

    def inputs(n: int, m: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        shapes = [(batch, wider * width, n), (batch, wider * width, m), (batch, width, m)]
        made = [torch.randn(shape, device=device, dtype=getattr(torch, dtype)) for shape in shapes]
        return [t.div_(shape[1] ** 0.5).requires_grad_() for t, shape in zip(made, shapes, strict=True)]

    operation(*inputs(64, 32)).sum().backward()
    tensors = inputs(positions, keys)
    gc.collect()
    before = used_bytes(device)
    peak, seconds = 0, list[float]()
    while sum(seconds[1:]) < 1:
        for tensor in tensors:
            tensor.grad = None
        start = time.perf_counter()
        y = operation(*tensors)
        y.backward(y.detach())  # a gradient of the output's size, without the noise of making one
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        peak = peak or peak_bytes(device) - before
        del y
    return statistics.median(seconds[1:]), peak


def used_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _in_process(function: Callable, *arguments):
    """Returns function(*arguments), called in a fresh process, whose peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


if __name__ == "__main__":
    main()
