"""What a run measures of itself while it trains."""

import math
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from nlvideo.data.clips.datasets import Batch
from nlvideo.data.lists.path_list import VideoTable
from nlvideo.runtime import distributed
from nlvideo.runtime.errors import RunFailed
from nlvideo.training.step_timer import StepTimer

# Values that depend on the machine's speed; all others are the same in every run of a config.
TIMINGS = ("seconds", "clips_per_second", "data_wait_share", "forward_share", "backward_share", "communication_share")


class StepResult(NamedTuple):
    """What a training step gives, of this process's clips."""

    loss: float  # mean
    grad_norm: float  # before clipping, the same in every process
    right: float | None  # share of clips whose best class is the target, None for multi-label data
    updated: bool  # false where the loss scaler left the weights alone, because a gradient was not finite


class Meter:
    """Counts over all processes: loss, gradient norm, time, and samples that could not be decoded.

    Args:
        state: what `state` gave when the run was left, {} for a new one.
    """

    def __init__(self, world_size: int, num_samples: int, state: dict[str, Any]):
        self.world_size, self.num_samples = world_size, num_samples
        self.num_bad: int = state.get("num_bad", 0)
        self._losses: list[float] = list(state.get("losses", []))
        self._right: list[float] = list(state.get("right", []))
        self._grad_norms: list[float] = list(state.get("grad_norms", []))
        self._failures: list[dict[str, Any]] = []
        self._clips, self._wait = 0, 0.0
        self._start = time.monotonic()

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint needs so that the next line of metrics is that of an uninterrupted run."""
        lists = {"losses": self._losses, "right": self._right, "grad_norms": self._grad_norms}
        return {"num_bad": self.num_bad} | {name: list(values) for name, values in lists.items()}

    def add(
        self, result: StepResult, passes: Sequence[Batch], step: int, table: VideoTable, skipped: Any, stop: int
    ) -> bool:
        """Counts a step; returns whether any process was asked to stop.

        Args:
            skipped: (videos,) bool tensor; where some process met a video that took too long, it is marked in all.

        Raises:
            RunFailed: loss or gradient are not finite in some process; names the step and its videos.
        """
        failures = [failure for batch in passes for failure in batch.failures]
        slow = [failure.video for failure in failures if failure.slow]
        num_clips = sum(len(batch.targets) for batch in passes)
        finite = math.isfinite(result.loss) and (math.isfinite(result.grad_norm) or not result.updated)
        stopping, broken, bad, clips, num_slow, loss, right = distributed.sum_over_ranks(
            [bool(stop), not finite, len(failures), num_clips, len(slow), result.loss, result.right or 0.0]
        )
        if not finite:
            videos = ", ".join(table.name(i) for batch in passes for i in batch.videos.tolist())
            raise RunFailed(
                f"The loss is {result.loss} and the norm of the gradient {result.grad_norm} at step {step}, on the "
                f"videos {videos}."
            )
        if broken:
            raise RunFailed(f"At step {step} the loss of another process is not finite; it names the videos.")
        if num_slow:
            for videos in distributed.gather(slow):
                skipped[videos] = True
        for failure in failures:
            row = {
                "step": step,
                "epoch": failure.epoch,
                "video": table.name(failure.video),
                "reason": failure.reason,
                "replaced_by": table.name(failure.replaced_by),
            }
            print("step {step}: {video}: {reason}; replaced by {replaced_by}".format(**row), file=sys.stderr)
            self._failures.append(row)
        self._losses.append(loss / self.world_size)
        if result.right is not None:
            self._right.append(right / self.world_size)
        if result.updated:
            self._grad_norms.append(result.grad_norm)
        self._clips += int(clips)
        self.num_bad += int(bad)
        self.num_samples += int(clips)
        return stopping > 0

    def too_many_bad(self, allowed: float, num_videos: int) -> str | None:
        """Returns what is wrong if more samples were bad than allowed, of all so far or of the first thousand."""
        seen = max(self.num_samples, min(1000, num_videos))
        if self.num_bad <= allowed * seen:
            return None
        return (
            f"{self.num_bad} of the first {self.num_samples} samples could not be decoded, more than "
            f"data.max_bad_share={allowed} allows"
        )

    def take_failures(self) -> list[dict[str, Any]]:
        """Returns the videos that could not be decoded since the last call, of all processes in the order of steps."""
        rows = [row for rows in distributed.gather(self._failures) for row in rows]
        self._failures = []
        return sorted(rows, key=lambda row: row["step"])

    def take(self, lr: float, timer: StepTimer) -> dict[str, float]:
        """Returns the values since the last call, the same in every process, and starts again.

        Times are of this process's own steps since it was started, shares of them averaged over processes.
        """
        seconds = time.monotonic() - self._start
        spent = {"data_wait": self._wait, "forward": 0.0, "backward": 0.0, **timer.take()}
        shares = distributed.sum_over_ranks([value / seconds for value in spent.values()])
        values = {
            "loss": math.fsum(self._losses) / len(self._losses),
            **({"top1": math.fsum(self._right) / len(self._right)} if self._right else {}),
            "lr": lr,
            "grad_norm": math.fsum(self._grad_norms) / len(self._grad_norms) if self._grad_norms else None,
            "skipped_updates": len(self._losses) - len(self._grad_norms),
            "bad_share": self.num_bad / self.num_samples,
            "seconds": seconds,
            "clips_per_second": self._clips / seconds,
        }
        for name, share in zip(spent, shares, strict=True):
            values[f"{name}_share"] = share / self.world_size
        self._losses, self._right, self._grad_norms, self._clips, self._wait = [], [], [], 0, 0.0
        self._start = time.monotonic()
        return values

    def exclude(self, seconds: float) -> None:
        """Leaves out time that was not spent training."""
        self._start += seconds

    def timed(self, loader: Iterable[Any]) -> Iterable[Any]:
        """Yields what the loader gives and adds the time spent waiting for it."""
        steps = iter(loader)
        while True:
            start = time.monotonic()
            passes = next(steps, None)
            self._wait += time.monotonic() - start
            if passes is None:
                return
            yield passes
