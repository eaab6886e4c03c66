"""Metrics on their way to a tracking server, on a thread of their own: training never waits for a network."""

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from nlvideo.runtime.progress import print_above_bars
from nlvideo.training.metrics_file import METRICS_FILE

ROWS_PER_REQUEST = 50  # in one request, which takes about as long for one row as for many
SECONDS_BETWEEN = 2.0  # requests: the thread shares the interpreter with training
FAILING_SECONDS = 2.0  # waited at the end for a server whose last answer was an error, or none
MAX_ERROR_LENGTH = 200  # of a library's message; some hold a whole traceback


class LogRow(NamedTuple):
    """The values after a step, named "split/name", and when they were measured (seconds since 1970)."""

    step: int
    values: dict[str, float]
    time: float


class Tracker(Protocol):
    """A run at wandb or mlflow. Only the thread of a BackgroundLog calls it; every call may block, or raise."""

    def start(self) -> str:
        """Opens the run, or continues the one that the folder names; returns where it can be seen."""

    def send(self, rows: Sequence[LogRow]) -> None:
        """Sends up to ROWS_PER_REQUEST rows; when it raises, all of them are sent again later."""

    def finish(self, state: str, pictures: Sequence[Path]) -> str:
        """Marks the run as FINISHED, STOPPED or FAILED; returns what is left for the user to do, or ""."""


class _End(NamedTuple):
    state: str
    pictures: Sequence[Path]


class BackgroundLog:
    """Passes rows on to a tracker without ever blocking or raising.

    What cannot be sent is kept and tried again with the next row. The first error is printed; others are not.

    Args:
        name: of the logger, for the lines that it prints.
        tracker: started at once.
    """

    def __init__(self, name: str, tracker: Tracker):
        self._name, self._tracker = name, tracker
        self._items: queue.SimpleQueue[LogRow | _End | None] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._items.put(None)  # starts the tracker before there is anything to send
        self._started = self._reported = self._failing = self._given_up = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def log(self, split: str, step: int, values: Mapping[str, float | None]) -> None:
        named = {f"{split}/{name}": float(value) for name, value in values.items() if value is not None}
        self._items.put(LogRow(step, named, time.time()))

    def close(self, state: str, pictures: Sequence[Path], seconds: float) -> None:
        """Ends the tracker's run and waits for it, but no longer than `seconds`."""
        seconds = min(seconds, FAILING_SECONDS) if self._failing else seconds
        self._items.put(_End(state, pictures))
        self._ending.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._say(f"not done after {seconds:g} s, which is as long as it is waited for; {METRICS_FILE} has it all")
            self._given_up = True

    def _work(self) -> None:
        rows: list[LogRow] = []
        end = None
        while end is None:
            items = [self._items.get()]
            while not self._items.empty():  # one attempt for all: it may take long to fail
                items.append(self._items.get())
            rows += [item for item in items if isinstance(item, LogRow)]
            end = next((item for item in items if isinstance(item, _End)), None)
            try:
                self._pass_on(rows, end)
                self._failing = False
            except Exception as error:  # whatever a library raises and a network does, training goes on
                self._failing = True
                self._report(error)
            self._ending.wait(SECONDS_BETWEEN)
        if rows:
            self._say(f"{len(rows)} of the lines in {METRICS_FILE} could not be sent")

    def _pass_on(self, rows: list[LogRow], end: _End | None) -> None:
        """Sends the rows and removes those that were sent."""
        if not self._started:
            self._say(self._tracker.start())
            self._started = True
        while rows:
            self._tracker.send(rows[:ROWS_PER_REQUEST])
            del rows[:ROWS_PER_REQUEST]
        if end:
            left = self._tracker.finish(end.state, end.pictures)
            if left:
                self._say(left)

    def _report(self, error: Exception) -> None:
        if not self._reported:
            text = " ".join(str(error).split()) or type(error).__name__
            self._say(f"{text[:MAX_ERROR_LENGTH]}. Training goes on; this is tried again with the next values")
        self._reported = True

    def _say(self, text: str) -> None:
        if not self._given_up:  # nothing more is said once the program is ending
            print_above_bars(f"logger    {self._name}: {text}.")
