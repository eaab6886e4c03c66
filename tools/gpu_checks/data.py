"""Part G: how fast videos become views on the GPU, and training clips from loading workers."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from prepare_videos import encode_video
from torch import Tensor

from gpu_checks.findings import Findings
from gpu_checks.step_measuring import SMALL, make_learner, one_step, pinned_batch, step_config, synchronize
from nlvideo.build.data import num_workers, train_batches
from nlvideo.build.model import build_model
from nlvideo.config.schema import DataConfig
from nlvideo.data.clips.batch import Batch, Colours
from nlvideo.data.clips.loading import Share
from nlvideo.data.clips.views import MultiViews, VideoViews
from nlvideo.data.lists.path_list import read_table
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.evaluation.scoring import VIEWS_PER_STEP, Scorer
from nlvideo.runtime.cores import usable_cores
from nlvideo.runtime.files import write_text
from nlvideo.runtime.video_writer import VideoWriter
from nlvideo.train import train_step
from nlvideo.training.learner import Learner

WORKERS, LEAST_AHEAD, SCORE_LIMIT = (4, 8, 15), 1.5, 1e-3
LIST = "list.csv"
ENCODING = {"g": "250", "crf": "23", "preset": "veryfast"}  # a keyframe every ten seconds, as the web's videos have


class Size(NamedTuple):
    """What is read and computed."""

    videos: int
    frames: int
    height: int
    clip_frames: int
    crop: int
    prepared: int  # short side of the prepared videos
    rounds: int  # batches that each worker of a loader reads
    batch: int
    network: tuple[str, ...]


ON_GPU = Size(16, 300, 360, 32, 256, 256, 6, 8, ("experiment=i3d_r50_nl5",))
ON_CPU = Size(2, 60, 96, 8, 64, 64, 6, 2, (*SMALL, "model.width=8", "block=nl1"))


def run(found: Findings, folder: Path) -> None:
    size = ON_GPU if found.cuda else ON_CPU
    originals, prepared = write_videos(folder, size)
    with found.case("30 views"):
        check_views(found, size, originals)
    for name, table in (("originals", originals), ("prepared", prepared)):
        for workers in WORKERS if found.cuda else (1, 2):
            check = f"{name}, {workers} workers"
            if workers > usable_cores():
                found.skip(check, f"{usable_cores()} cores")
                continue
            with found.case(check):
                rate = clips_per_second(size, table, workers)
                found.show(check, f"{rate:.1f} clips/s, {rate / min(workers, usable_cores()):.1f} for each core")
    with found.case("training from prepared videos"):
        check_waiting(found, size, prepared)
    if not found.cuda:
        found.skip("views, and training fed by 4, 8 and 15 workers", "there is no GPU; these are small videos on a CPU")


def write_videos(folder: Path, size: Size) -> tuple[VideoTable, VideoTable]:
    """Returns videos like those of the web, and the same as tools/prepare_videos.py makes them."""
    names = [f"{i}.mp4" for i in range(size.videos)]
    tables = []
    with multiprocessing.get_context("spawn").Pool(min(usable_cores(), size.videos)) as pool:
        for name in ("originals", "prepared"):
            target = folder / name
            target.mkdir()
            if name == "originals":
                pool.map(partial(write_video, size=size), [target / name for name in names], chunksize=1)
            else:
                source, side = folder / "originals", size.prepared
                encode = partial(encode_video, src=source, dst=target, short_side=side)
                pool.map(encode, names, chunksize=1)
            write_text(target / LIST, "".join(f"{name} 0\n" for name in names))
            tables.append(read_table(str(target), LIST, None))
    return tables[0], tables[1]


def write_video(path: Path, size: Size) -> None:
    """Writes a pattern that moves, with the noise of a camera."""
    random = np.random.default_rng(int(path.stem))
    width = size.height * 4 // 3
    pattern = random.integers(256, size=(size.height // 8 + 8, width // 8 + 8, 3), dtype=np.uint8)
    pattern = pattern.repeat(8, 0).repeat(8, 1)
    with VideoWriter(path, 30, ENCODING) as writer:
        for i in range(size.frames):
            at = i % 64
            window = pattern[at : at + size.height, at : at + width]
            writer.write(np.ascontiguousarray(window ^ random.integers(8, size=window.shape, dtype=np.uint8)))


def check_views(found: Findings, size: Size, table: VideoTable) -> None:
    """The program's own scores of a video's 30 views against views that are gathered on the CPU and sent one by one."""
    scorer, views = make_scorer(size, found.device), views_of_videos(size, table)
    own = seconds_of(lambda: [scorer.view_scores(scorer.upload(video)) for video in views], found.device) / len(views)
    gathered = seconds_of(lambda: [scores_by_hand(scorer, video) for video in views], found.device) / len(views)
    found.show("30 views: the program's own", 1 / own, "videos/s")
    found.show("30 views: gathered on the CPU", 1 / gathered, "videos/s")
    found.speed("30 views: frames uploaded once, ahead of gathering", gathered / own, least=LEAST_AHEAD, unit="times")
    difference = (scorer.view_scores(scorer.upload(views[0])) - scores_by_hand(scorer, views[0])).abs().max().item()
    found.at_most("30 views: difference of the scores", difference, SCORE_LIMIT)


def make_scorer(size: Size, device: torch.device) -> Scorer:
    torch.manual_seed(0)
    config = step_config(1, *size.network)
    network = build_model(config.model, config.block, config.data, 400)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    colours = Colours(config.data.mean, config.data.std)
    views = VIEWS_PER_STEP[device.type]
    return Scorer(network, device, dtype, colours=colours, multi_label=False, views_per_step=views)


def views_of_videos(size: Size, table: VideoTable) -> list[VideoViews]:
    """Returns the views of the first four videos, decoded: what follows is not about decoding."""
    dataset = MultiViews(
        table,
        num_frames=size.clip_frames,
        frame_stride=2,
        num_clips=10,
        num_crops=3,
        clip_sampling="uniform",
        short_side=size.crop,
        crop_size=size.crop,
    )
    return [dataset[i] for i in range(min(4, len(table)))]


def scores_by_hand(scorer: Scorer, views: VideoViews) -> Tensor:
    """Returns (num_clips, num_crops, K), from clips that are cut on the CPU and sent in parts."""
    parts = [scorer.clip_scores(clips) for clips in views.chunks(scorer.views_per_step)]
    return torch.cat(parts).unflatten(0, (len(views.frame_index), len(views.crops)))


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Returns the time of the second call; the first one warms up."""
    function()
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def loader(size: Size, table: VideoTable, workers: int, steps: int) -> Iterator[list[Batch]]:
    """Yields the program's own batches of training clips."""
    scale = [size.prepared, size.prepared * 5 // 4]
    side = size.crop * 7 // 8
    data = DataConfig(
        root=table.root, num_frames=size.clip_frames, scale_range=scale, crop_size=side, num_workers=workers
    )
    skipped = torch.zeros(len(table), dtype=torch.bool).share_memory_()
    return train_batches(data, table, Share(size.batch), skipped, seed=0, first_step=0, last_step=steps)


def clips_per_second(size: Size, table: VideoTable, workers: int) -> float:
    """Returns the rate of loading alone, once all workers have started."""
    steps = size.rounds * workers
    warm = steps // 3  # the first two of each worker are loaded together, before the first one is asked for
    read = loader(size, table, workers, steps)
    for _ in range(warm):
        next(read)
    start = time.perf_counter()
    rest = sum(1 for _ in read)
    return rest * size.batch / (time.perf_counter() - start)


def check_waiting(found: Findings, size: Size, table: VideoTable) -> None:
    """Trains from the loader with the workers that data.num_workers=null gives, and notes how long it waits."""
    workers, steps = num_workers(DataConfig(root="")), 30 if found.cuda else 6
    config = step_config(size.batch, *size.network, f"data.num_frames={size.clip_frames}")
    dtype = torch.bfloat16 if found.cuda else torch.float32
    learner = make_learner(config, found.device, dtype)
    one_step(learner, pinned_batch(learner))()
    synchronize(found.device)
    waited, trained, start = waiting_time(learner, loader(size, table, workers, steps))
    seconds = time.perf_counter() - start
    check = f"training from prepared videos, {workers} workers"
    found.show(f"{check}: speed", trained * size.batch / seconds, "clips/s")
    found.show(f"{check}: time spent waiting for data", 100 * waited / seconds, "%")


def waiting_time(learner: Learner, steps: Iterator[Sequence[Batch]]) -> tuple[float, int, float]:
    """Returns the seconds of waiting for batches after the first one, the steps after it, and when these began."""
    train_step(learner, list(next(steps)))
    learner.timer.take()
    begun, count, late = time.perf_counter(), 0, None
    for batches in learner.timer.timed(steps):
        launched = train_step(learner, list(batches))
        if late:
            late.read()
        late, count = launched, count + 1
    return learner.timer.take()["data_wait"], count, begun
