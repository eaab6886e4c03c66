"""Ranks: joining the other processes, exchanging small values with them, and failing together.

Small values travel over gloo on the CPU; NCCL, where there are GPUs, carries the gradients. In a single process every
function here returns at once.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from nlvideo.runtime.addresses import give_gloo_an_interface, own_address
from nlvideo.runtime.cores import ranks_here
from nlvideo.runtime.errors import UserError

RANK0_KEY = "nlvideo/rank0"
START_TIMEOUT_SECONDS = 300  # for a rank to find rank 0
_restarted = False  # on rank 0: torchrun has started the processes before


@dataclass(frozen=True)
class World:
    """This process among all: its rank, its rank on this machine, the number of ranks, and its device."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def is_restarted() -> bool:
    """Returns, on rank 0, whether torchrun has restarted the processes after one of them died."""
    return _restarted or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def is_first() -> bool:
    """Returns whether this is rank 0, also before it has joined the others."""
    return os.environ.get("RANK", "0") == "0"


def is_first_of_node() -> bool:
    """Returns whether this is the lowest rank of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def under_torchrun() -> bool:
    """Returns whether torchrun has started this process, or whoever did gave it what torchrun gives."""
    return "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def init_world() -> World:
    """Joins the processes that were started together and returns this one's rank; a lone process is its own world."""
    cuda = torch.cuda.is_available()
    if not under_torchrun():
        return World(0, 0, 1, torch.device("cuda", 0) if cuda else torch.device("cpu"))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = gpu_of(local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        if _on_several_nodes():
            give_gloo_an_interface(os.environ["MASTER_ADDR"])
        place = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=_store_of_this_start(), **place)
    return World(dist.get_rank(), local_rank, dist.get_world_size(), device)


def gpu_of(local_rank: int) -> torch.device:
    """Returns the GPU of a rank: the one with its number on this machine, or the only one that it may see.

    Raises:
        UserError: it has none.
    """
    count = torch.cuda.device_count()
    # `srun --gpus-per-task=1` shows each rank its own GPU alone. torchrun shows all of its ranks the same ones.
    own = count == 1 and "TORCHELASTIC_RUN_ID" not in os.environ
    if local_rank >= count and not own:
        raise UserError(f"Local rank {local_rank} has no GPU: this machine has {count}.")
    return torch.device("cuda", local_rank % count)


def _on_several_nodes() -> bool:
    return ranks_here() < int(os.environ["WORLD_SIZE"])


def _store_of_this_start() -> dist.Store | None:
    """Returns the store through which the ranks of an elastic start find each other, None without torchrun.

    torchrun's own store tells starts apart by TORCHELASTIC_RESTART_COUNT, which only counts restarts after a failure
    on the same node: after a failure elsewhere two nodes would wait for each other forever. So rank 0 of every start
    opens a store of its own, and the store of a start that has ended no longer answers.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    shared = dist.TCPStore(address, port, is_master=False)
    if rank == 0:
        global _restarted
        _restarted = shared.check([RANK0_KEY])
        here = own_address(address, port, _on_several_nodes())
        store = dist.TCPStore(here, 0, size, is_master=True, wait_for_workers=False, timeout=default_pg_timeout)
        shared.set(RANK0_KEY, f"{store.host} {store.port}")
        return store
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        host, port_of_rank0 = shared.get(RANK0_KEY).decode().split()
        try:
            return connected_store(host, int(port_of_rank0), size)
        except dist.DistError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def connected_store(host: str, port: int, size: int) -> dist.TCPStore:
    """Returns a store of `size` ranks that listens there; a value that is late is waited for as elsewhere in torch.

    Raises:
        DistError: nothing answers there within 5 seconds.
    """
    store = dist.TCPStore(host, port, size, wait_for_workers=False, timeout=timedelta(seconds=5))
    store.set_timeout(default_pg_timeout)  # the store's own would stay that of the connection
    return store


def leave_world() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def num_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: list[float]) -> list[float]:
    """Returns the sums over all ranks, computed in float64."""
    if not dist.is_initialized():
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def gather(value: Any) -> list[Any]:
    """Returns every rank's value, in rank order, on all ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def together(function: Callable[..., Any], *args: Any) -> Any:
    """Returns function(*args), called on every rank; if any rank fails, the lowest one raises and the others exit."""
    result, error = None, None
    try:
        result = function(*args)
    except Exception as raised:
        error = raised
    failed = [rank for rank, broken in enumerate(gather(error is not None)) if broken]
    if not failed:
        return result
    if error is not None and failed[0] == int(os.environ.get("RANK", 0)):
        raise error
    sys.exit(1)


def on_main(function: Callable[..., Any], *args: Any) -> Any:
    """Returns on every rank what function(*args) returns on rank 0, the only one to call it."""
    box = [together(function, *args) if is_first() else together(lambda: None)]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    return box[0]


def on_each_node(function: Callable[..., Any], *args: Any) -> None:
    """Calls function(*args) on one rank of every node: on rank 0 first, whose files the others see on a common disk."""
    on_main(function, *args)
    together(function, *args) if is_first_of_node() and not is_first() else together(lambda: None)


def gather_from_nodes(value: Any) -> list[tuple[str, Any]]:
    """Returns every rank's node and value, in rank order, on all ranks."""
    return gather((socket.gethostname(), value))


def check_same(value: Any, what: str) -> None:
    """Raises UserError on rank 0 and exits on the others unless all ranks hold the same value.

    Of values that are dicts, the message shows the items that differ.
    """
    on_main(_refuse_others, gather_from_nodes(value), what)


def _refuse_others(values: list[tuple[str, Any]], what: str) -> None:
    (node0, value0), *others = values
    for rank, (node, value) in enumerate(others, 1):
        if value != value0:
            place = f"Rank {rank} on {node} has another {what} than rank 0 on {node0}"
            raise UserError(f"{place}: {_differing(value, value0)} instead of {_differing(value0, value)}.")


def _differing(value: Any, other: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(f"{key}: {item}" for key, item in value.items() if key not in other or other[key] != item)


def copy_from_main(tensors: list[torch.Tensor]) -> None:
    """Overwrites the tensors with rank 0's."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def wait_for_all() -> None:
    """Returns once every rank has called it."""
    sum_over_ranks([0.0])


def leave_together() -> None:
    """Waits for all ranks and leaves the process group: the launcher kills every rank once one exits."""
    wait_for_all()
    leave_world()
