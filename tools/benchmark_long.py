"""What a video of an hour costs against its first ten seconds, with and without an index; and what memory it takes.

    python tools/benchmark_long.py [--minutes 60] [--rounds 20] [--clips-only | --memory-only]

The tool writes its videos: 340x256, 25 frames a second, H.264 of about 0.4 Mbit/s with a keyframe every 250 frames, as
MP4 and MKV.
Clips: 32 of 64 frames, crop 224. CPU time of one, relative to that of the short MP4 without an index, alternating in
one process with one thread; and the bytes that a clip has the system read, those of the index included (rchar of
/proc/self/io, which counts what is in the page cache too).
Memory: the most that the process and its workers have at a time above what they have with the network loaded (PSS of
/proc/PID/smaps_rollup, every 10 ms). The network takes each clip and gives zeros at once, so that an hour takes
minutes and no activations count. Each case in a process of its own, with one thread.
Linux only.
"""

import argparse
import contextlib
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from benchmark_loader import TRAIN, known, table_of
from rich.console import Console
from rich.table import Table

import nlvideo
from nlvideo.data.clips.train_clips import TrainClips
from nlvideo.data.decoding.opening import Opener
from nlvideo.data.index.video_index import VideoIndex
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.evaluation.scoring import Scorer
from nlvideo.prediction.command import answer_for
from nlvideo.prediction.predictor import Predictor
from nlvideo.runtime.video_writer import VideoWriter

