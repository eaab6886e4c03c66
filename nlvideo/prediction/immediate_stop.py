"""Ends a program within a second of a signal, wherever it is."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)
LONGEST_STOP = 0.5  # seconds from a signal to the end of the process


def leave(status: int) -> None:
    """Ends the process at once. Python's own way takes a second to take torch down, and the reader may be inside a
    read that nothing wakes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class StoppedBySignal(BaseException):
    """Ends whatever the main thread does; no handler of ordinary errors takes it for one."""


class ImmediateStop:
    """Raises StoppedBySignal at SIGINT or SIGTERM, wherever the main thread is, except while `held`.

    Python handles signals between the steps of the main thread. Where that is inside a call which does not come back,
    such as the print of a line that nobody reads, a thread ends the process after LONGEST_STOP seconds. Such a line is
    left out, or cut if it is longer than a pipe takes at once (4096 bytes).

    Attributes:
        received: the signal's number, 0 if there was none.
    """

    def __init__(self) -> None:
        self.received, self._held = 0, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "ImmediateStop":
        told, self._signals = socket.socketpair()
        self._signals.setblocking(False)
        self._descriptor_before = signal.set_wakeup_fd(self._signals.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_end_late, args=(told,), name="signals", daemon=True).start()
        self._before = {number: signal.signal(number, self._stop) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._descriptor_before)
        self._signals.close()  # which ends the thread, unless it has been told of a signal

    @contextmanager
    def held(self) -> Iterator[None]:
        """Waits with the signal until the block ends: a line is printed whole."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.received:
            raise StoppedBySignal

    def _stop(self, number: int, _frame: object) -> None:
        first, self.received = not self.received, number
        if first and not self._held:
            raise StoppedBySignal


def _end_late(told: socket.socket) -> None:
    """Ends the process LONGEST_STOP seconds after it was told one of STOPPING, whatever its other threads do."""
    with told:
        while number := told.recv(1):
            if number[0] in STOPPING:
                time.sleep(LONGEST_STOP)
                os._exit(128 + number[0])
