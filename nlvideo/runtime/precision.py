"""The compute dtype of each device."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nlvideo.runtime.errors import UserError

CPU_FLAGS = Path("/proc/cpuinfo")


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Returns the compute dtype.

    "auto" is bfloat16 where the device multiplies it in hardware, else float32. Weights stay float32, except that
    float64 covers everything.

    Raises:
        UserError: bfloat16 on a GPU without it.
    """
    if precision == "auto":
        return torch.bfloat16 if _has_bfloat16(device) else torch.float32
    dtype = getattr(torch, precision)
    if dtype == torch.bfloat16 and device.type == "cuda" and not _has_bfloat16(device):
        raise UserError(
            f"precision=bfloat16: {torch.cuda.get_device_name(device)} has none; choose float16 or float32."
        )
    return dtype


def autocast(device: torch.device, dtype: torch.dtype, *, cached: bool = True) -> torch.autocast:
    """Returns the context in which a float32 network computes its products in 16 bits, if that is the type.

    Args:
        cached: weights in 16 bits are kept until the context ends, for a second use.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(device.type, dtype if half else torch.bfloat16, enabled=half, cache_enabled=cached)


def use_tf32(allowed: bool, device: torch.device) -> None:
    """Lets float32 products round their factors to TF32, or not.

    Raises:
        UserError: TF32 on a device without it.
    """
    if allowed and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise UserError("tf32=true: only NVIDIA GPUs from Ampere on have TF32, and this device is not one.")
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def keeping_torch_settings() -> Iterator[None]:
    """Gives a program its threads, its rounding of float32 products and its choice of convolutions back at the end."""
    threads, products = torch.get_num_threads(), torch.get_float32_matmul_precision()
    tf32, timed = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = tf32, timed


def input_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the type of weights and clips: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Of x86 on Linux. Other systems do not show their flags as files. ARM's is "bf16", which does not count: the
    # library behind torch's products there has two-dimensional convolutions only, and no backward passes.
    try:
        flags = CPU_FLAGS.read_text().split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
