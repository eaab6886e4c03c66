"""What freezing saves: time of a training step and memory, each variant against training all of the network.

    python tools/benchmark_freezing.py i3d_r50_nl5_8x8 data.crop_size=112 data.scale_range=[112,144]
    python tools/benchmark_freezing.py i3d_r50_nl5 --batch 16 --steps 20        # on a GPU

Every variant runs in a process of its own, in turn with the others, several times; ratios are of the same round.
Memory is what the process, or the GPU, holds at most beyond what it held before the network was built.
"""

import argparse
import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from benchmark_model import peak_bytes, used_bytes
from rich.console import Console
from rich.table import Table

from nlvideo.build.model import build_model
from nlvideo.config.compose import compose_train_config
from nlvideo.data.clips.batch import Batch
from nlvideo.runtime.distributed import World
from nlvideo.runtime.precision import resolve_precision
from nlvideo.train import train_step
from nlvideo.training.clip_loss import ClipLoss
from nlvideo.training.learner import build_learner

VARIANTS: dict[str, dict[str, Any]] = {
    "all trained": {},
    "freeze=[stem,res2]": {"freeze": ["stem", "res2"]},
    "freeze=[stem,res2,res3]": {"freeze": ["stem", "res2", "res3"]},
    "train=head": {"train": "head"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--batch", type=int, default=4, help="clips of a step")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a process, after one that is not")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    overrides = [f"experiment={arguments.experiment}", *arguments.overrides]
    measured: dict[str, list[tuple[float, int]]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.rounds):
        for name in VARIANTS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # its peak memory is its own
                measured[name].append(pool.apply(measure, (overrides, name, arguments.batch, arguments.steps)))
    print_ratios(measured, f"{' '.join(overrides)}, {arguments.batch} clips a step, {arguments.rounds} rounds")


def print_ratios(measured: dict[str, list[tuple[float, int]]], title: str) -> None:
    everything = measured["all trained"]
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    table = Table("model", "s a step", "all / this", "MB", "share of all", title=f"{title}, {where}")
    for name, runs in measured.items():
        ratios = [whole[0] / one[0] for whole, one in zip(everything, runs, strict=True)]
        shares = [one[1] / whole[1] for whole, one in zip(everything, runs, strict=True)]
        table.add_row(
            name,
            f"{statistics.median(seconds for seconds, _ in runs):.3f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"{statistics.median(peak for _, peak in runs) / 1e6:.0f}",
            f"{100 * statistics.median(shares):.0f} % ({100 * min(shares):.0f} to {100 * max(shares):.0f})",
        )
    Console(width=140, markup=False).print(table)


def measure(overrides: Sequence[str], variant: str, batch: int, steps: int) -> tuple[float, int]:
    """Returns the median seconds of the program's own training step, and the peak of additional bytes."""
    config = compose_train_config([*overrides, "data.root=none", "model.pretrained=null"])
    model = dataclasses.replace(config.model, **VARIANTS[variant])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, before = config.data.crop_size, used_bytes(device)
    torch.manual_seed(0)
    network = build_model(model, config.block, config.data, 400)
    world, dtype = World(0, 0, 1, device), resolve_precision(config.precision, device)
    learner = build_learner(config, network, world, dtype, loss=ClipLoss(multi_label=False))
    clips = torch.randint(256, (batch, config.data.num_frames, size, size, 3), dtype=torch.uint8).permute(0, 4, 1, 2, 3)
    numbers = torch.arange(batch)
    seconds = []
    for _ in range(1 + steps):
        start = time.perf_counter()
        train_step(learner, [Batch(clips, numbers, numbers, [], numbers)])
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), peak_bytes(device) - before


if __name__ == "__main__":
    main()
