"""nlvideo-doctor: which video decoders work here, tried on a file that it writes, and the versions in use."""

import platform
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nlvideo.data.decoding.opening import DECODERS, load_decoder
from nlvideo.data.decoding.video import DecodeError
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.precision import resolve_precision
from nlvideo.runtime.video_writer import VideoWriter

NUM_FRAMES, HEIGHT, WIDTH = 48, 64, 96
WANTED = (5, 18, 19, 40)  # frames to decode
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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"device    {hardware}, {str(resolve_precision('auto', device)).removeprefix('torch.')}")
    print(f"versions  python {platform.python_version()}, torch {torch.__version__}, nlvideo {_version('nlvideo')}")
    print(f"decoders  data.decoder=pyav is the default; usable here: {', '.join(working) or 'none'}")
    sys.exit("pyav" not in working)


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
