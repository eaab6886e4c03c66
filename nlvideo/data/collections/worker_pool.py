"""Runs a function on each of many videos, over processes and machines."""

import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from nlvideo.runtime.errors import UserError

PRELOADED = ["nlvideo.data.decoding.pyav_video", "nlvideo.data.lists.path_list", "rich.table"]


class Outcome(NamedTuple):
    item: Any
    result: Any  # what the function returned; None if it failed
    failure: str | None  # why it did


def each(
    function: Callable[[Any], Any], items: Sequence[Any], num_workers: int, time_limit: float | None = None
) -> Iterator[Outcome]:
    """Yields an Outcome for every item as it finishes; one item's failure does not affect the others.

    An exception, a process that dies inside a C library and one that takes longer than `time_limit` seconds are
    failures; the process is replaced.

    Args:
        function: picklable, as are the items and its results.
    """
    context = _context()
    waiting = iter(items)
    workers = [_Worker(context, function) for _ in range(min(num_workers, len(items)))]
    try:
        for worker in workers:
            worker.give(next(waiting))
        while busy := [worker for worker in workers if worker.busy]:
            ready = wait([worker.pipe for worker in busy], timeout=1)
            for worker in busy:
                outcome = worker.take() if worker.pipe in ready else worker.give_up(time_limit)
                if outcome is None:
                    continue
                yield outcome
                worker.busy = False
                for item in waiting:
                    worker.give(item)
                    break
    finally:
        for worker in workers:
            worker.process.terminate()


def _context() -> multiprocessing.context.BaseContext:
    """Returns how workers are started: not as forks of this process, since threads of FFmpeg and torch do not survive.

    On Linux they are forks of a server, which has imported what they need once. It is safe: imports start no threads
    but those of OpenBLAS, which ends its own before a fork; videos and tensors are touched in the workers only. System
    libraries of macOS do not survive a fork, even without threads.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)  # no effect on a server that runs already, which works all the same
    return context


class _Worker:
    def __init__(self, context, function: Callable):
        self.context, self.function = context, function
        self.busy, self.item = False, None
        self.since: float | None = None  # when it reported that it began the item
        self._start()

    def _start(self) -> None:
        self.pipe, other = self.context.Pipe()
        self.process = self.context.Process(target=_work, args=(self.function, other), daemon=True)
        self.process.start()
        other.close()  # so that this end notices when the process dies

    def give(self, item: Any) -> None:
        self.busy, self.item, self.since = True, item, None
        self.pipe.send(item)

    def take(self) -> Outcome | None:
        """Returns what the process sent about its item, None if it has just begun."""
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            self.replace()
            return Outcome(
                self.item, None, f"its process died with {f'signal {-code}' if code < 0 else f'code {code}'}"
            )
        if message is None:
            self.since = time.monotonic()
            return None
        return Outcome(self.item, *message)

    def give_up(self, time_limit: float | None) -> Outcome | None:
        """Returns a failure and replaces the process if its item has taken too long, else None."""
        if time_limit is None or self.since is None or time.monotonic() - self.since <= time_limit:
            return None
        self.replace()
        return Outcome(self.item, None, f"took longer than {time_limit:g} seconds")

    def replace(self) -> None:
        self.process.kill()
        self.pipe.close()
        self._start()


def _work(function: Callable, pipe: Connection) -> None:
    while True:
        try:
            item = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        pipe.send(None)  # the clock starts once the process has loaded what it needs
        answer: tuple[Any, str | None]
        try:
            answer = function(item), None
        except Exception as error:
            answer = None, getattr(error, "reason", None) or f"{type(error).__name__}: {error}"
        pipe.send(answer)


def part_of_job(given: str) -> str:
    """Returns a part of a job that a user gave, "01/8", in one form, "1/8".

    Raises:
        UserError: it is not i/n with 1 <= i <= n.
    """
    found = re.fullmatch("0*([1-9][0-9]{0,5})/0*([1-9][0-9]{0,5})", given)
    if found is None or int(found[1]) > int(found[2]):
        raise UserError(f"--shard {given}: give i/n with 1 <= i <= n, such as 2/8.")
    return f"{found[1]}/{found[2]}"


def items_of_part(items: Sequence[Any], which: str) -> list[Any]:
    """Returns every n-th item for which = "i/n", a part_of_job."""
    i, n = map(int, which.split("/"))
    return list(items[i - 1 :: n])
