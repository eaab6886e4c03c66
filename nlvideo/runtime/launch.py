"""Starts the ranks of one machine."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from nlvideo.runtime.cores import cores_of_rank
from nlvideo.runtime.distributed import under_torchrun
from nlvideo.runtime.errors import RunFailed, UserError, reporting_errors
from nlvideo.runtime.signals import STOP_SIGNALS, passed_on


def launch_ranks(function: Callable[[Any], Any], config: Any, num_devices: int) -> Any:
    """Calls function(config) in num_devices processes of this machine and returns what rank 0 returns.

    With one device, or under torchrun, which has started the processes already, it is called in this process.

    Raises:
        UserError: more devices than there are, num_devices given under torchrun, or tasks of srun without ranks.
        RunFailed: a rank has failed.
    """
    refuse_tasks_without_ranks()
    if under_torchrun():
        if num_devices > 1:
            raise UserError(f"num_devices={num_devices}: torchrun has started the processes; leave num_devices out.")
        return function(config)
    if num_devices > 1 and torch.cuda.is_available() and num_devices > torch.cuda.device_count():
        raise UserError(f"num_devices={num_devices}: this machine has {torch.cuda.device_count()} GPUs.")
    if num_devices == 1:
        return function(config)
    if sys.platform == "win32":
        raise UserError(f"num_devices={num_devices}: on Windows a run has one process; use num_devices=1, or WSL.")
    if threading.current_thread() is not threading.main_thread():
        raise UserError(f"num_devices={num_devices}: ranks can be started from the main thread of a program only.")
    results = _elastic_launch(function, config, num_devices)
    stopped = max(code for _, code in results.values())
    if stopped:
        sys.exit(stopped)
    return results[0][0]


def refuse_tasks_without_ranks() -> None:
    """Raises UserError if srun has started this program several times and none of the processes knows of the others.

    Only a step of srun has SLURM_STEP_NUM_TASKS. SLURM_NTASKS and SLURM_PROCID are set in a batch script too, which is
    one process whatever number of tasks the job has.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > 1 and not under_torchrun():
        raise UserError(
            f"srun has started {tasks} tasks; without RANK, WORLD_SIZE and MASTER_ADDR each would do the whole run. "
            "Put scripts/slurm/task.sh before the command, which sets them (srun ... scripts/slurm/task.sh "
            "nlvideo-train ...), or start one torchrun on each node. A single process takes SLURM_STEP_NUM_TASKS=1. "
            "See docs/clusters.md."
        )


def _elastic_launch(function: Callable[[Any], Any], config: Any, num_devices: int) -> dict[int, tuple[Any, int]]:
    """Returns what _call returns on each rank."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # torchrun gives each process one thread unless told otherwise; here they share the cores evenly.
    os.environ.setdefault("OMP_NUM_THREADS", str(cores_of_rank(num_devices)))
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    if hasattr(settings, "signals_to_handle"):
        # The launcher kills its processes 30 s after a signal, which may be less than a step and a checkpoint take.
        # So it does not handle the signals; they are passed on here. Older launchers cannot be asked for that.
        settings.signals_to_handle = "SIGHUP,SIGQUIT"
    with passed_on(_signal_children):
        try:
            return elastic_launch(settings, _call)(function, config)
        except SignalException as stop:
            sys.exit(128 + stop.sigval)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise RunFailed(f"Rank {rank} failed ({ending(failure.exitcode)}); its error stands above.") from None


def _signal_children(number: int) -> None:
    processes = multiprocessing.active_children()
    for process in processes:
        with suppress(ProcessLookupError):
            if process.pid is not None:
                os.kill(process.pid, number)
    threading.Thread(target=_end_with_the_first_failure, args=(processes,), daemon=True).start()


def _end_with_the_first_failure(processes: list[multiprocessing.Process]) -> None:
    """Kills the ranks that wait for one that was asked to stop and failed; the launcher would give them 30 s."""
    while any(process.is_alive() for process in processes):
        if any(process.exitcode for process in processes):
            for process in processes:
                process.kill()
            return
        time.sleep(0.2)


def ending(exitcode: int) -> str:
    """Returns how a process ended, in words."""
    return f"exit code {exitcode}" if exitcode >= 0 else f"killed by {signal.Signals(-exitcode).name}"


def _call(function: Callable[[Any], Any], config: Any) -> tuple[Any, int]:
    """Returns function(config) and 0, or None and the exit code of a stop signal; runs in a started process."""
    try:
        with reporting_errors():
            return function(config), 0
    except SystemExit as end:
        if isinstance(end.code, int) and end.code - 128 in STOP_SIGNALS:
            return None, end.code  # to the launcher this is no failure
        raise
