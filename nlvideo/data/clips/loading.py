"""Worker processes that decode ahead of the network, in the order of the steps, and what is said when one is lost."""

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from nlvideo.data.clips.datasets import Batch, MultiViews, TrainClips, VideoViews, collate, without_views
from nlvideo.data.clips.worker_watch import LostWorker
from nlvideo.data.decoding.video import SlowVideo
from nlvideo.runtime.errors import RunFailed
from nlvideo.runtime.signals import STOP_SIGNALS


class Loading(NamedTuple):
    """How data are loaded; never what."""

    num_workers: int
    start_method: str | None = None  # of the workers: fork, spawn or forkserver; None is the platform's

    def loader(self, dataset: Dataset, **options: Any) -> DataLoader:
        context = self.start_method if self.num_workers else None
        return DataLoader(
            dataset,
            num_workers=self.num_workers,
            multiprocessing_context=context,
            worker_init_fn=_outlast_signals,
            **{"pin_memory": torch.cuda.is_available(), **options},
        )


def _outlast_signals(_worker: int) -> None:
    """Leaves it to the parent when to stop: a terminal or a launcher signals the workers of a step too."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class Share:
    """Which part of a step's clips a process reads, and in how many passes of the network."""

    batch_size: int  # clips of a step, over all processes
    rank: int = 0
    size: int = 1
    passes: int = 1

    @property
    def clips_per_micro_batch(self) -> int:
        return self.batch_size // self.size // self.passes


class StepSampler:
    """Yields what this process reads for each pass of each step, as lists of (epoch, video), from `first_step` on.

    The clips of all steps are one endless stream: every video once in the order drawn for epoch 0, then for
    epoch 1, and so on. Step s takes the batch_size next ones of it, each process an equal part of those and each
    pass an equal part of that, so the data of a step do not depend on the number of processes or passes, and any
    step can be the first.
    """

    def __init__(self, num_videos: int, share: Share, *, seed: int, first_step: int, last_step: int):
        self.num_videos, self.share, self.seed = num_videos, share, seed
        self.first_step, self.last_step = first_step, last_step

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.share.passes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.share
        clips = share.batch_size // share.size // share.passes
        epoch, order = -1, None
        for step in range(self.first_step, self.last_step):
            for part in range(share.rank * share.passes, (share.rank + 1) * share.passes):
                first = step * share.batch_size + part * clips
                keys = []
                for position in range(first, first + clips):
                    if position // self.num_videos != epoch:
                        epoch = position // self.num_videos
                        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_videos)
                    keys.append((epoch, int(order[position % self.num_videos])))
                yield keys


def batches_of_steps(
    dataset: TrainClips, share: Share, loading: Loading, *, seed: int, first_step: int, last_step: int
) -> Iterator[list[Batch]]:
    """Yields what StepSampler asks for, the batches of a step's passes together.

    A worker that hangs at a video takes the others with it. With skip_slow that video is marked, and new workers go
    on from the step that was waited for.
    """
    step, num_videos = first_step, len(dataset)
    while step < last_step:
        sampler = StepSampler(num_videos, share, seed=seed, first_step=step, last_step=last_step)
        loader = loading.loader(dataset, batch_sampler=sampler, collate_fn=collate)
        try:
            passes = []
            for batch in loader:
                passes.append(batch)
                if len(passes) == share.passes:
                    yield passes
                    step, passes = step + 1, []
        except RuntimeError as error:
            lost = dataset.opener.watch.lost(str(error))
            if lost is None or not lost.stack or not dataset.skip_slow:
                raise _explained(error, lost) from None
            dataset.skipped |= torch.tensor([dataset.table.path(i) == lost.path for i in range(num_videos)])


def watched(dataset: Dataset, loading: Loading, **options: Any) -> Iterator[Any]:
    """Yields what a DataLoader gives; a lost worker is named with its video."""
    try:
        yield from loading.loader(dataset, **options)
    except RuntimeError as error:
        raise _explained(error, dataset.opener.watch.lost(str(error))) from None


def end_workers() -> None:
    """Ends the loading workers at once: asked to end, one that is inside a long video would take its time."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the loader would take it for a failure
    for worker in multiprocessing.active_children():
        worker.kill()


def each_video(dataset: MultiViews, videos: Sequence[int], loading: Loading) -> Iterator[VideoViews]:
    """Yields the views of these videos in their order; a lost worker is named with its video.

    With skip_slow a video at which a worker hangs or dies is a failure, and new workers go on with the others.
    """
    waiting, broken = list(videos), {}
    while waiting:
        if reason := broken.get(dataset.table.path(waiting[0])):
            yield without_views(waiting.pop(0), reason)
            continue
        part = list(takewhile(lambda video: dataset.table.path(video) not in broken, waiting))
        try:
            # All views of a video may be half a gigabyte, so each worker holds one ready, and none is copied again.
            ahead = {"prefetch_factor": 1} if loading.num_workers else {}
            for views in loading.loader(dataset, batch_size=None, sampler=part, pin_memory=False, **ahead):
                waiting.pop(0)
                yield views
        except RuntimeError as error:
            lost = dataset.opener.watch.lost(str(error))
            if lost is None or not lost.path or not dataset.skip_slow:
                raise _explained(error, lost, EVALUATION_ADVICE) from None
            broken[lost.path] = "decoding hangs" if lost.stack else "its worker died"


def _explained(error: RuntimeError, lost: LostWorker | None, advice: str | None = None) -> RuntimeError:
    """Returns the error as RunFailed if it is about a video, otherwise as it is."""
    advice = advice or ADVICE
    if lost is not None and lost.path:
        what = "hangs in" if lost.stack else "died in"
        return RunFailed(f"Loading worker {lost.worker} {what} {lost.path}; {advice}\n{lost.stack or error}")
    # What comes from a worker is a RuntimeError whose text holds the worker's number and stack.
    if isinstance(error, SlowVideo) or "SlowVideo" in str(error):
        return RunFailed(f"{error}\n{advice}")
    return error


ADVICE = (
    "Take the file out of the list, give it more time with data.time_limit_seconds, or train on without it and "
    "without reproducibility with data.skip_slow=true."
)
EVALUATION_ADVICE = (
    "What is scored is kept. Call it again with more time, data.time_limit_seconds, or with data.skip_slow=true, which "
    "counts the video as wrong."
)
