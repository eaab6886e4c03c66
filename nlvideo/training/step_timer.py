"""Where the time of a training step goes: waiting for data, forward, backward, and averaging gradients over ranks."""

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

Item = TypeVar("Item")


class _Wait(NamedTuple):
    """What came before a step."""

    seconds: float  # that the host waited for its data
    ended: Any  # the moment when the device was done with the step before; None before the first
    started: Any  # the moment when the device began with this step


class StepTimer:
    """Adds up seconds by name. On a GPU it records events and reads them only when asked, so steps do not wait."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self._waited = 0.0
        self._last: Any = None
        self._ended: Any = None
        self._waits: list[_Wait] = []
        self._laps: list[tuple[str, Any, Any]] = []
        self._sent: list[tuple[Any, Any]] = []

    def timed(self, loader: Iterable[Item]) -> Iterator[Item]:
        """Yields what the loader gives for each step and notes how long it was waited for."""
        steps = iter(loader)
        while True:
            start = time.monotonic()
            batches = next(steps, None)
            self._waited = time.monotonic() - start
            if batches is None:
                return
            yield batches

    def start(self) -> None:
        """Marks the start of a step."""
        self._last = self.now()
        self._waits.append(_Wait(self._waited, self._ended, self._last))
        self._waited, self._ended = 0.0, None

    def end(self) -> None:
        """Marks the end of a step."""
        self._ended = self.now()

    def lap(self, name: str) -> None:
        """Adds the time since the last call of start or lap to `name`."""
        now = self.now()
        self._laps.append((name, self._last, now))
        self._last = now

    def add_communication(self, start: Any, end: Any) -> None:
        """Notes the moments between which a bucket of gradients was being averaged."""
        self._sent.append((start, end))

    def take(self) -> dict[str, float]:
        """Returns the seconds of each name since the last call; of "data_wait", in which the device had nothing to do
        because data were waited for; and of "communication", which may overlap the backward pass: the time in which any
        gradients were being averaged."""
        if self.cuda:
            torch.cuda.synchronize()
        seconds = {"data_wait": sum(map(self._idle, self._waits)), "communication": 0.0}
        for name, start, end in self._laps:
            seconds[name] = seconds.get(name, 0.0) + self._between(start, end)
        if self._laps:
            zero, until = self._laps[0][1], 0.0
            spans = [(self._between(zero, start), self._between(zero, end)) for start, end in self._sent]
            for start, end in sorted(spans):
                seconds["communication"] += max(0.0, end - max(start, until))
                until = max(until, end)
        self._waits, self._laps, self._sent = [], [], []
        return seconds

    def _idle(self, wait: _Wait) -> float:
        """Returns how long the device had to wait: a host that is a step ahead may wait while it computes."""
        if not self.cuda or wait.ended is None:
            return wait.seconds
        return min(wait.seconds, self._between(wait.ended, wait.started))

    def now(self) -> Any:
        """Returns this moment: a CUDA event in the current stream, or seconds."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self.cuda else end - start


def profiler(num_steps: int, folder: Path) -> "torch.profiler.profile | NoProfile":
    """Returns a context that leaves a trace of that many steps, after three others, in a folder.

    TensorBoard's profile plugin, Perfetto and chrome://tracing open it.
    """
    if not num_steps:
        return NoProfile()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(
        activities=activities,
        schedule=torch.profiler.schedule(wait=1, warmup=2, active=num_steps, repeat=1),
        on_trace_ready=torch.profiler.tensorboard_trace_handler(str(folder)),
        record_shapes=True,
    )


class NoProfile(nullcontext):
    """Takes the profiler's place where nothing is profiled."""

    def __enter__(self) -> "NoProfile":
        return self

    def step(self) -> None:
        pass
