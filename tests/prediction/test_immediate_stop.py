"""A signal ends the process within a second, also where Python does not come to handle it."""

import signal
import subprocess
import sys
import time

import pytest

START = """
import hashlib, os, sys, threading
from nlvideo.prediction.immediate_stop import ImmediateStop, StoppedBySignal, leave
stop = ImmediateStop()
"""
STATES = {
    "waiting": "threading.Event().wait()",
    "in a call of C": "hashlib.pbkdf2_hmac('sha256', b'', b'', 100_000_000)",
    "standard output held": "[print('x' * 5000, flush=True) for _ in range(100)]",
    "standard output held at a line": "with stop.held(): [print('x' * 5000, flush=True) for _ in range(100)]",
    "standard error held": "[print('x' * 5000, flush=True, file=sys.stderr) for _ in range(100)]",
}
END = """
except StoppedBySignal:
    print("stopped", file=sys.stderr, flush=True)
    leave(128 + stop.received)
"""


def started(state):
    """Starts a process and waits until it is in a state; nobody reads what it prints."""
    program = f"{START}try:\n  with stop:\n    print('ready', flush=True)\n    {state}{END}"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(6) == b"ready\n"
    time.sleep(0.1)  # the pipes hold 64 kB
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("state", STATES)
def test_a_signal_ends_the_process(state, number):
    """The best of five tries counts, as a busy machine delays any of them."""
    for _ in range(5):
        with started(STATES[state]) as process:
            start = time.monotonic()
            process.send_signal(number)
            try:
                assert process.wait(300) == 128 + number
            finally:
                process.kill()
            if time.monotonic() - start < 1:
                return
    raise AssertionError("it never ended within a second")
