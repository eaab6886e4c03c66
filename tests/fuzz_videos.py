"""Cuts and alters video files of many containers and codecs at many places, and decodes what is left.

    python tests/fuzz_videos.py FOLDER --places 1000            # half an hour on two cores

Each copy is read whole and sparsely in a process of its own pool. Right are frames that are the same both times, a
DecodeError and a SlowVideo. A process that dies or hangs is named with the copy, which stays in FOLDER.
"""

import argparse
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from rich.console import Console
from rich.table import Table
from videos import in_own_thread

from nlvideo.data.collections.worker_pool import each
from nlvideo.data.decoding.opening import open_video
from nlvideo.data.decoding.video import DecodeError, SlowVideo
from nlvideo.runtime.cores import usable_cores
from nlvideo.runtime.progress import progress_bar

SIZE, NUM_FRAMES, RATE = (48, 64), 30, 25
PER_TASK = 50  # copies that a process decodes before it reports


class Kind(NamedTuple):
    suffix: str
    codec: str
    pix_fmt: str = "yuv420p"
    options: tuple[tuple[str, str], ...] = ()
    format: str | None = None  # where the suffix does not say

    @property
    def name(self) -> str:
        return f"{self.codec}{'_' * bool(self.options)}{'_'.join(value for _, value in self.options)}.{self.suffix}"


