"""nlvideo-doctor: which decoders work here, on a file that it writes itself."""

import platform
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import av
import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nlvideo.data.decoding.opening import DECODERS, load_decoder
from nlvideo.data.decoding.video import DecodeError
from nlvideo.runtime.precision import resolve_precision

NUM_FRAMES, WANTED = 48, (5, 18, 19, 40)
GREY_STEP = 5  # frame i is all of grey level GREY_STEP * i


def main() -> None:
    table = Table("decoder", "version", "works", "what it says")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "grey.mp4")
        write_test_video(file)
        problems = {name: problem_of(name, file) for name in DECODERS}
    for name, problem in problems.items():
        table.add_row(
            name, _version(DECODERS[name][1]), "no" if problem else "yes", escape(problem or "the right frames")
        )
    Console().print(table)
    working = [name for name, problem in problems.items() if not problem]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    what = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"device    {what}, {str(resolve_precision('auto', device)).removeprefix('torch.')}")
    print(f"versions  python {platform.python_version()}, torch {torch.__version__}, nlvideo {_version('nlvideo')}")
    print(f"used      data.decoder=pyav unless you say otherwise; {', '.join(working) or 'none'} can be used here")
    sys.exit("pyav" not in working)


def write_test_video(file: Path) -> None:
    """Writes a small H.264 file with B-frames, whose frames say which they are."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.options = {"crf": "1", "g": "16", "bf": "2"}
        for i in range(NUM_FRAMES):
            pixels = np.full((64, 96, 3), GREY_STEP * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def problem_of(decoder: str, file: Path) -> str | None:
    """Returns why a decoder cannot be used, None if it gives the right frames of the file."""
    try:
        with load_decoder(decoder)(file) as video:
            frames = video.read(WANTED, (64, 96))
    except (ValueError, DecodeError) as error:
        return str(error)
    found = tuple(round(frame.double().mean().item() / GREY_STEP) for frame in frames)
    return None if found == WANTED else f"it gives frames {found} for {WANTED}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


if __name__ == "__main__":
    main()
