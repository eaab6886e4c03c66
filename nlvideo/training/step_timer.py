"""Where the time of a training step goes: forward, backward, and the gradients' way between processes."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


class StepTimer:
    """Adds up seconds by name. On a GPU it reads events only when asked, so it does not make the step wait."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self._last: Any = None
        self._laps: list[tuple[str, Any, Any]] = []
        self._sent: list[tuple[Any, Any]] = []

    def start(self) -> None:
        self._last = self._now()

    def lap(self, name: str) -> None:
        """Gives the time since the last call of start or lap to `name`."""
        now = self._now()
        self._laps.append((name, self._last, now))
        self._last = now

    def take(self) -> dict[str, float]:
        """Returns the seconds of each name since the last call, and of "communication", which the backward pass may
        hide: the time in which any gradients were on their way."""
        if self.cuda:
            torch.cuda.synchronize()
        seconds = {"communication": 0.0}
        for name, start, end in self._laps:
            seconds[name] = seconds.get(name, 0.0) + self._between(start, end)
        if self._laps:
            zero, until = self._laps[0][1], 0.0
            spans = [(self._between(zero, start), self._between(zero, end)) for start, end in self._sent]
            for start, end in sorted(spans):
                seconds["communication"] += max(0.0, end - max(start, until))
                until = max(until, end)
        self._laps, self._sent = [], []
        return seconds

    def watch(self, model: DistributedDataParallel) -> None:
        """Averages the model's gradients over the processes and takes the time of that."""
        model.register_comm_hook(None, self._average)

    def _average(self, _state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        start, size = self._now(), dist.get_world_size()
        gradients = bucket.buffer().div_(size)
        if self.cuda:
            parts = [gradients]
            sent = dist.all_reduce(gradients, async_op=True).get_future()
        else:
            # gloo's order of adding depends on the place in the bucket, and DDP sorts its buckets anew after the first
            # step of a process, so that a resumed run would add in another order. Here it is the order of ranks.
            parts = [torch.empty_like(gradients) for _ in range(size)]
            sent = dist.all_gather(parts, gradients, async_op=True).get_future()

        def done(_: torch.futures.Future) -> torch.Tensor:
            total = parts[0]
            for part in parts[1:]:
                total += part
            self._sent.append((start, self._now()))
            return total

        return sent.then(done)

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self.cuda else end - start


def profiler(num_steps: int, folder: Path) -> "torch.profiler.profile | NoProfile":
    """Returns a context that leaves a trace of so many steps, after three others, in a folder.

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
    """Stands where a profile would."""

    def __enter__(self) -> "NoProfile":
        return self

    def step(self) -> None:
        """Does nothing."""
