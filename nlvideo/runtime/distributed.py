"""Processes that train or evaluate together: starting them, their ranks, and what they agree on.

Everything small goes over gloo on the CPU; NCCL, where there are GPUs, carries the gradients.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from nlvideo.runtime.signals import STOP_SIGNALS, passed_on


class RunFailed(RuntimeError):
    """A run that cannot go on; its message is all that the user needs."""


RANK0_KEY = "nlvideo/rank0"
LONGEST_START = 300  # seconds for which a process looks for rank 0
_restarted = False  # on rank 0: whether torchrun has started the processes before

# What a command answers with one line instead of a traceback.
USER_ERRORS = (ValueError, OSError, RunFailed)


@dataclass(frozen=True)
class World:
    """This process among all: its rank, its number on this machine, how many there are, and its device."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def restarted() -> bool:
    """Returns, on rank 0, whether torchrun has started the processes again after one has died."""
    return _restarted or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def is_first() -> bool:
    """Returns whether this is the process that prints, before or after it has joined the others."""
    return os.environ.get("RANK", "0") == "0"


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def launch(function: Callable[[Any], Any], config: Any, num_devices: int) -> Any:
    """Calls function(config) in num_devices processes of this machine and returns what rank 0 returns.

    With one device, or under torchrun, which has started the processes already, it is called in this process.

    Raises:
        ValueError: more devices than there are, or num_devices given under torchrun.
    """
    if under_torchrun():
        if num_devices > 1:
            raise ValueError(f"num_devices={num_devices}: torchrun has started the processes; leave num_devices out.")
        return function(config)
    if num_devices > 1 and torch.cuda.is_available() and num_devices > torch.cuda.device_count():
        raise ValueError(f"num_devices={num_devices}: this machine has {torch.cuda.device_count()} GPUs.")
    if num_devices == 1:
        return function(config)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # As torchrun does: one thread a process unless said otherwise, shared evenly here.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_devices)))
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
        # The launcher kills its processes 30 s after a signal, which may be less than a step and a checkpoint take;
        # so it is not told of the signals, and they are passed on here. Older ones cannot be asked for that.
        settings.signals_to_handle = "SIGHUP,SIGQUIT"
    with passed_on(_signal_children):
        try:
            results = elastic_launch(settings, _call)(function, config)
        except SignalException as stop:
            sys.exit(128 + stop.sigval)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise RunFailed(f"Rank {rank} failed ({ending(failure.exitcode)}); its error stands above.") from None
    stopped = max(code for _, code in results.values())
    if stopped:
        sys.exit(stopped)
    return results[0][0]


def _signal_children(number: int) -> None:
    for process in multiprocessing.active_children():
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def ending(exitcode: int) -> str:
    """Returns how a process ended."""
    return f"exit code {exitcode}" if exitcode >= 0 else f"killed by {signal.Signals(-exitcode).name}"


def _call(function: Callable[[Any], Any], config: Any) -> tuple[Any, int]:
    """Returns function(config), called in a started process, and 0, or the code with which it ends after a signal.

    Its errors are answered as those of a command are.
    """
    try:
        return function(config), 0
    except USER_ERRORS as error:
        sys.exit(message_of(error))
    except SystemExit as end:
        if isinstance(end.code, int) and end.code - 128 in STOP_SIGNALS:
            return None, end.code  # to the launcher this is no failure
        raise


def message_of(error: Exception) -> str:
    """Returns the line that a command answers an error with; it names the rank if there are several."""
    return f"rank {os.environ['RANK']}: error: {error}" if under_torchrun() else f"error: {error}"


def init_world() -> World:
    """Joins the processes that were started together and returns this one's place; a lone process is its own world."""
    cuda = torch.cuda.is_available()
    if not under_torchrun():
        return World(0, 0, 1, torch.device("cuda", 0) if cuda else torch.device("cpu"))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda and local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"This machine was given rank {local_rank} of its own but has {torch.cuda.device_count()} GPUs."
        )
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        place = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=_store_of_this_start(), **place)
    return World(dist.get_rank(), local_rank, dist.get_world_size(), device)


def _store_of_this_start() -> dist.Store | None:
    """Returns the store through which the processes of an elastic start find each other, None without torchrun.

    torchrun has one, but tells the starts apart by TORCHELASTIC_RESTART_COUNT, which counts only the restarts after a
    failure on the same node: after a failure elsewhere two nodes would wait for each other for ever. So rank 0 of
    every start opens a store of its own, and the one of a start that has ended does not answer.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    shared = dist.TCPStore(address, port, is_master=False)
    if rank == 0:
        global _restarted
        _restarted = shared.check([RANK0_KEY])
        store = dist.TCPStore(_own_address(address, port), 0, size, is_master=True, wait_for_workers=False)
        shared.set(RANK0_KEY, f"{store.host} {store.port}")
        return store
    until = time.monotonic() + LONGEST_START
    while True:
        host, port = shared.get(RANK0_KEY).decode().split()
        try:
            return dist.TCPStore(host, int(port), size, wait_for_workers=False, timeout=timedelta(seconds=5))
        except dist.DistError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _own_address(address: str, port: int) -> str:
    """Returns this machine's address on the way to another one; nothing is sent."""
    family, kind, protocol, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as way:
        way.connect(target)
        return way.getsockname()[0]


def leave_world() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def num_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: list[float]) -> list[float]:
    """Returns the sums over all processes, computed in float64."""
    if not dist.is_initialized():
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def gather(value: Any) -> list[Any]:
    """Returns every process's value, in the order of ranks, on all of them."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def together(function: Callable[..., Any], *args: Any) -> Any:
    """Returns function(*args), called in every process; if it fails in some, the first of those tells and all end."""
    try:
        result, error = function(*args), None
    except USER_ERRORS as raised:
        result, error = None, raised
    failed = [rank for rank, broken in enumerate(gather(error is not None)) if broken]
    if not failed:
        return result
    if error is not None and failed[0] == int(os.environ.get("RANK", 0)):
        raise error
    sys.exit(1)


def on_main(function: Callable[..., Any], *args: Any) -> Any:
    """Returns in every process what function(*args) returns on rank 0, the only one to call it."""
    box = [together(function, *args) if is_first() else together(lambda: None)]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    return box[0]


def check_same(value: Any, what: str) -> None:
    """Raises ValueError if the processes do not hold the same value."""
    values = gather(value)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise ValueError(f"Rank {rank} has another {what} than rank 0: {other} instead of {values[0]}.")


def copy_from_main(tensors: list[torch.Tensor]) -> None:
    """Overwrites the tensors with rank 0's."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def wait_for_all() -> None:
    """Returns when every process has come here."""
    sum_over_ranks([0.0])
