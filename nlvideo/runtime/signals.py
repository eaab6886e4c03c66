"""Stopping on request: the signals of a terminal, of SLURM and of launchers."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Ctrl-C; the end of a job, of a machine or of an elastic restart; the early warning before a job's end (SLURM's
# --signal, and submitit's, which is SIGUSR2).
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopSignal:
    """Records the last of STOP_SIGNALS, so that the current step can finish and a checkpoint be written."""

    def __init__(self):
        self.received = 0
        self._before = {number: signal.signal(number, self._remember) for number in STOP_SIGNALS}

    def release(self) -> None:
        """Restores the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame) -> None:
        self.received = number


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