B_FRAMES = (("bf", "2"), ("g", "12"))
OPEN_GOPS = (("x264-params", "open-gop=1:bframes=3:keyint=10:scenecut=0"),)
QUIET = (("x265-params", "bframes=3:keyint=12:log-level=none"),)
AV1 = (("preset", "12"), ("svtav1-params", "lp=1"))
KINDS = [
    *(Kind(suffix, "libx264", options=B_FRAMES) for suffix in ("mp4", "mov", "mkv", "ts", "flv", "avi", "m2ts", "3gp")),
    *(Kind(suffix, "libx264", options=OPEN_GOPS) for suffix in ("mp4", "mkv", "ts")),
    Kind("h264", "libx264", options=B_FRAMES),
    *(Kind(suffix, "libx265", options=QUIET) for suffix in ("mp4", "mkv", "ts")),
    *(Kind(suffix, "mpeg4", options=B_FRAMES) for suffix in ("mp4", "avi", "mkv", "mov")),
    Kind("3gp", "h263"),
    *(Kind(suffix, "mpeg2video", options=B_FRAMES) for suffix in ("mpg", "ts", "mkv", "vob")),
    Kind("mxf", "mpeg2video"),
    Kind("m2v", "mpeg2video"),
    Kind("mpg", "mpeg1video"),
    *(Kind(suffix, "libvpx") for suffix in ("webm", "mkv")),
    *(Kind(suffix, "libvpx-vp9") for suffix in ("webm", "mp4", "mkv")),
    *(Kind(suffix, "libsvtav1", options=AV1) for suffix in ("mp4", "webm")),
    *(Kind(suffix, "mjpeg", "yuvj420p") for suffix in ("avi", "mov", "mkv")),
    *(Kind(suffix, codec) for codec in ("wmv1", "wmv2", "msmpeg4v2", "msmpeg4") for suffix in ("asf", "avi")),
    Kind("flv", "flv"),
    Kind("mov", "prores_ks", "yuv422p10le"),
    Kind("mov", "qtrle", "rgb24"),
    Kind("mkv", "ffv1"),
    *(Kind("avi", codec, pix_fmt) for codec, pix_fmt in (("ffv1", "yuv420p"), ("huffyuv", "yuv422p"))),
    Kind("avi", "rawvideo"),
    Kind("mov", "png", "rgb24"),
    Kind("gif", "gif", "rgb8"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--places", type=int, default=1000, help="where each file is cut, and where it is altered")
    parser.add_argument("--kinds", nargs="+", default=[], help="parts of names, such as .ts or libx264")
    parser.add_argument("--workers", type=int, default=usable_cores())
    arguments = parser.parse_args()
    kinds = [kind for kind in KINDS if not arguments.kinds or any(part in kind.name for part in arguments.kinds)]
    counts = fuzz(arguments.folder, kinds, arguments.places, arguments.workers)
    columns = sorted({outcome for counted in counts.values() for outcome in counted})
    table = Table("kind", *columns)
    for name, counted in counts.items():
        table.add_row(name, *(str(counted[outcome] or "") for outcome in columns))
    table.add_row("all", *(str(sum(counted[outcome] for counted in counts.values())) for outcome in columns))
    Console(width=140).print(table)
    sys.exit(any(outcome.startswith("!") for outcome in columns))


def fuzz(folder: Path, kinds: list[Kind], places: int, workers: int) -> dict[str, Counter]:
    """Returns how often each outcome came for each kind; those that must not be begin with an exclamation mark."""
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, Counter] = {}
    tasks = []
    for kind in kinds:
        counts[kind.name] = Counter()
        try:
            write(folder / kind.name, kind)
        except (av.FFmpegError, ValueError) as error:  # this FFmpeg has no such encoder
            counts[kind.name][f"not written: {type(error).__name__}"] += 1
            continue
        counts[kind.name][compare(folder / kind.name)] += 1
        for way in ("cut", "altered"):
            tasks += [(folder / kind.name, way, first, places) for first in range(0, places, PER_TASK)]
    with progress_bar(total=len(tasks), unit="task") as bar:
        for outcome in each(try_copies, tasks, workers, time_limit=PER_TASK * 25):
            name = outcome.item[0].name
            counts[name].update(outcome.result or {"! died or hangs": 1})
            if outcome.failure:
                print(f"{outcome.item}: {outcome.failure}", flush=True)
            bar.update()
    return counts


@in_own_thread
def write(path: Path, kind: Kind) -> None:
    """Writes a video of moving stripes on noise."""
    noise = np.random.default_rng(0).integers(0, 60, (*SIZE, 3), dtype=np.uint8)
    with av.open(str(path), "w", format=kind.format) as container:
        stream = container.add_stream(kind.codec, rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *SIZE, kind.pix_fmt
        if kind.codec == "h263":
            stream.height, stream.width = 96, 128  # one of the five sizes that it has
        stream.options = {"threads": "1", **dict(kind.options)}
        for i in range(NUM_FRAMES):
            pixels = noise.copy()
            pixels[:, (2 * i) % SIZE[1] :: 16] = 255 - 5 * i
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def try_copies(task: tuple[Path, str, int, int]) -> Counter:
    """Decodes PER_TASK of the copies of a file that are cut short, or altered at some bytes."""
    source, way, first, places = task
    data, outcomes = source.read_bytes(), Counter()
    copy = source.with_name(f"{way}-{first}-{source.name}")
    for i in range(first, min(first + PER_TASK, places)):
        rng = np.random.default_rng([i, way == "cut"])
        place = len(data) * i // places
        changed = bytearray(data)
        if way == "cut":
            del changed[place:]
        else:
            for offset in range(rng.integers(1, 5)):
                changed[(place + offset) % len(changed)] = rng.integers(256)
        copy.write_bytes(changed)
        outcome = compare(copy)
        if outcome.startswith("!"):
            shutil.copy(copy, source.with_name(f"{way}-{i}-{outcome.strip('! ').replace(' ', '_')}-{source.name}"))
        outcomes[outcome] += 1
    copy.unlink(missing_ok=True)
    return outcomes


def compare(path: Path) -> str:
    """Returns what comes of reading a file whole and sparsely."""
    try:
        with open_video(path, time_limit=10) as video:
            size = (video.height, video.width)
            every = list(range(min(video.num_frames, 200)))
            whole = video.read(every, size)
    except DecodeError:
        whole = None
    except SlowVideo:
        return "slow"
    except Exception as error:
        return f"! {type(error).__name__}"
    try:
        with open_video(path, time_limit=10) as video:
            some = list(range(1, min(video.num_frames, 200), 5)) or [0]
            sparse = video.read(some, size if whole is not None else (48, 64))
    except DecodeError:
        return "error"
    except SlowVideo:
        return "slow"
    except Exception as error:
        return f"! {type(error).__name__}"
    if whole is None:
        return "error whole, sparse frames"
    return "same" if (whole[some] == sparse).all() else "differ"


if __name__ == "__main__":
    main()