HEIGHT, WIDTH, FPS = 256, 340, 25
ENCODING = {"preset": "ultrafast", "crf": "28", "g": "250", "threads": "1"}
SHORT_SECONDS = 10
NETWORK = ["experiment=quickstart", "data=list", "model.width=4", "precision=float32", "optim.warmup_steps=0"]
NUM_CLASSES = 2
VIEWS = "data.test={num_clips: 10, num_crops: 3, short_side: 256, crop_size: 256}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="of the long video (default 60)")
    parser.add_argument("--rounds", type=int, default=20, help="clips of each video (default 20)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--clips-only", action="store_true")
    only.add_argument("--memory-only", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_videos(folder, round(60 * arguments.minutes * FPS))
        if not arguments.memory_only:
            show_clips(folder, arguments.rounds)
        if not arguments.clips_only:
            show_memory(folder)


def write_videos(folder: Path, num_frames: int) -> None:
    """Writes long.mp4, short.mp4 and the same as MKV."""
    for name, count in (("long", num_frames), ("short", SHORT_SECONDS * FPS)):
        with VideoWriter(folder / f"{name}.mp4", FPS, ENCODING) as writer:
            for i in range(count):
                writer.write(picture(i))
        with av.open(str(folder / f"{name}.mp4")) as before, av.open(str(folder / f"{name}.mkv"), "w") as after:
            stream = after.add_stream_from_template(before.streams.video[0])
            for packet in (packet for packet in before.demux(video=0) if packet.size):
                packet.stream = stream
                after.mux(packet)


def picture(index: int) -> np.ndarray:
    """Returns a frame (H, W, 3) uint8: blocks of random colours that the camera passes, and a square that moves."""
    y, x = (round(HEIGHT * (1 + np.sin(index / 61)) / 2), round(WIDTH * (1 + np.sin(index / 90)) / 2))
    frame = SCENE[y : y + HEIGHT, x : x + WIDTH].copy()
    left = 3 * index % (WIDTH - 40)
    frame[100:140, left : left + 40] = 7 * index % 256
    return frame


def scene() -> np.ndarray:
    """Returns a picture (2 H, 2 W, 3) uint8 with detail of every size."""
    rng, found = np.random.default_rng(0), np.zeros((2 * HEIGHT, 2 * WIDTH, 3))
    for size in (4, 8, 16, 32, 64):
        blocks = rng.normal(size=(2 * HEIGHT // size + 1, 2 * WIDTH // size + 1, 3)) * size**0.5
        found += np.kron(blocks, np.ones((size, size, 1)))[: 2 * HEIGHT, : 2 * WIDTH]
    return (255 * (found - found.min()) / np.ptp(found)).astype(np.uint8)


SCENE = scene()


def show_clips(folder: Path, rounds: int) -> None:
    """Prints CPU time and bytes of a clip, by video."""
    names = [f"{length}.{suffix}" for suffix in ("mp4", "mkv") for length in ("short", "long")]
    table = table_of(folder, names, str(folder))
    seconds, read = measure_clips(table, known(folder / "clips.index", table), rounds)
    shown = Table("video", "time, none", "time, index", "MB read, none", "MB read, index")
    for i, name in enumerate(names):
        times = [f"{value / seconds[0, 0]:.2f}" for value in seconds[i]]
        shown.add_row(name, *times, *(f"{value / 1e6:.2f}" for value in read[i]))
    Console().print(shown)


def measure_clips(table: VideoTable, index: VideoIndex, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the CPU seconds and the bytes read of a clip, both (videos, 2): without and with the index."""
    both = [TrainClips(table, **TRAIN, opener=Opener(index=facts)) for facts in (None, index)]
    seconds, read = np.zeros((len(table), 2)), np.zeros((len(table), 2))
    for epoch in range(rounds + 1):
        for i in range(len(table)):
            for k, clips in enumerate(both):
                before, start = bytes_read(), time.process_time()
                clips[epoch, i]
                if epoch:  # the first round opens the index
                    seconds[i, k] += (time.process_time() - start) / rounds
                    read[i, k] += (bytes_read() - before) / rounds
    return seconds, read


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def show_memory(folder: Path) -> None:
    """Prints the memory that each way of looking at the long and the short video takes."""
    checkpoint = trained(folder)
    shown = Table("what", "long video, MB", "short video, MB")
    cases: dict[str, Callable[[Predictor, Path], object]] = {
        "evaluation, 10 x 3 views": evaluated,
        "the same, 2 workers": partial(evaluated, num_workers=2),
        "prediction, 10 x 3 views": predicted,
        "sliding windows": partial(predicted, sliding=True),
        "sliding windows, timeline= and write=": partial(predicted, sliding=True, files=True),
    }
    for name, case in cases.items():
        for index in (False, True):
            peaks = [peak_of(case, checkpoint, folder / video, index) for video in ("long.mp4", "short.mp4")]
            shown.add_row(f"{name}{', index' if index else ''}", *(f"{peak:.0f}" for peak in peaks))
    Console().print(shown)


def trained(folder: Path) -> Path:
    """Returns the checkpoint of a small network, trained for one step."""
    for name in ("train", "val"):
        (folder / f"{name}.csv").write_text("short.mp4 0\nshort.mkv 1\n")
    steps = ["optim.max_steps=1", "optim.batch_size=1", "data.num_workers=0"]
    clips = ["data.num_frames=32", "data.frame_stride=2", "data.scale_range=[256,320]", "data.crop_size=224", VIEWS]
    with contextlib.redirect_stdout(sys.stderr):
        nlvideo.train([*NETWORK, *steps, *clips, f"data.root={folder}", f"output_dir={folder / 'run'}"])
    return folder / "run" / "checkpoint.pt"


def peak_of(case: Callable[[Predictor, Path], object], checkpoint: Path, video: Path, index: bool) -> float:
    """Returns the megabytes that a case adds to a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # whose process may have workers
        return pool.submit(measured, case, checkpoint, video, index).result()


def measured(case: Callable[[Predictor, Path], object], checkpoint: Path, video: Path, index: bool) -> float:
    torch.set_num_threads(1)
    setattr(Scorer, "clip_scores", lambda _, clips: torch.zeros(len(clips), NUM_CLASSES))  # noqa: B010
    settings = {"data.index": str(video.with_suffix(".index"))} if index else {}
    predictor = Predictor(checkpoint, "cpu", settings={**settings, "num_threads": 1})
    if index:
        with predictor.open(video):
            pass  # which the index learns
    before, most, done = proportional_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], proportional_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        case(predictor, video)
    finally:
        done.set()
        watcher.join()
    return (most[0] - before) / 1e6


def proportional_bytes() -> int:
    """Returns the memory of this process and its children, what they share counted once."""
    total = 0
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for process in (os.getpid(), *children):
        with contextlib.suppress(OSError):  # it has ended
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += next(1024 * int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def evaluated(predictor: Predictor, video: Path, num_workers: int = 0) -> None:
    """Evaluates the predictor's checkpoint on one video."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(None):
        Path(out, "val.csv").write_text(f"{video.name} 0\n")
        data = [f"data.root={video.parent}", f"data.val={out}/val.csv", f"data.num_workers={num_workers}"]
        index = predictor.config.data.index or "none"
        rest = [f"data.index={index}", f"output_dir={out}/scores", "report=false", "num_threads=1"]
        nlvideo.evaluate(predictor.config.checkpoint, [*data, *rest])


def predicted(predictor: Predictor, video: Path, sliding: bool = False, files: bool = False) -> None:
    """Predicts the classes of a video, as nlvideo-predict does."""
    config = predictor.config
    with tempfile.TemporaryDirectory() as out:
        config.sliding = sliding
        config.write, config.timeline = (f"{out}/a.mp4", f"{out}/a.png") if files else (None, None)
        answer_for(predictor, str(video), 1)


if __name__ == "__main__":
    main()
