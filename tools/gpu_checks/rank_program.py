"""A rank of part F, started by torchrun: python -m gpu_checks.rank_program HOW FOLDER.

HOW is gloo (all ranks on one device), sync_bn (the same with synchronised batch norm) or alone (one rank whose
gradients go through DistributedDataParallel all the same, over NCCL on a GPU). Writes FOLDER/rankN.pt with the weights
and what was measured.
"""

import ctypes
import dataclasses
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gpu_checks.ranks import CLIPS, STEPS, rank_config, trained
from gpu_checks.step_measuring import (
    make_learner,
    milliseconds_a_step,
    one_step,
    pinned_batch,
    random_batch,
    step_config,
)
from nlvideo.data.clips.loading import PR_SET_PDEATHSIG
from nlvideo.runtime.distributed import World
from nlvideo.runtime.gradients import share_gradients
from nlvideo.runtime.precision import use_tf32
from nlvideo.training.learner import Learner


def main() -> None:
    how, folder = sys.argv[1], Path(sys.argv[2])
    if sys.platform == "linux":  # torchrun puts its ranks into sessions of their own: end with it where it is killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    rank = int(os.environ["RANK"])
    use_tf32(False, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    result = alone() if how == "alone" else with_gloo(synchronised=how == "sync_bn")
    torch.save(result, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def with_gloo(synchronised: bool) -> dict[str, Any]:
    """Trains this rank's part of the clips, on the one device that all ranks share."""
    dist.init_process_group("gloo")  # also for tensors on a GPU, which NCCL would refuse two ranks
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    world = World(dist.get_rank(), 0, dist.get_world_size(), device)
    config = dataclasses.replace(rank_config(), sync_bn=synchronised)
    learner = make_learner(config, device, torch.float32, world)
    part = random_batch(config, CLIPS, world.rank, world.size)
    return {"weights": trained(learner, [part], STEPS), **timed(learner, one_step(learner, part))}


def alone() -> dict[str, Any]:
    """Trains alone through DistributedDataParallel, then times a step with it and without."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    config = rank_config()
    learner = shared(make_learner(config, device, torch.float32))
    weights = trained(learner, [random_batch(config, CLIPS)], STEPS)
    timed_config = step_config(8, "experiment=i3d_r50_nl5") if cuda else config
    lone = make_learner(timed_config, device, torch.bfloat16 if cuda else torch.float32)
    batch = pinned_batch(lone)
    found = {"weights": weights, "alone_ms": timed(lone, one_step(lone, batch))["ms"]}
    learner = shared(lone)
    return found | timed(learner, one_step(learner, batch))


def shared(learner: Learner) -> Learner:
    """Returns a lone rank's learner with a model that averages gradients as if there were others."""
    several = dataclasses.replace(learner.world, size=2)
    timer = learner.timer
    return dataclasses.replace(
        learner, model=share_gradients(learner.network, several, timer.now, timer.add_communication)
    )


def timed(learner: Learner, step: Callable[[], object]) -> dict[str, float]:
    """Returns the milliseconds of a step, and the share of it in which gradients were being averaged."""
    steps = 10 if learner.world.device.type == "cuda" else 2
    milliseconds_a_step(step, learner.world.device, 1)
    learner.timer.take()
    milliseconds = milliseconds_a_step(step, learner.world.device, steps, warm_up=0)
    communication = learner.timer.take()["communication"]
    return {"ms": milliseconds, "communication": 1000 * communication / steps / milliseconds}


if __name__ == "__main__":
    main()
