"""Part A: which kernels PyTorch takes here for batch norm and attention. The versions are in the header."""

from pathlib import Path

import torch

from gpu_checks.findings import Findings
from nlvideo.models.kernels import attention_kernel, batch_norm_kernel
from nlvideo.runtime.shared_memory import room_line

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
WIDTHS = (128, 256, 512, 1024)


def run(found: Findings, _folder: Path) -> None:
    for name, dtype in DTYPES.items():
        with found.case(f"batch norm in {name}"):
            found.show(f"batch norm in {name}", batch_norm_kernel(found.device, dtype))
    for name, dtype in DTYPES.items():
        with found.case(f"attention in {name}"):
            found.show(f"attention in {name}", ", ".join(f"D {width} {shown(found, dtype, width)}" for width in WIDTHS))
    found.show("shared memory", room_line())
    if not found.cuda:
        found.skip("kernels of a GPU", "there is none; these are the CPU's")


def shown(found: Findings, dtype: torch.dtype, width: int) -> str:
    """Returns what takes the attention, and in brackets PyTorch's kernels that would where it is ours."""
    kernel = attention_kernel(found.device, dtype, width)
    offered = f" ({', '.join(kernel.possible) or 'no other'})" if kernel.chosen == "ours" else ""
    return f"{kernel.chosen}{offered}"
