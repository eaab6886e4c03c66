"""How fast clips come out of videos, against FFmpeg decoding the same frames and nothing more, in one run.

    python tools/benchmark_loader.py FOLDER [--json FILE] [--workers N] [--steps-per-second S]

FOLDER holds videos; they are also prepared (tools/prepare_videos.py) and read again. The figures:
  train_clip_over_reference   a training clip (32 of 64 frames, short side 256 to 320, crop 224) over decoding its
                              window without conversion, from the keyframe before it
  indexed_clip_over_reference the same with an index of the videos, as training has it from its second epoch on
  prepared_over_original      rate of training clips from the prepared videos over that from the originals
  two_clips_over_one,         rate of training clips that are taken two or four of a video that is opened once
  four_clips_over_one         (data.clips_per_video) over that of one of each; prepared_two_..., prepared_four_...:
                              the same from the prepared videos
  shard_over_files            rate of training clips from the prepared videos in a shard over that from their files,
                              with an index as training has, clip by clip in turn
  eval_video_over_reference   all views (10 clips x 3 crops of 256) over one full decode with conversion of the
                              wanted frames
  eval_video_peak_MB          memory that reading all views of the largest of the videos adds to a process
Everything runs in turn in one process with one thread, in rounds with other random clips each: ratios of all rounds'
CPU times, which other programs on the machine change little, and the lowest and highest of one round.
"""

import argparse
import csv
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from prepare_videos import encode_video
from rich.console import Console
from rich.table import Table

from nlvideo.data.clips import sampling
from nlvideo.data.clips.batch import SampleKey
from nlvideo.data.clips.train_clips import TrainClips
from nlvideo.data.clips.view_sampling import view_indices
from nlvideo.data.clips.views import MultiViews
from nlvideo.data.decoding.opening import Opener, open_video
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.index.video_index import VideoIndex
from nlvideo.data.lists.folder_tree import videos_below
from nlvideo.data.lists.path_list import read_table
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.data.shards.shard_writing import write_shard
from nlvideo.runtime.cores import usable_cores

TRAIN: dict[str, Any] = {
    "num_frames": 32,
    "frame_stride": 2,
    "scale_range": (256, 320),
    "crop_size": 224,
    "flip": True,
    "seed": 0,
}
TEST: dict[str, Any] = {
    "num_frames": 32,
    "frame_stride": 2,
    "num_clips": 10,
    "num_crops": 3,
    "clip_sampling": "uniform",
    "short_side": 256,
    "crop_size": 256,
}


