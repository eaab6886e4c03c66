"""Part F: ranks that share gradients: two on one device over gloo, one over NCCL, synchronised batch norm."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_checks.findings import Findings
from gpu_checks.running import module_environment
from gpu_checks.step_measuring import in_micro_batches, make_learner, random_batch
from nlvideo.config.compose import compose_train_config
from nlvideo.config.schema import TrainConfig
from nlvideo.data.clips.batch import Batch
from nlvideo.train import train_step
from nlvideo.training.learner import Learner

SMALL = [
    "experiment=quickstart",
    "block=nl1",
    "data.root=none",
    "data.num_frames=4",
    "data.crop_size=32",
    "precision=float32",
]
CLIPS, STEPS = 4, 2  # of a step, over all ranks
ROUNDING, SYNC_BN_LIMIT = 1e-4, 1e-3  # differences of updates, relative to the whole update
RANK_SECONDS = 90


def run(found: Findings, folder: Path) -> None:
    with found.case("two ranks over gloo"):
        check_gloo(found, folder)
    with found.case("one rank"):
        check_alone(found, folder)
    if not found.cuda:
        found.skip("one rank over NCCL", "NCCL needs a GPU; the one rank above used gloo")
        found.skip("two ranks, synchronised batch norm", "PyTorch has it for CUDA only")
        return
    with found.case("two ranks, synchronised batch norm"):
        check_sync_bn(found, folder)


def check_gloo(found: Findings, folder: Path) -> None:
    """Two ranks on one device against one process that takes their clips as two micro-batches."""
    config = rank_config()
    first, second = run_ranks("gloo", 2, folder)
    learner = make_learner(in_micro_batches(config, 2), found.device, torch.float32)
    before = parameters_of(learner)
    alone = trained(learner, [random_batch(config, CLIPS, rank, 2) for rank in range(2)], STEPS)
    unequal = [name for name in alone if not torch.equal(first["weights"][name], second["weights"][name])]
    found.equal("two ranks over gloo: parameters in which they differ", len(unequal), 0)
    difference = difference_of_updates(first["weights"], alone, before)
    found.at_most("two ranks over gloo: update against one process's", difference, ROUNDING)
    show_times(found, "two ranks over gloo", first)


def check_sync_bn(found: Findings, folder: Path) -> None:
    """Two ranks with synchronised batch norm against one large batch."""
    config = rank_config()
    first, _ = run_ranks("sync_bn", 2, folder)
    learner = make_learner(config, found.device, torch.float32)
    before = parameters_of(learner)
    alone = trained(learner, [random_batch(config, CLIPS)], STEPS)
    difference = difference_of_updates(first["weights"], alone, before)
    found.at_most("synchronised batch norm: update against one large batch's", difference, SYNC_BN_LIMIT)
    show_times(found, "synchronised batch norm", first)


def check_alone(found: Findings, folder: Path) -> None:
    """One rank through DistributedDataParallel against the same step without it."""
    config = rank_config()
    (rank,) = run_ranks("alone", 1, folder)
    learner = make_learner(config, found.device, torch.float32)
    before = parameters_of(learner)
    without = trained(learner, [random_batch(config, CLIPS)], STEPS)
    what = f"one rank over {'NCCL' if found.cuda else 'gloo'}"
    difference = difference_of_updates(rank["weights"], without, before)
    found.at_most(f"{what}: update against that without it", difference, ROUNDING)
    timed = "R50 NL5, 8 clips" if found.cuda else "small network"
    found.show(f"{timed}, no ranks: a step", rank["alone_ms"], "ms")
    show_times(found, f"{timed}, {what}", rank)


def show_times(found: Findings, what: str, rank: dict[str, Any]) -> None:
    found.show(f"{what}: a step", rank["ms"], "ms")
    found.show(f"{what}: share of communication", 100 * rank["communication"], "%")


def run_ranks(how: str, number: int, folder: Path) -> list[dict[str, Any]]:
    """Returns what each rank wrote; see rank_program.

    Raises:
        RuntimeError: torchrun failed; its last line.
    """
    target = folder / how
    target.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    command += ["-m", "gpu_checks.rank_program", how, str(target)]
    done = subprocess.run(command, env=module_environment(), capture_output=True, text=True, timeout=RANK_SECONDS)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", flush=True)
        errors = [line for line in done.stderr.splitlines() if "Error: " in line]
        raise RuntimeError((errors or ["torchrun failed without an error"])[0])
    return [torch.load(target / f"rank{rank}.pt", weights_only=True) for rank in range(number)]


def rank_config() -> TrainConfig:
    batch = [f"optim.batch_size={CLIPS}", f"optim.lr_batch_size={CLIPS}"]
    return compose_train_config([*SMALL, *batch])


def trained(learner: Learner, batches: list[Batch], steps: int) -> dict[str, Tensor]:
    """Returns the parameters after some steps on the same micro-batches."""
    for _ in range(steps):
        train_step(learner, batches)
    return parameters_of(learner)


def parameters_of(learner: Learner) -> dict[str, Tensor]:
    return {name: p.detach().cpu().clone() for name, p in learner.network.named_parameters()}


def difference_of_updates(found: dict[str, Tensor], expected: dict[str, Tensor], before: dict[str, Tensor]) -> float:
    """Returns the norm of the difference of two sets of parameters over that of what training changed in them."""
    difference = sum((found[name] - expected[name]).double().square().sum() for name in before)
    update = sum((expected[name] - before[name]).double().square().sum() for name in before)
    return float((difference / update) ** 0.5)
