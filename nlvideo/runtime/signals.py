"""Stopping on request: the signals of a terminal, of SLURM and of launchers."""

import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

# Ctrl-C; the end of a job, of a machine or of an elastic restart; the early warning before a job's end (SLURM's
# --signal, and submitit's, which is SIGUSR2). Windows has the first two alone.
STOP_SIGNALS: tuple[int, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
HAS_TIMER = hasattr(signal, "setitimer")  # not on Windows: data that hang after a signal are waited for there

GRACE = 15.0  # seconds that a program which is asked to stop still waits for data; launchers kill after 30

Waited = TypeVar("Waited")


def leave_to_parent(_worker: int = 0) -> None:
    """Leaves stopping to the parent, in a worker: a terminal or a launcher signals the workers too."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopSignal:
    """Records the last of STOP_SIGNALS, so that the current step can finish and a checkpoint be written.

    Use it in a `with` statement, whose end restores the handlers that were there before. Python delivers signals to
    the main thread only: in another one nothing is received, and a line says so.

    Attributes:
        received: the signal's number, 0 if there was none.
        gave_up: data did not come within GRACE seconds of the signal, and `while_waiting` has ended.
    """

    def __init__(self) -> None:
        self.received, self.gave_up, self._waiting = 0, False, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            print("signals   not handled: this is not the main thread, so nothing stops the run early", flush=True)
            return self
        handlers: dict[int, Any] = {number: self._remember for number in STOP_SIGNALS}
        if HAS_TIMER:
            handlers[signal.SIGALRM] = self._give_up
        self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def while_waiting(self, items: Iterable[Waited]) -> Generator[Waited, None, None]:
        """Yields the items. After a signal it waits GRACE seconds for the next one: its source may hang.

        What an item is used for may take longer; only waiting for the next one is cut short.
        """
        source = iter(items)
        while True:
            self._waiting = True
            try:
                if self.received:
                    _alarm_in(GRACE)
                item = next(source)
            except (StopIteration, _WaitedTooLong):
                return
            finally:
                self._waiting = False
                if self._before:
                    _alarm_in(0)
            yield item

    def _remember(self, number: int, _frame) -> None:
        if self._waiting and not self.received:
            _alarm_in(GRACE)
        self.received = number

    def _give_up(self, _number: int, _frame) -> None:
        if self._waiting:
            self.gave_up = True
            raise _WaitedTooLong


def _alarm_in(seconds: float) -> None:
    """Has SIGALRM sent to this process after so many seconds, or not at all if they are 0."""
    if HAS_TIMER:
        signal.setitimer(signal.ITIMER_REAL, seconds)


class _WaitedTooLong(BaseException):
    """Ends the wait for data inside whatever library waits; no handler of ordinary errors takes it for one."""


def raise_signal(number: int) -> None:
    """Raises what Python programs expect of a signal that was handled: KeyboardInterrupt of Ctrl-C, else SystemExit.

    Args:
        number: 0 for none.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if number:
        sys.exit(128 + number)


@contextmanager
def passed_on(send: Callable[[int], None]) -> Iterator[list[int]]:
    """Calls `send` with each of STOP_SIGNALS instead of dying of it; yields the list of those received."""
    received = []

    def handle(number: int, _frame) -> None:
        received.append(number)
        send(number)

    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
