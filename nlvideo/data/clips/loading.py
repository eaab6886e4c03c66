"""Worker processes that decode ahead of the network, and which clips each rank reads for each step."""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from nlvideo.data.clips.batch import Batch, SampleKey, collate
from nlvideo.data.clips.epoch_order import EpochOrder
from nlvideo.data.clips.train_clips import TrainClips
from nlvideo.data.decoding.opening import LostWorker
from nlvideo.data.decoding.video import SlowVideo
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.data.stores.store import StoreFailed
from nlvideo.runtime.cores import ranks_here
from nlvideo.runtime.errors import RunFailed
from nlvideo.runtime.shared_memory import SharedMemoryFull, share
from nlvideo.runtime.signals import leave_to_parent
from nlvideo.runtime.torch_private import loader_workers

TRAINING_ADVICE = (
    "Take the file out of the list, allow more time with data.time_limit_seconds, or train without it, and without "
    "reproducibility, with data.skip_slow=true."
)
MEMORY_ADVICE = "Use fewer workers, data.num_workers, or give it more (docker run --shm-size)."
DEATH_SECONDS = 5.0  # until the system says that a process has ended whose connection is broken
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Loading(NamedTuple):
    """How data are loaded; never what."""

    num_workers: int
    start_method: str | None = None  # of the workers: fork, spawn or forkserver; None is the platform's

    def loader(
        self,
        dataset: Dataset,
        collate_fn: Callable[[Any], Any],
        ahead: Iterable[Sequence[str]] = (),
        **options: Any,
    ) -> DataLoader:
        """Returns a loader of tuples of tensors and other values.

        Args:
            collate_fn: makes such a tuple of what the dataset gives: one sample, or those of a batch.
            ahead: the paths of the videos of each batch, from the first on, where they are to be fetched from stores.
        """
        return DataLoader(
            dataset,
            collate_fn=partial(_collate_into_shared_memory, collate_fn),
            num_workers=self.num_workers,
            multiprocessing_context=self.start_method if self.num_workers else None,
            worker_init_fn=partial(_prepare_worker, ahead),
            **{"pin_memory": torch.cuda.is_available(), **options},
        )


def _collate_into_shared_memory(collate_fn: Callable[[Any], Any], samples: Any) -> Any:
    """Returns what collate_fn makes of the samples, in a worker with its tensors in shared memory.

    A thread of the worker would move them there otherwise. Where it finds no room, it prints an error and drops the
    batch, for which the loader then waits forever; here, the error reaches the loader.
    """
    batch = collate_fn(samples)
    if get_worker_info() is not None:
        for value in batch:
            if isinstance(value, Tensor):
                share(value)
    return batch


def _prepare_worker(ahead: Iterable[Sequence[str]], worker: int) -> None:
    """Leaves stopping to the parent: a terminal or a launcher signals the workers too. With it, they end."""
    leave_to_parent()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    info = get_worker_info()
    # The loader hands its batches to the workers in turn.
    _fetch_ahead(info.dataset, islice(ahead, worker, None, info.num_workers), info.num_workers)


def _fetch_ahead(dataset: Any, batches: Iterator[Sequence[str]], workers: int) -> None:
    """Lets this process fetch from stores what it will read, if there is anything."""
    first = next(batches, None)
    if first is not None:
        paths = chain.from_iterable(chain([first], batches))
        dataset.opener.fetch_ahead(paths, max(1, workers) * ranks_here())


class PathsAhead:
    """The paths of the videos of batches, for who fetches them; none where no video is in a store.

    Args:
        batches: of keys of samples, or indices of videos.
    """

    def __init__(self, table: VideoTable, batches: Iterable[Sequence[Any]]):
        self._table, self._batches = table, batches if table.has_addresses() else ()

    def __iter__(self) -> Iterator[list[str]]:
        for batch in self._batches:
            yield [self._table.path(key.video if isinstance(key, SampleKey) else key) for key in batch]


@contextmanager
def reading(loader: DataLoader) -> Iterator[Iterator]:
    """Yields the loader's iterator, and kills its workers if the block does not end by itself.

    An exit would wait for each worker that hangs, for ever, and one asked to end inside a long video takes its time.
    """
    batches = iter(loader)
    if not loader.num_workers:
        _fetch_ahead(loader.dataset, iter(loader.worker_init_fn.args[0]), 0)
    try:
        try:
            yield batches
        except (EOFError, ConnectionError):
            if pids := _dead(loader_workers(batches)):
                raise RuntimeError(f"DataLoader worker (pid(s) {', '.join(pids)}) exited unexpectedly") from None
            raise
    except BaseException:  # also an iteration that is closed
        # the loader's handler takes a worker that is killed for a failure; on Windows there is none
        handled = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if handled else None
        for worker in loader_workers(batches):
            worker.kill()
            worker.join()
        if handled:
            signal.signal(signal.SIGCHLD, before)
        raise
    finally:
        if not loader.num_workers:
            loader.dataset.opener.stop_fetching()


