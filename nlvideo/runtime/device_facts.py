"""What there is to know about this machine's GPU before training on it, and why there may be none."""

import os
import subprocess
import warnings
from typing import NamedTuple

import torch

from nlvideo.runtime.cores import usable_cores

SMI_SECONDS = 20  # nvidia-smi takes a second; beside a broken driver it may hang
WHEELS = "https://pytorch.org/get-started/locally"


class VisibleGpu(NamedTuple):
    """A GPU as PyTorch sees it."""

    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int


def visible_gpu() -> VisibleGpu | str:
    """Returns the first GPU that PyTorch may use, or why it sees none.

    Raises:
        RuntimeError: there is one and it does not answer (in exclusive use, lost).
    """
    with warnings.catch_warnings(record=True) as caught:  # PyTorch warns once, when it is first asked
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            free, _ = torch.cuda.mem_get_info(0)
            return VisibleGpu(properties.name, (properties.major, properties.minor), properties.total_memory, free)
    return _why_no_gpu([str(warning.message).splitlines()[0] for warning in caught])


def _why_no_gpu(warned: list[str]) -> str:
    installed = gpus_of_driver()
    if not installed:
        return "none: nvidia-smi sees no GPU here"
    found = ", ".join(f"{name} (driver {driver})" for name, driver in installed)
    if not torch.backends.cuda.is_built():
        return f"none: this torch {torch.__version__} was built without CUDA, but nvidia-smi sees {found}; see {WHEELS}"
    if (hidden := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        reason = f"CUDA_VISIBLE_DEVICES={hidden} may hide it"
    else:
        reason = "the driver may be too old for it"
    reason += f"; PyTorch says: {warned[0]}" if warned else ""
    return f"none: nvidia-smi sees {found}, torch {torch.__version__} for CUDA {torch.version.cuda} does not: {reason}"


def gpus_of_driver() -> list[tuple[str, str]]:
    """Returns (name, driver version) of each GPU that nvidia-smi sees; none where it is missing or fails."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return []
    if done.returncode:  # its message, such as "couldn't communicate with the NVIDIA driver", is on stdout
        return []
    rows = [line.rpartition(",") for line in done.stdout.splitlines() if "," in line]
    return [(name.strip(), driver.strip()) for name, _, driver in rows]


def driver_version() -> str:
    """Returns the version of NVIDIA's driver, "-" where nvidia-smi does not tell."""
    return next((driver for _, driver in gpus_of_driver()), "-")


def library_versions() -> dict[str, str]:
    """Returns the versions of CUDA, cuDNN and NCCL that torch was built with; "-" for what it was built without."""
    versions = {"CUDA": torch.version.cuda or "-", "cuDNN": "-", "NCCL": "-"}
    if not torch.backends.cuda.is_built():
        return versions
    with_cudnn = torch.backends.cudnn.is_available()  # loads it; cuDNN needs no GPU for its version
    versions["cuDNN"] = _dotted_cudnn(torch.backends.cudnn.version()) if with_cudnn else "-"
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        versions["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return versions


def _dotted_cudnn(number: int) -> str:
    """Returns 92400 as 9.24.0, and 8907, of versions before 9, as 8.9.7."""
    major = 10_000 if number >= 90_000 else 1000
    return f"{number // major}.{number % major // 100}.{number % 100}"


def cores_per_gpu() -> int:
    """Returns this process's cores for each GPU that PyTorch sees, all of them without one; at least one."""
    return max(1, usable_cores() // max(1, torch.cuda.device_count()))
