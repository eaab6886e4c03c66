"""What features cost, and what each step on the way to them changes.

    python tools/benchmark_features.py cost --seconds 600                        # against one decode + forward passes
    python tools/benchmark_features.py cost --seconds 600 --jpeg                 # and against the way through jpegs
    python tools/benchmark_features.py cost --seconds 3600 --crops 1 --alone     # memory for an hour
    python tools/benchmark_features.py rate --seconds 60 --videos 16             # snippets a second of the real network
    python tools/benchmark_features.py changes run/checkpoint.pt video.mp4       # jpeg, aspect, crops

Each case of `cost` runs in a process of its own, on a video that is written first: 320x240, 25 frames a second, moving
waves. The network is thin (--width), with random weights. Memory is what a process holds at most beyond what it held
before the video was opened. The jpegs are what the ffmpeg program writes unless told otherwise (mjpeg, 200 kbit/s).
"""

import argparse
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from benchmark_model import peak_bytes, used_bytes
from gpu_checks.step_measuring import milliseconds_a_step
from PIL import Image
from rich.console import Console
from rich.table import Table

from nlvideo.build.model import build_model
from nlvideo.config.compose import compose_train_config, to_container
from nlvideo.features.extraction import extract
from nlvideo.features.extractor import FeatureExtractor
from nlvideo.features.frame_source import FrameSource, needed_frames
from nlvideo.features.presets import extract_settings
from nlvideo.runtime.video_writer import VideoWriter
from nlvideo.weights.checkpoint_file import FORMAT, digest
from nlvideo.weights.trained_network import read_trained

