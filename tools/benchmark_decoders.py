"""What a training clip costs here, and with the packages that are used for it elsewhere, on one core and in one run.

    python tools/benchmark_decoders.py FOLDER [--rounds N]

FOLDER holds videos. Each clip is 32 of 64 frames from a random start, its short side 256 to 320, cropped to 224 at
random: by nlvideo with each decoder that is installed, with an index too; and by PyAV, decord and torchcodec as their
manuals have it, the wanted frames whole, then resized with antialiasing and cropped. Prints CPU milliseconds of a clip,
all of them in turn.
"""

import argparse
import contextlib
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from benchmark_loader import TRAIN, known, table_of, videos_of
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nlvideo.data.clips import sampling
from nlvideo.data.clips.train_clips import Drawn, TrainClips
from nlvideo.data.decoding.opening import DECODERS, Opener, load_decoder
from nlvideo.data.decoding.video import Crop
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.runtime.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=9, help="clips of each video (default 9)")
    arguments = parser.parse_args()
    videos = videos_of(arguments.folder)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        table = table_of(arguments.folder, videos, scratch)
        milliseconds = measure(table, cases_of(table, Path(scratch, "index")), arguments.rounds)
    shown = Table("training clip", "ms of a core", "one round", "over nlvideo", title=f"{len(table)} videos")
    first = statistics.mean(next(iter(milliseconds.values())))
    for name, values in milliseconds.items():
        mean = statistics.mean(values)
        shown.add_row(name, f"{mean:.1f}", f"{min(values):.1f} to {max(values):.1f}", f"{mean / first:.2f}")
    Console().print(shown)


def cases_of(table: VideoTable, index_file: Path) -> dict[str, Callable[[int, int, Drawn], object]]:
    """Returns what is measured, by name: functions of the epoch, the video and what nlvideo draws for its clip."""
    cases: dict[str, Callable[[int, int, Drawn], object]] = {}
    samples = TrainClips(table, **TRAIN)
    indexed = TrainClips(table, **TRAIN, opener=Opener(index=known(index_file, table)))
    cases["nlvideo"] = partial(by_nlvideo, samples)
    cases["nlvideo, index"] = partial(by_nlvideo, indexed)
    for name in DECODERS:
        with contextlib.suppress(UserError):  # not installed
            load_decoder(name)
            if name != "pyav":
                other = TrainClips(table, **TRAIN, opener=Opener(name))
                cases[f"nlvideo, data.decoder={name}"] = partial(by_nlvideo, other)
    cases[f"PyAV {av.__version__}"] = lambda _, i, drawn: finished(by_pyav(table.path(i), drawn), drawn)
    for name, read in (("decord", by_decord), ("torchcodec", by_torchcodec)):
        with contextlib.suppress(Exception):  # not installed, or without the libraries that it needs
            package = importlib.import_module(name if name == "decord" else f"{name}.decoders")
            cases[f"{name} {version(name)}"] = partial(by_package, read, package, table)
    return cases


def measure(table: VideoTable, cases: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Returns the CPU milliseconds of a clip of each round."""
    samples = TrainClips(table, **TRAIN)
    found: dict[str, list[float]] = {name: [] for name in cases}
    for epoch in range(rounds + 1):
        drawn = [samples.draw(epoch, i) for i in range(len(table))]
        for name, case in cases.items():
            start = time.process_time()
            for i in range(len(table)):
                case(epoch, i, drawn[i])
            if epoch:  # the first round fills caches
                found[name].append(1e3 * (time.process_time() - start) / len(table))
    return found


def by_nlvideo(samples: TrainClips, epoch: int, i: int, _: Drawn) -> None:
    samples[epoch, i]


def by_package(read: Callable[..., Tensor], package: Any, table: VideoTable, _: int, i: int, drawn: Drawn) -> Tensor:
    return finished(read(package, table.path(i), drawn), drawn)


def wanted_of(num_frames: int, drawn: Drawn) -> list[int]:
    return sampling.clip_indices(drawn.start, num_frames, TRAIN["num_frames"], TRAIN["frame_stride"]).tolist()


def by_pyav(path: str, drawn: Drawn) -> Tensor:
    """Seeks, decodes and converts the wanted frames, found by their times at the average rate."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        ticks = 1 / (stream.average_rate * stream.time_base)
        times = [(stream.start_time or 0) + round(frame * ticks) for frame in wanted_of(1 << 62, drawn)]
        container.seek(times[0], stream=stream)
        frames: list[np.ndarray] = []
        for frame in container.decode(stream):
            if frame.pts + ticks / 2 > times[len(frames)]:
                frames.append(frame.to_ndarray(format="rgb24", threads=1))
                if len(frames) == len(times):
                    break
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def by_decord(decord: Any, path: str, drawn: Drawn) -> Tensor:
    reader = decord.VideoReader(path, num_threads=1)
    return torch.from_numpy(reader.get_batch(wanted_of(len(reader), drawn)).asnumpy()).permute(0, 3, 1, 2)


def by_torchcodec(decoders: Any, path: str, drawn: Drawn) -> Tensor:
    decoder = decoders.VideoDecoder(path, seek_mode="exact", dimension_order="NHWC", num_ffmpeg_threads=1)
    return decoder.get_frames_at(wanted_of(len(decoder), drawn)).data.permute(0, 3, 1, 2)


def finished(frames: Tensor, drawn: Drawn) -> Tensor:
    """Returns frames (T, C, H, W) uint8 resized, cropped and mirrored as drawn."""
    assert isinstance(drawn.crop, Crop)
    resized = torch.nn.functional.interpolate(frames, drawn.crop.size, mode="bilinear", antialias=True)
    _, top, left, height, width = drawn.crop
    clip = resized[:, :, top : top + height, left : left + width]
    return clip.flip(3) if drawn.mirrored else clip.contiguous()


if __name__ == "__main__":
    main()
