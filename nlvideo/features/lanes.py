"""Several items at a time, each by a thread and with a worker of its own."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from queue import SimpleQueue
from threading import Event
from typing import TypeVar

LaneWorker = TypeVar("LaneWorker")
LaneItem = TypeVar("LaneItem")
LaneResult = TypeVar("LaneResult")


def in_lanes(
    function: Callable[[LaneWorker, LaneItem, Callable[[], bool]], LaneResult],
    workers: Sequence[LaneWorker],
    items: Sequence[LaneItem],
) -> Iterator[tuple[LaneItem, Callable[[], LaneResult]]]:
    """Yields each item as soon as it is done, with a call that returns what function(worker, item, ended) returned, or
    raises what it raised.

    A single worker works in this thread, in order. When the caller ends early, items that are not begun are left;
    `ended` tells the others, which are waited for.
    """
    if len(workers) == 1:
        for item in items:
            yield item, partial(function, workers[0], item, lambda: False)
        return
    idle, ended = SimpleQueue[LaneWorker](), Event()
    for worker in workers:
        idle.put(worker)

    def work(item: LaneItem) -> LaneResult:
        worker = idle.get()
        try:
            return function(worker, item, ended.is_set)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        begun = {pool.submit(work, item): item for item in items}
        try:
            for future in as_completed(begun):
                yield begun[future], future.result
        finally:
            ended.set()
            pool.shutdown(wait=False, cancel_futures=True)
