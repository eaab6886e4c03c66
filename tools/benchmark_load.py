"""How long OpenMP's threads should spin before they sleep: alone and beside other work on the same cores.

    python tools/benchmark_load.py                       # what the programs set, every case, ten pairs each
    python tools/benchmark_load.py --pairs 3 --cases c2d_r50_nl5 concatenation
    python tools/benchmark_load.py --set OMP_WAIT_POLICY=passive    # threads that sleep at once

Threads that wait for each other spin, for a millisecond or more by default. Each case runs in two processes, one with
the default and one with the setting, which work in turn; under load a process that spins sits on every core. The
ratio is the time with the default over the time with the setting, pair by pair: above 1, the setting is faster. Cases
are training steps of networks (one thread per core), an evaluation's views, and the pairwise operations.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch  # before nlvideo.train, which would change the setting
from rich.console import Console
from rich.table import Table

from nlvideo.build.model import build_model
from nlvideo.config.compose import compose_train_config
from nlvideo.data.clips.batch import Batch
from nlvideo.models import pairwise
from nlvideo.runtime.cores import usable_cores
from nlvideo.runtime.distributed import World
from nlvideo.runtime.progress import progress_bar
from nlvideo.runtime.threads import BOUNDED_SPIN
from nlvideo.train import train_step
from nlvideo.training.clip_loss import ClipLoss
from nlvideo.training.learner import build_learner

CONFIG = ["data.root=none", "model.pretrained=null", "data.num_frames=8", "precision=float32"]
NETWORKS = ("c2d_r50", "c2d_r50_nl5", "i3d_r50_nl5", "slow_r50_gc5")
OPERATIONS: dict[str, Callable] = {
    "embedded_gaussian": pairwise.embedded_gaussian,
    "dot_product": pairwise.dot_product,
    "concatenation": lambda theta, phi, g: pairwise.concatenation(theta[:, 0], phi[:, 0], g),
}
CASES = [*(f"train {name}" for name in NETWORKS), "evaluate i3d_r50_nl5", *OPERATIONS]
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.5, help="that each measurement takes at least")
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="CASE", help="names, or parts of them")
    parser.add_argument("--crop-size", type=int, default=64)
    parser.add_argument("--set", default=" ".join(f"{k}={v}" for k, v in BOUNDED_SPIN.items()), metavar="NAME=VALUE")
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    if arguments.measure:
        repeat = repetition(arguments.measure, arguments.crop_size)
        repeat()  # the first one makes kernels and memory
        for _ in sys.stdin:
            print(measure(repeat, arguments.seconds), flush=True)
        return
    cases = [case for case in CASES if any(part in case for part in arguments.cases)]
    title = f"time by default / time with {arguments.set}, {arguments.pairs} pairs, medians"
    table = Table("case", "alone", "under load", title=title)
    settings = dict(setting.split("=", 1) for setting in arguments.set.split())
    for case in progress_bar(cases, unit="case"):
        with ExitStack() as stack:
            default, ours = (
                stack.enter_context(measuring(case, arguments.crop_size, arguments.seconds, waiting))
                for waiting in ({}, settings)
            )
            alone = compare(default, ours, arguments.pairs)
            with busy_cores():
                loaded = compare(default, ours, arguments.pairs)
        table.add_row(case, shown(alone), shown(loaded))
    Console(width=100).print(table)


def compare(default: Callable[[], float], ours: Callable[[], float], pairs: int) -> list[float]:
    """Returns the ratio of the times, the default's over ours, of each pair."""
    ratios = []
    for i in range(pairs):
        times = {timer: timer() for timer in ((default, ours) if i % 2 else (ours, default))}
        ratios.append(times[default] / times[ours])
    return ratios


@contextmanager
def measuring(case: str, crop_size: int, seconds: float, settings: Mapping[str, str]) -> Iterator[Callable[[], float]]:
    """Yields a function that measures a case once, in a process of its own with these environment variables."""
    environment = {key: value for key, value in os.environ.items() if key not in SETTINGS} | dict(settings)
    command, pipe = [sys.executable, __file__, "--measure", case, "--seconds", str(seconds)], subprocess.PIPE
    command += ["--crop-size", str(crop_size)]
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as worker:
        assert worker.stdin is not None and worker.stdout is not None  # they are pipes
        asked, answers = worker.stdin, worker.stdout

        def ask() -> float:
            print("again", file=asked, flush=True)
            return float(answers.readline())

        yield ask
        asked.close()


def shown(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def measure(repeat: Callable[[], object], seconds: float) -> float:
    """Returns the median time of a repetition."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not times:
        start = time.perf_counter()
        repeat()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def repetition(case: str, crop_size: int) -> Callable[[], object]:
    torch.manual_seed(0)
    what, _, name = case.rpartition(" ")
    if not what:
        theta, phi, g = (torch.randn(2, 64, n).requires_grad_() for n in (1568, 392, 392))
        return lambda: OPERATIONS[name](theta, phi, g).sum().backward()
    size = [f"data.crop_size={crop_size}", f"data.scale_range=[{crop_size},{crop_size}]"]
    config = compose_train_config([f"experiment={name}", *CONFIG, *size])
    network = build_model(config.model, config.block, config.data, 10)
    clips = torch.randint(256, (2, 8, crop_size, crop_size, 3), dtype=torch.uint8).permute(0, 4, 1, 2, 3)
    learner = build_learner(config, network, World(0, 0, 1, torch.device("cpu")), torch.float32, loss=ClipLoss(False))
    if what == "train":
        batch = Batch(clips, torch.tensor([0, 1]), torch.arange(2), [], torch.arange(2))
        return lambda: train_step(learner, [batch])
    network.eval()

    def evaluate() -> None:
        with torch.inference_mode():
            network.position_logits(learner.normalize(clips))

    return evaluate


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keeps a process spinning on every core until the block ends."""
    spinners = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(usable_cores())]
    for spinner in spinners:
        spinner.start()
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.join()


def _spin() -> None:
    while True:
        pass


if __name__ == "__main__":
    main()
