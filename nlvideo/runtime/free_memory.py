"""How much memory a process has taken, and can still take, on its device."""

import sys
from pathlib import Path

import torch

if sys.platform != "win32":
    import resource

MEMINFO = Path("/proc/meminfo")
# Limits of a container and what it uses of them: cgroup v2, then v1. A container sees its own group at the top.
CGROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory(device: torch.device, cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Returns the bytes that this process can still take, besides those it holds; None where the system does not say.

    On a GPU those that PyTorch has reserved and does not use count as free. On a CPU it is what Linux estimates can be
    had without swapping, within the limit of the container; other systems have no such estimate.

    Args:
        cgroup: where the limits of this process's container are mounted.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if not MEMINFO.exists():
        return None
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    left = [found for names in CGROUPS if (found := _left_in(cgroup, *names)) is not None]
    return max(0, min([free, *left]))


def peak_memory(device: torch.device) -> int | None:
    """Returns the most bytes that this process has held: of tensors on a GPU, else in all; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts kilobytes


def _left_in(cgroup: Path, limit_name: str, used_name: str, cache_name: str) -> int | None:
    """Returns what a group may still take, None if it has no limit."""
    limit, used = cgroup / limit_name, cgroup / used_name
    if not limit.exists() or not used.exists() or not limit.read_text().strip().isdigit():  # "max": none
        return None
    stat = limit.with_name("memory.stat")
    counts = dict(line.split() for line in stat.read_text().splitlines()) if stat.exists() else {}
    return int(limit.read_text()) - int(used.read_text()) + int(counts.get(cache_name, 0))  # files can be dropped
