"""What ways of preparing videos cost: size, likeness to the original, and training clips a second.

    python tools/benchmark_preparing.py FOLDER [--rounds N] [--only "as it is" ...]

FOLDER holds videos. Each way encodes all of them as tools/prepare_videos.py does, with other options, and is then read
in turn with the originals: training clips (32 of 64 frames, short side 256 to 320, crop 224) in one process with one
thread, in rounds with other random clips each. Times are the process's own CPU time. "Even starts" are clips that
begin at an even frame, so that a stride of two wants no other.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from benchmark_loader import TRAIN, table_of, videos_of
from prepare_videos import Encoding, encode_video, h264
from rich.console import Console
from rich.table import Table
from skimage.metrics import structural_similarity
from tqdm import tqdm

from nlvideo.data.clips import sampling
from nlvideo.data.clips.train_clips import TrainClips
from nlvideo.data.decoding.opening import Opener, open_video
from nlvideo.data.index.video_index import VideoIndex
from nlvideo.data.lists.video_table import VideoTable

COMPARED_EVERY = 25  # frames


class Way(NamedTuple):
    """An encoding, and which frames its clips may start at."""

    encoding: Encoding
    start_every: int = 1


def fixed(bframes: int) -> Encoding:
    """Returns H.264 with always so many B-frames in a row: a temporal layer that strides leave out."""
    return h264(bframes=bframes, more="b-adapt=0")


WAYS = {
    "as it is": Way(h264()),
    "crf 20": Way(h264(crf=20)),
    "crf 24": Way(h264(crf=24)),
    "a keyframe every 48": Way(h264(gap=48)),
    "a keyframe every 96": Way(h264(gap=96)),
    "up to 3 B-frames": Way(h264(bframes=3, more="")),
    "up to 3 B-frames, crf 20": Way(h264(crf=20, bframes=3, more="")),
    "always 1 B-frame, even starts": Way(fixed(1), 2),
    "always 3 B-frames": Way(fixed(3)),
    "always 3 B-frames, even starts": Way(fixed(3), 2),
    "always 7 B-frames": Way(fixed(7)),
    "always 7 B-frames, even starts": Way(fixed(7), 2),
    "always 15 B-frames": Way(fixed(15)),
    "one reference, no partitions": Way(h264(more="b-bias=50:ref=1:partitions=none")),
    "preset ultrafast": Way(h264(preset="ultrafast")),
    "keyframes alone": Way(h264(gap=1, bframes=0, more="")),
    "HEVC": Way(Encoding("libx265", {"crf": "24", "preset": "fast", "tune": "fastdecode", "x265-params": (
        "keyint=48:bframes=7:b-adapt=0:b-pyramid=0:scenecut=0:pools=1:frame-threads=1:log-level=error")})),
    "VP9": Way(Encoding("libvpx-vp9", {"crf": "30", "b": "0", "g": "48", "deadline": "realtime", "cpu-used": "4",
        "threads": "1"})),
    "MPEG-4 part 2": Way(Encoding("mpeg4", {"flags": "+qscale", "global_quality": str(3 * 118), "g": "24"})),
    "JPEG": Way(Encoding("mjpeg", {"flags": "+qscale", "global_quality": str(4 * 118), "strict": "unofficial"})),
}  # fmt: skip


class Measured(NamedTuple):
    way: str
    table: VideoTable
    size: int  # bytes of all videos
    likeness: float  # mean SSIM of the grey pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=8, help="how often each video is read (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=WAYS, metavar="WAY", help="of " + ", ".join(WAYS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    videos = videos_of(arguments.folder)
    with tempfile.TemporaryDirectory() as scratch:
        originals = table_of(arguments.folder, videos, scratch)
        ways = arguments.only or list(WAYS)
        encoded = [encode_all(arguments.folder, videos, name, scratch) for name in tqdm(ways, desc="encoding")]
        tables = {"original": originals} | {made.way: made.table for made in encoded}
        show(encoded, seconds_of_clips(tables, arguments.rounds, Path(scratch, "index")), originals)


def encode_all(folder: Path, videos: list[str], name: str, scratch: str) -> Measured:
    target = Path(scratch, str(list(WAYS).index(name)))
    made = [encode_video(v, src=folder, dst=target, short_side=256, encoding=WAYS[name].encoding) for v in videos]
    names = [str(row["prepared"]) for row in made]
    likeness = [likeness_of(folder / video, target / copy) for video, copy in zip(videos, names, strict=True)]
    return Measured(
        name, table_of(target, names, str(target)), sum(row["bytes"] for row in made), float(np.mean(likeness))
    )


def likeness_of(original: Path, copy: Path) -> float:
    """Returns the mean structural similarity of frames, in grey and at the copy's size."""
    with open_video(original) as one, open_video(copy) as other:
        indices, size = np.arange(0, other.num_frames, COMPARED_EVERY), (other.height, other.width)
        pairs = zip(one.read(indices, size), other.read(indices, size), strict=True)
        grey = [[frame.float().mean(2).numpy() for frame in pair] for pair in pairs]
    return float(np.mean([structural_similarity(a, b, data_range=255) for a, b in grey]))


def seconds_of_clips(tables: dict[str, VideoTable], rounds: int, index_file: Path) -> dict[tuple[str, bool], float]:
    """Returns the seconds of a clip for each table, without an index and with one."""
    index = VideoIndex(index_file)
    for table in tables.values():
        for i in range(len(table)):
            open_video(table.path(i), index=index).close()
    index.merge()
    openers = {False: Opener(), True: Opener(index=VideoIndex(index_file))}
    seconds = {(name, indexed): 0.0 for name in tables for indexed in openers}
    for epoch in tqdm(range(rounds + 1), desc="reading"):
        for name, table in tables.items():
            with starting_every(WAYS[name].start_every if name in WAYS else 1):
                for indexed, opener in openers.items():
                    clips = TrainClips(table, **TRAIN, opener=opener)
                    started = time.process_time()
                    for i in range(len(table)):
                        clips[epoch, i]
                    if epoch:  # the first round fills caches
                        seconds[name, indexed] += (time.process_time() - started) / rounds / len(table)
    return seconds


@contextmanager
def starting_every(frames: int) -> Iterator[None]:
    """Lets clips start at multiples of so many frames alone."""
    drawn: Callable[..., int] = sampling.sample_start
    sampling.sample_start = lambda *args: drawn(*args) // frames * frames
    try:
        yield
    finally:
        sampling.sample_start = drawn


def show(encoded: list[Measured], seconds: dict[tuple[str, bool], float], originals: VideoTable) -> None:
    size = sum(Path(originals.path(i)).stat().st_size for i in range(len(originals)))
    rates = [f"{1 / seconds['original', indexed]:.1f}" for indexed in (False, True)]
    title = f"{len(originals)} videos of {size / 1e6:.1f} MB, read at {rates[0]} clips/s, with an index {rates[1]}"
    columns = ("way", "MB", "SSIM", "clips/s", "over originals", "with an index", "over originals")
    table = Table(*columns, title=title)
    for made in encoded:
        speed = [f"{1 / seconds[made.way, indexed]:.1f}" for indexed in (False, True)]
        ratio = [f"{seconds['original', i] / seconds[made.way, i]:.2f}" for i in (False, True)]
        table.add_row(
            made.way, f"{made.size / 1e6:.2f}", f"{made.likeness:.3f}", speed[0], ratio[0], speed[1], ratio[1]
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
