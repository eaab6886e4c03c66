"""nlvideo-doctor: which video decoders work here, tried on a file that it writes, the versions in use, and the GPU."""

import platform
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nlvideo.build.data import num_workers
from nlvideo.config.schema import DataConfig
from nlvideo.data.decoding.opening import DECODERS, load_decoder
from nlvideo.data.decoding.video import DecodeError
from nlvideo.models.kernels import attention_kernel, batch_norm_kernel
from nlvideo.runtime.cores import usable_cores
from nlvideo.runtime.device_facts import (
    cores_per_gpu,
    driver_version,
    library_versions,
    visible_gpu,
)
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.precision import resolve_precision
from nlvideo.runtime.shared_memory import room_line
from nlvideo.runtime.video_writer import VideoWriter

NUM_FRAMES, HEIGHT, WIDTH = 48, 64, 96
WANTED = (5, 18, 19, 40)  # frames to decode
ATTENTION_WIDTHS = (256, 512)  # of the blocks in res3 and res4
GREY_STEP = 5  # frame i is uniformly grey, GREY_STEP * i


def main() -> None:
    table = Table("decoder", "version", "works", "result")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "grey.mp4")
        write_test_video(file)
        problems = {name: decoder_problem(name, file) for name in DECODERS}
    for name, problem in problems.items():
        works = "no" if problem else "yes"
        table.add_row(name, _version(DECODERS[name][1]), works, escape(problem or "correct frames"))
    Console().print(table)
    working = [name for name, problem in problems.items() if not problem]
    for line in device_lines():
        print(line)
    print(f"versions  python {platform.python_version()}, torch {torch.__version__}, nlvideo {_version('nlvideo')}")
    print(f"decoders  data.decoder=pyav is the default; usable here: {', '.join(working) or 'none'}")
    sys.exit("pyav" not in working)


def device_lines() -> list[str]:
    """Returns what is said about the device: two lines for a CPU, eight for a GPU."""
    try:
        gpu = visible_gpu()
    except RuntimeError as error:  # PyTorch's CUDA errors: it is there and does not answer
        return [f"device    a GPU that does not answer: {str(error).splitlines()[0]}"]
    device = torch.device("cpu" if isinstance(gpu, str) else "cuda")
    precision = str(resolve_precision("auto", device)).removeprefix("torch.")
    if isinstance(gpu, str):
        return [f"device    {torch.get_num_threads()} CPU threads, {precision}", f"gpu       {gpu}"]
    major, minor = gpu.capability
    ampere = "yes" if gpu.capability >= (8, 0) else "no"
    cores, gpus = cores_per_gpu(), torch.cuda.device_count()
    workers = num_workers(DataConfig(root=""), gpus)
    lines = {
        "device": f"{gpu.name}, {precision}; {gpus} of them" if gpus > 1 else f"{gpu.name}, {precision}",
        "gpu": f"capability {major}.{minor}, {gpu.free_bytes / 1e9:.1f} of {gpu.total_bytes / 1e9:.1f} GB free, "
        f"driver {driver_version()}",
        "libraries": _probed(lambda: ", ".join(f"{name} {number}" for name, number in library_versions().items())),
        "numbers": f"bfloat16 {ampere}, TF32 {ampere} (tf32=true), float16 yes",
        "attention": _probed(lambda: _attention_line(device)),
        "batchnorm": _probed(lambda: f"{batch_norm_kernel(device, resolve_precision('auto', device))} ({precision})"),
        "memory": room_line(),
        "cores": f"{usable_cores()}, {cores} for each GPU; data.num_workers=null gives each {workers} workers",
    }
    return [f"{name:9} {text}" for name, text in lines.items()]


def _attention_line(device: torch.device) -> str:
    dtype = resolve_precision("auto", device)
    kernels = {width: attention_kernel(device, dtype, width).chosen for width in ATTENTION_WIDTHS}
    return ", ".join(f"{kernel} at {width} channels" for width, kernel in kernels.items())


def _probed(probe: Callable[[], str]) -> str:
    """Returns what a probe that runs on the GPU says, or how it failed: kernels may be missing for this GPU."""
    try:
        return probe()
    except RuntimeError as error:
        return f"not known: {str(error).splitlines()[0]}"


def write_test_video(file: Path) -> None:
    """Writes a small H.264 file with B-frames, whose frames can be told apart by their grey level."""
    with VideoWriter(file, 25, {"crf": "1", "g": "16", "bf": "2"}) as writer:
        for i in range(NUM_FRAMES):
            writer.write(np.full((HEIGHT, WIDTH, 3), GREY_STEP * i, np.uint8))


def decoder_problem(decoder: str, file: Path) -> str | None:
    """Returns why a decoder cannot be used, or None if it returns the correct frames of the file."""
    try:
        with load_decoder(decoder)(file) as video:
            frames = video.read(WANTED, (HEIGHT, WIDTH))
    except (UserError, DecodeError) as error:
        return str(error)
    found = tuple(round(frame.double().mean().item() / GREY_STEP) for frame in frames)
    return None if found == WANTED else f"returns frames {found} for {WANTED}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


if __name__ == "__main__":
    main()