SIZE, RATE = (240, 320), 25  # height and width, frames a second
PERIOD = 80  # frames after which the video repeats itself
FFMPEG_BIT_RATE = 200_000  # of the program ffmpeg where nothing is said
PUBLISHED_BATCH = 20  # snippets, of the way through jpegs; they take 5 GB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    cost = commands.add_parser("cost", help="time and memory")
    cost.add_argument("--seconds", type=int, default=60, help="length of the video")
    cost.add_argument("--crops", type=int, default=10)
    cost.add_argument("--width", type=int, default=1, help="channels of conv1; 64 is the real network")
    cost.add_argument("--jpeg", action="store_true", help="the way through jpegs too")
    cost.add_argument("--alone", action="store_true", help="nlvideo-extract only, for its memory")
    rate = commands.add_parser("rate", help="snippets a second, with several videos at once")
    rate.add_argument("--seconds", type=int, default=60, help="length of each video")
    rate.add_argument("--videos", type=int, default=16)
    rate.add_argument("--at-once", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N")
    rate.add_argument("--width", type=int, default=64)
    rate.add_argument("--precision", default="auto")
    changes = commands.add_parser("changes", help="cosine similarity and relative difference of features")
    changes.add_argument("checkpoint", type=Path)
    changes.add_argument("videos", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "cost":
        compare_cost(arguments)
    elif arguments.command == "rate":
        measure_rate(arguments)
    else:
        compare_steps(arguments.checkpoint, arguments.videos)


def compare_cost(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_waves(folder / "video.mp4", arguments.seconds * RATE)
        write_thin(folder / "thin.pt", arguments.width)
        cases: dict[str, Callable] = {"one decode": decode, "forward passes": forward, "nlvideo-extract": extracting}
        if arguments.alone:
            cases = {"nlvideo-extract": extracting}
        if arguments.jpeg:
            cases["through jpegs"] = through_jpegs
        found = {}
        for title, function in cases.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # its peak memory is its own
                found[title] = pool.apply(measured, (function, folder, arguments.crops))
    threads = torch.get_num_threads()
    title = f"{arguments.seconds} s of video, {arguments.crops} crops, width {arguments.width}, {threads} threads"
    table = Table("what", "seconds", "CPU seconds", "MB", title=title)
    for name, (seconds, cpu, memory) in found.items():
        table.add_row(name, f"{seconds:.1f}", f"{cpu:.1f}", f"{memory / 1e6:.0f}")
    Console().print(table)
    for i, what in enumerate(() if arguments.alone else ("wall", "CPU")):
        least = found["one decode"][i] + found["forward passes"][i]
        line = f"{what}: nlvideo-extract / (one decode + forward passes) = {found['nlvideo-extract'][i] / least:.3f}"
        if arguments.jpeg:
            line += f"; through jpegs / nlvideo-extract = {found['through jpegs'][i] / found['nlvideo-extract'][i]:.2f}"
        print(line)


def measured(function: Callable, folder: Path, crops: int) -> tuple[float, float, int]:
    """Returns seconds, CPU seconds and bytes that a function takes beyond an extractor that is ready."""
    settings = {"crops": crops, "num_threads": torch.get_num_threads()}
    extractor = FeatureExtractor(folder / "thin.pt", "rtfm", "cpu", settings)
    list(itertools.islice(extractor.passes(*random_source(extractor, 33)), 3))  # libraries load what they need
    before, started, cpu = used_bytes(extractor.device), time.monotonic(), time.process_time()
    function(folder, extractor)
    return time.monotonic() - started, time.process_time() - cpu, peak_bytes(extractor.device) - before


def decode(folder: Path, extractor: FeatureExtractor) -> None:
    """Decodes every frame and resizes it."""
    with extractor.open(folder / "video.mp4") as source:
        for _ in needed_frames(source, extractor.plan(source), extractor.recipe):
            pass


def forward(folder: Path, extractor: FeatureExtractor) -> None:
    """Computes as many passes, of clips that are there, normalised."""
    with extractor.open(folder / "video.mp4") as source:
        count = extractor.plan(source).count(source.num_frames) * len(extractor.places(source))
    for views in range(0, count, extractor.views_per_step):
        number = min(extractor.views_per_step, count - views)
        clips = torch.ones(number, 16, 224, 224, 3).permute(0, 4, 1, 2, 3)
        extractor.outputs(clips)


def extracting(folder: Path, extractor: FeatureExtractor) -> None:
    """The whole command."""
    given: dict[str, Any] = {"checkpoint": f"{folder}/thin.pt", "videos": f"{folder}/video.mp4", "preset": "rtfm"}
    given |= {"output": f"{folder}/features", "crops": extractor.config.crops, "num_threads": torch.get_num_threads()}
    trained = read_trained(folder / "thin.pt")
    extract(extract_settings(trained.config, given), trained)


def measure_rate(arguments: argparse.Namespace) -> None:
    """Prints how many snippets of ten crops a second the command writes, beside what limits it."""
    with tempfile.TemporaryDirectory() as name:
        folder, videos = Path(name), Path(name, "videos")
        videos.mkdir()
        write_waves(folder / "video.mp4", arguments.seconds * RATE)
        for i in range(arguments.videos):
            (videos / f"{i}.mp4").hardlink_to(folder / "video.mp4")
        write_thin(folder / "thin.pt", arguments.width)
        extractor = FeatureExtractor(folder / "thin.pt", "rtfm", None, {"precision": arguments.precision})
        kind = torch.cuda.get_device_name() if extractor.device.type == "cuda" else "CPU"
        title = f"{arguments.videos} videos of {arguments.seconds} s on {kind}, width {arguments.width}, ten crops"
        table = Table("what", "snippets/s", "CPU cores busy", title=title)
        clips = torch.randn(extractor.views_per_step, 3, 16, 224, 224, device=extractor.device)
        clips = clips.contiguous(memory_format=torch.channels_last_3d)
        milliseconds = milliseconds_a_step(lambda: extractor.outputs(clips), extractor.device, 20)
        table.add_row("the network alone", f"{100 * extractor.views_per_step / milliseconds:.1f}", "")
        snippets = arguments.seconds * RATE // 16
        seconds, cores = clocked(lambda: decode(folder, extractor))
        table.add_row("decoding and resizing alone, one thread", f"{snippets / seconds:.1f}", f"{cores:.1f}")
        trained = read_trained(folder / "thin.pt")
        for number in arguments.at_once:
            given = {"checkpoint": f"{folder}/thin.pt", "videos": str(videos), "preset": "rtfm"}
            given |= {"output": f"{folder}/{number}", "videos_at_once": number, "precision": arguments.precision}
            settings = extract_settings(trained.config, given)
            seconds, cores = clocked(partial(extract, settings, trained))
            rate = arguments.videos * snippets / seconds
            table.add_row(f"nlvideo-extract, videos_at_once={number}", f"{rate:.1f}", f"{cores:.1f}")
        Console().print(table)


def clocked(function: Callable[[], object]) -> tuple[float, float]:
    """Returns the seconds that a call takes, and how many cores it keeps busy meanwhile."""
    started, cpu = time.monotonic(), time.process_time()
    function()
    seconds = time.monotonic() - started
    return seconds, (time.process_time() - cpu) / seconds


def through_jpegs(folder: Path, extractor: FeatureExtractor) -> None:
    """Every frame to a jpeg file, then batches of snippets in float64, crop after crop, as published."""
    pictures, crops = write_jpegs(folder / "video.mp4", folder / "jpegs"), extractor.config.crops
    starts = np.arange(0, len(pictures) - 15, 16)
    for chunk in np.array_split(starts, -(-len(starts) // PUBLISHED_BATCH)):
        data = np.zeros((len(chunk), 16, 256, 340, 3))
        for i, start in enumerate(chunk.tolist()):
            for t in range(16):
                data[i, t] = load_picture(pictures[start + t])
        for crop in published_crops(data)[:crops]:
            with torch.inference_mode():
                clips = torch.from_numpy(crop.transpose(0, 4, 1, 2, 3)).float()
                extractor.network.features(clips).mean((2, 3, 4))


def load_picture(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture.resize((340, 256), Image.Resampling.LANCZOS)).astype(float) * 2 / 255 - 1


def published_crops(data: np.ndarray) -> list[np.ndarray]:
    """Returns the ten crops of (N, T, 256, 340, 3), each a copy."""
    found = []
    for part in (data, np.array(data[:, :, :, ::-1])):
        found += [part[:, :, :224, :224], part[:, :, :224, -224:], part[:, :, 16:240, 58:282]]
        found += [part[:, :, -224:, :224], part[:, :, -224:, -224:]]
    return [np.array(crop) for crop in found]


def write_jpegs(video: Path, folder: Path) -> list[Path]:
    """Writes all frames as `ffmpeg -i video folder/%d.jpg` does and returns their files."""
    folder.mkdir()
    with av.open(str(video)) as source, av.open(f"{folder}/%d.jpg", "w", format="image2") as made:
        stream = made.add_stream("mjpeg", rate=RATE)
        stream.bit_rate, stream.pix_fmt = FFMPEG_BIT_RATE, "yuvj420p"
        for i, frame in enumerate(source.decode(video=0)):
            if i == 0:
                stream.height, stream.width = frame.height, frame.width
            frame = frame.reformat(format="yuvj420p")
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
    return sorted(folder.iterdir(), key=lambda path: int(path.stem))


def write_waves(path: Path, num_frames: int) -> None:
    """Writes at most a minute, and repeats its packets."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    noise = np.random.default_rng(0).integers(0, 60, (*SIZE, 3))
    frames = []
    for i in range(PERIOD):
        waves = [98 + 95 * np.sin((columns * (k + 1) + 2 * rows) / 37 + 2 * np.pi * i / PERIOD) for k in range(3)]
        frames.append(np.ascontiguousarray((np.stack(waves, 2) + np.roll(noise, i, 1)).astype(np.uint8)))
    encoded, minute = min(num_frames, 60 * RATE), path.with_name("minute.mp4")
    with VideoWriter(minute, RATE, {"crf": "23", "g": "250", "preset": "veryfast"}) as writer:
        for i in range(encoded):
            writer.write(frames[i % PERIOD])
    with av.open(str(path), "w") as made:
        stream = None
        for repeat in range(num_frames // encoded):
            with av.open(str(minute)) as source:
                stream = stream or made.add_stream_from_template(source.streams.video[0])
                shift = int(repeat * encoded / RATE / source.streams.video[0].time_base)
                for packet in source.demux(video=0):
                    if packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                        made.mux(packet)


def write_thin(path: Path, width: int) -> None:
    config = compose_train_config(
        ["experiment=i3d_r50", "model.pretrained=null", f"model.width={width}", "data.root=x", "precision=float32"]
    )
    state = build_model(config.model, config.block, config.data, 400).state_dict()
    content = {"format": FORMAT, "model": state, "step": 0, "config": to_container(config)}
    content["classes"] = [f"class {k}" for k in range(400)]
    torch.save(content | {"sha256": digest(content)}, path)


def random_source(extractor: FeatureExtractor, num_frames: int) -> tuple[FrameSource, Any]:
    """Returns frames that need no file, and their snippets."""

    def read(indices: np.ndarray) -> Iterator[torch.Tensor]:
        return (torch.randint(0, 256, (*SIZE, 3), dtype=torch.uint8) for _ in indices)

    source = FrameSource("noise", num_frames, RATE, *SIZE, read)
    return source, extractor.plan(source)


def compare_steps(checkpoint: Path, videos: list[Path]) -> None:
    """Prints how far features move with each step that differs from preset=rtfm."""
    extractor = FeatureExtractor(checkpoint, "rtfm")
    recipe, found = extractor.recipe, dict[str, list[np.ndarray]]()
    with tempfile.TemporaryDirectory() as name:
        for i, video in enumerate(videos):
            write_jpegs(video, Path(name, str(i)))
            extractor.recipe = recipe
            found.setdefault("preset=rtfm", []).append(extractor(video))
            found.setdefault("through ffmpeg's jpegs", []).append(extractor(Path(name, str(i))))
            extractor.recipe = replace(recipe, lanczos=False)
            found.setdefault("bilinear instead of LANCZOS", []).append(extractor(video))
            extractor.recipe = replace(recipe, size=None)
            found.setdefault("aspect kept, short side 256", []).append(extractor(video))
    arrays = {name: np.concatenate(parts).astype(np.float64) for name, parts in found.items()}
    direct = arrays.pop("preset=rtfm")
    rows = {name: (array, direct) for name, array in arrays.items()}
    rows["mean of ten crops, aspect kept"] = (arrays["aspect kept, short side 256"].mean(1), direct.mean(1))
    rows["one crop (centre) instead of the mean of ten"] = (direct[:, 2], direct.mean(1))
    rows["mirrored instead of upright"] = (direct[:, 5:], direct[:, :5])
    rows["the next snippet, for comparison"] = (direct[1:], direct[:-1])
    table = Table(
        "what", "cosine: median", "least", "relative difference: median", title=f"{checkpoint}, {len(direct)} snippets"
    )
    for name, (array, other) in rows.items():
        norms = np.linalg.norm(array, axis=-1), np.linalg.norm(other, axis=-1)
        cosine = (array * other).sum(-1) / (norms[0] * norms[1])
        difference = np.linalg.norm(array - other, axis=-1) / norms[1]
        table.add_row(name, f"{np.median(cosine):.4f}", f"{cosine.min():.4f}", f"{np.median(difference):.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