SEVERAL = {"two": 2, "four": 4}  # clips of a video that are read together
RATIOS = {  # figure: (factor, case, case whose seconds those of the first are divided by)
    "train_clip_over_reference": (1, "training clip", "reference, window"),
    "indexed_clip_over_reference": (1, "training clip with index", "reference, window"),
    "prepared_over_original": (1, "training clip", "prepared training clip"),
    **{f"{how}_clips_over_one": (k, "training clip", f"{how} clips of a video") for how, k in SEVERAL.items()},
    **{
        f"prepared_{how}_clips_over_one": (k, "prepared training clip", f"prepared, {how} clips of a video")
        for how, k in SEVERAL.items()
    },
    "eval_video_over_reference": (1, "all views", "reference, whole video"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=9, help="how often each video is read (default 9)")
    parser.add_argument("--steps-per-second", type=float, help="measured rate of training, to size the workers for")
    parser.add_argument("--batch-size", type=int, default=64, help="clips of a step (default 64)")
    arguments = parser.parse_args()
    videos = videos_of(arguments.folder)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        originals = table_of(arguments.folder, videos, scratch)
        # first of all: a process begins with the peak of the one that started it
        spawned = multiprocessing.get_context("spawn").Pool(1, partial(torch.set_num_threads, 1), maxtasksperchild=1)
        with spawned as pool:
            peaks = pool.map(partial(peak_of_views, originals), range(len(originals)), chunksize=1)
        prepared_folder = Path(scratch, "prepared")
        for name in videos:
            encode_video(name, src=arguments.folder, dst=prepared_folder, short_side=256)
        made = [str(Path(name).with_suffix(".mp4")) for name in videos]
        write_shard(Path(scratch, "shard.tar"), [(name, prepared_folder / name) for name in made])
        prepared, packed = (table_of(folder, made, scratch) for folder in (prepared_folder, Path(scratch, "shard.tar")))
        index = known(Path(scratch, "index"), originals, prepared, packed)
        figures = measure(originals, prepared, arguments.rounds, index)
        figures["shard_over_files"] = compare_shard(prepared, packed, arguments.rounds, index)
        figures["clips_per_second"] = 1 / figures["seconds"]["training clip"]
        figures["eval_video_peak_MB"] = max(peaks)
        figures["workers"] = arguments.workers
        figures["clips_per_second_of_workers"] = rate_of_workers(originals, arguments.workers, arguments.rounds)
    show(figures, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def videos_of(folder: Path) -> list[str]:
    """Returns the names of the videos below a folder, and ends the program if there are none."""
    videos = sorted(str(path.relative_to(folder)) for path in videos_below(folder))
    if not videos:
        sys.exit(f"error: {folder} holds no videos.")
    return videos


def table_of(folder: Path, names: list[str], scratch: str) -> VideoTable:
    file = Path(scratch, "list.csv")
    with open(file, "w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([name, 0] for name in names)
    return read_table(str(folder), str(file), None)


def known(file: Path, *tables: VideoTable) -> VideoIndex:
    """Returns an index that knows the videos of these tables, as a run that begins finds it."""
    index = VideoIndex(file)
    for table in tables:
        for i in range(len(table)):
            open_video(table.path(i), index=index).close()
    index.merge()
    return VideoIndex(file)


def measure(originals: VideoTable, prepared: VideoTable, rounds: int, index: VideoIndex) -> dict:
    """Returns the ratios of the CPU times of all rounds, their spread over the rounds, and the medians of seconds."""
    opener = Opener()
    clips = TrainClips(originals, **TRAIN, opener=opener)
    indexed_clips = TrainClips(originals, **TRAIN, opener=Opener(index=index))
    prepared_clips = TrainClips(prepared, **TRAIN, opener=opener)
    views = MultiViews(originals, **TEST, opener=opener)
    num = len(originals)
    wanted = [frames_of_views(originals.path(i)) for i in range(num)]
    cases: dict[str, Callable[[int, int], object]] = {
        "reference, window": lambda epoch, i: decode_window(originals.path(i), clips.draw(epoch, i).start),
        "training clip": lambda epoch, i: clips[epoch, i],
        "training clip with index": lambda epoch, i: indexed_clips[epoch, i],
        "prepared training clip": lambda epoch, i: prepared_clips[epoch, i],
        **{
            f"{name}{how} clips of a video": partial(several, samples, count)
            for name, samples in (("", clips), ("prepared, ", prepared_clips))
            for how, count in SEVERAL.items()
        },
        "opening": lambda epoch, i: PyavVideo(originals.path(i)).close(),
        "decoding": lambda epoch, i: decode_wanted(originals.path(i), clips.draw(epoch, i).start),
        "reference, whole video": lambda epoch, i: decode_and_convert(originals.path(i), wanted[i]),
        "all views": lambda epoch, i: views[i],
    }
    drawing = {name: name in ("reference, window", "decoding") for name in cases}  # draws a start, which opens the file
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for epoch in range(rounds + 1):
        for name, case in cases.items():
            total = 0.0
            for i in range(num):
                start = time.process_time()
                case(epoch, i)
                total += time.process_time() - start
                if drawing[name]:
                    start = time.process_time()
                    clips.draw(epoch, i)
                    total -= time.process_time() - start
            if epoch:  # the first round fills caches
                seconds[name].append(total / num)
    ratios = {
        key: [factor * a / b for a, b in zip(seconds[x], seconds[y], strict=True)]
        for key, (factor, x, y) in RATIOS.items()
    }
    return {
        **{key: factor * sum(seconds[x]) / sum(seconds[y]) for key, (factor, x, y) in RATIOS.items()},
        "spread": {key: [min(values), max(values)] for key, values in ratios.items()},
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "videos": num,
        "rounds": rounds,
    }


def several(samples: TrainClips, count: int, epoch: int, index: int) -> None:
    """Reads so many clips of a video together."""
    samples.__getitems__([SampleKey(epoch, index, clip=clip) for clip in range(count)])


def compare_shard(files: VideoTable, members: VideoTable, rounds: int, index: VideoIndex) -> float:
    """Returns the rate of clips from members of a shard over that from files, in CPU time."""
    both = [TrainClips(table, **TRAIN, opener=Opener(index=index)) for table in (files, members)]
    seconds = np.zeros(2)  # files, members
    for epoch in range(rounds + 1):
        for i in range(len(files)):
            for k in (0, 1) if (epoch + i) % 2 else (1, 0):
                start = time.process_time()
                both[k][epoch, i]
                if epoch:  # the first round fills caches
                    seconds[k] += time.process_time() - start
    return seconds[0] / seconds[1]


def peak_of_views(table: VideoTable, index: int) -> float:
    """Returns the megabytes that all views of one video add to a process that has read a single frame of it."""
    with PyavVideo(table.path(index)) as video:
        video.read([0], (video.height, video.width))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in MultiViews(table, **TEST)[index].chunks(2):
        pass
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3


def decode_window(path: str, start: int) -> int:
    """Decodes a clip's window as FFmpeg gives it, from the keyframe before it to its last wanted frame."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        last = start + (TRAIN["num_frames"] - 1) * TRAIN["frame_stride"]
        origin = stream.start_time or 0
        ticks = [origin + round(frame / stream.average_rate / stream.time_base) for frame in (start, last)]
        container.seek(ticks[0], stream=stream)
        count = 0
        for frame in container.decode(stream):
            count += 1
            if frame.pts >= ticks[1]:
                break
        return count


def decode_wanted(path: str, start: int) -> None:
    """Decodes a clip's frames as PyavVideo does, without conversion."""
    with PyavVideo(path) as video:
        wanted = sampling.clip_indices(start, video.num_frames, TRAIN["num_frames"], TRAIN["frame_stride"])
        for _ in video.frames(np.unique(wanted)):
            pass


def frames_of_views(path: str) -> set[int]:
    """Returns the frames that the test views want."""
    with PyavVideo(path) as video:
        views = TEST["clip_sampling"], TEST["num_clips"], video.num_frames, TEST["num_frames"], TEST["frame_stride"]
        return set(np.unique(view_indices(*views)).tolist())


def decode_and_convert(path: str, wanted: set[int]) -> None:
    """Decodes a whole video and converts some of its frames, at their own size."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for i, frame in enumerate(container.decode(stream)):
            if i in wanted:
                frame.to_ndarray(format="rgb24", threads=1)


def rate_of_workers(table: VideoTable, workers: int, rounds: int) -> float:
    """Returns training clips a second from so many processes, each with one thread."""
    keys = [(epoch, i) for epoch in range(rounds) for i in range(len(table))] * 2
    with multiprocessing.get_context("spawn").Pool(workers, partial(torch.set_num_threads, 1)) as pool:
        read = partial(_read, table)
        pool.map(read, keys[:workers], chunksize=1)  # starts them
        start = time.perf_counter()
        for _ in pool.imap_unordered(read, keys, chunksize=1):
            pass
        return len(keys) / (time.perf_counter() - start)


def _read(table: VideoTable, key: tuple[int, int]) -> None:
    TrainClips(table, **TRAIN)[key]


def show(figures: dict, arguments: argparse.Namespace) -> None:
    """Prints the ratios, each stage's share, and how many workers a step rate needs."""
    table = Table("figure", "all rounds", "one round", title=f"{figures['videos']} videos of {arguments.folder}")
    for key, (low, high) in figures["spread"].items():
        table.add_row(key, f"{figures[key]:.2f}", f"{low:.2f} to {high:.2f}")
    Console().print(table)
    for key, digits in (("shard_over_files", 3), ("eval_video_peak_MB", 0)):
        print(f"{key} {figures[key]:.{digits}f}")
    seconds = figures["seconds"]
    clip, opening, decoding = (seconds[name] for name in ("training clip", "opening", "decoding"))
    stages = {"opening and index": opening, "decoding": decoding - opening, "converting and resizing": clip - decoding}
    table = Table("stage of a training clip", "ms", "share")
    for name, value in stages.items():
        table.add_row(name, f"{1e3 * value:.1f}", f"{100 * value / clip:.0f} %")
    Console().print(table)
    print("  ".join(f"{name} {1e3 * value:.1f} ms" for name, value in seconds.items()))
    one, many = figures["clips_per_second"], figures["clips_per_second_of_workers"]
    print(f"one process {one:.1f} clips/s, {arguments.workers} workers {many:.1f} clips/s")
    if arguments.steps_per_second:
        needed = arguments.steps_per_second * arguments.batch_size
        each = many / arguments.workers
        print(
            f"{arguments.steps_per_second:g} steps/s of {arguments.batch_size} clips need {needed / each:.1f} workers"
        )
    else:
        print("--steps-per-second S says how many workers training at that rate needs")


if __name__ == "__main__":
    main()