def _dead(workers: Sequence[BaseProcess]) -> list[str]:
    """Returns the numbers of the processes that have ended.

    A tensor is fetched from its worker by a connection of its own, which breaks if the worker dies just then; the
    loader raises another error where it finds a worker dead.
    """
    ended = wait([worker.sentinel for worker in workers], timeout=DEATH_SECONDS)
    return [str(worker.pid) for worker in workers if worker.sentinel in ended]


@dataclass(frozen=True)
class Share:
    """Which part of a step's clips a rank reads, and in how many micro-batches."""

    batch_size: int  # clips of a step, over all ranks
    rank: int = 0
    size: int = 1
    num_micro_batches: int = 1

    @property
    def clips_per_micro_batch(self) -> int:
        return self.batch_size // self.size // self.num_micro_batches


class StepSampler:
    """Yields what this rank reads for each micro-batch of each step, from `first_step` on.

    The clips of all steps are one endless stream, `order`. Step s takes the next batch_size of it, each rank an equal
    part of those and each micro-batch an equal part of that. So the clips of a step do not depend on the number of
    ranks or micro-batches, and any step can be the first.
    """

    def __init__(self, order: EpochOrder, share: Share, *, first_step: int, last_step: int):
        self.order, self.share = order, share
        self.first_step, self.last_step = first_step, last_step

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.share.num_micro_batches

    def __iter__(self) -> Iterator[list[SampleKey]]:
        clips, parts = self.share.clips_per_micro_batch, self.share.num_micro_batches
        for step in range(self.first_step, self.last_step):
            for part in range(self.share.rank * parts, (self.share.rank + 1) * parts):
                first = step * self.share.batch_size + part * clips
                yield self.order.keys(first, first + clips)


def batches_of_steps(
    dataset: TrainClips, order: EpochOrder, share: Share, loading: Loading, *, first_step: int, last_step: int
) -> Generator[list[Batch], None, None]:
    """Yields the micro-batches of one step after the other, as StepSampler asks for them.

    A worker that hangs at a video takes the others with it. With skip_slow that video is marked, and new workers
    continue at the step that was waited for.
    """
    step = first_step
    while step < last_step:
        sampler = StepSampler(order, share, first_step=step, last_step=last_step)
        loader = loading.loader(dataset, collate, PathsAhead(dataset.table, sampler), batch_sampler=sampler)
        try:
            batches: list[Batch] = []
            with reading(loader) as read:
                for batch in read:
                    batches.append(batch)
                    if len(batches) == share.num_micro_batches:
                        yield batches
                        step, batches = step + 1, []
        except RuntimeError as error:
            lost = dataset.opener.watch.lost(str(error))
            if lost is None or not lost.stack or not dataset.skip_slow:
                raise explained(error, lost, TRAINING_ADVICE) from None
            dataset.skipped |= torch.tensor([dataset.table.path(i) == lost.path for i in range(len(dataset))])


def explained(error: RuntimeError, lost: LostWorker | None, advice: str) -> RuntimeError:
    """Returns a loader's error as RunFailed if it is about a video, a store or shared memory, otherwise unchanged."""
    if isinstance(error, StoreFailed):
        *_, reason = str(error).strip().split("StoreFailed: ")  # after the worker's stack
        return StoreFailed(reason)
    if isinstance(error, SharedMemoryFull):
        *_, reason = str(error).strip().split("SharedMemoryFull: ")  # after the worker's stack
        return RunFailed(f"A loading worker found {reason}. {MEMORY_ADVICE}")
    if lost is not None and lost.path:
        what = "hangs in" if lost.stack else "died in"
        return RunFailed(f"Loading worker {lost.worker} {what} {lost.path}; {advice}\n{lost.stack or error}")
    # An error that comes from a worker is a RuntimeError whose text holds the worker's number and stack.
    if isinstance(error, SlowVideo) or "SlowVideo" in str(error):
        return RunFailed(f"{error}\n{advice}")
    return error
