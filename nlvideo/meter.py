"""What a run measures of itself while it trains."""

import math
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch

from nlvideo import distributed as world_of
from nlvideo.data.annotations import VideoTable
from nlvideo.data.dataset import Batch


class Meter:
    """Counts over all processes: loss, speed, waiting for data, and samples that could not be decoded."""

    def __init__(self, world_size: int, num_bad: int, num_samples: int):
        self.world_size, self.num_bad, self.num_samples = world_size, num_bad, num_samples
        self.wait = 0.0
        self._losses: list[torch.Tensor] = []
        self._failures: list[dict[str, Any]] = []
        self._clips = 0
        self._start = time.monotonic()

    def add(
        self, loss: torch.Tensor, batch: Batch, step: int, table: VideoTable, skipped: torch.Tensor, stop: int
    ) -> bool:
        """Counts a step; returns whether any process was asked to stop.

        Args:
            skipped: (videos,) bool; where some process met a video that took too long, it is marked in all.

        Raises:
            world_of.RunFailed: the loss is not finite in some process; names the step and that process's videos.
        """
        finite = math.isfinite(loss.item())
        slow = [failure.video for failure in batch.failures if failure.slow]
        stopping, broken, bad, clips, num_slow = world_of.sum_over_ranks(
            [bool(stop), not finite, len(batch.failures), len(batch.targets), len(slow)]
        )
        if not finite:
            videos = ", ".join(table.name(i) for i in batch.videos.tolist())
            raise world_of.RunFailed(f"The loss is {loss.item()} at step {step}, on the videos {videos}.")
        if broken:
            raise world_of.RunFailed(f"At step {step} the loss of another process is not finite; it names the videos.")
        if num_slow:
            for videos in world_of.gather(slow):
                skipped[videos] = True
        for failure in batch.failures:
            row = {
                "step": step,
                "epoch": failure.epoch,
                "video": table.name(failure.video),
                "reason": failure.reason,
                "replaced_by": table.name(failure.replaced_by),
            }
            print("step {step}: {video}: {reason}; replaced by {replaced_by}".format(**row), file=sys.stderr)
            self._failures.append(row)
        self._losses.append(loss)
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
        rows = [row for rows in world_of.gather(self._failures) for row in rows]
        self._failures = []
        return sorted(rows, key=lambda row: row["step"])

    def take(self, lr: float) -> dict[str, float]:
        """Returns the values since the last call, the same in every process, and starts again."""
        seconds = time.monotonic() - self._start
        losses = torch.stack(self._losses).double()
        loss, wait = world_of.sum_over_ranks([losses.mean().item(), self.wait / seconds])
        values = {
            "loss": loss / self.world_size,
            "lr": lr,
            "clips_per_second": self._clips / seconds,
            "data_wait_share": wait / self.world_size,
            "bad_share": self.num_bad / self.num_samples,
        }
        self._losses, self._clips, self.wait = [], 0, 0.0
        self._start = time.monotonic()
        return values

    def exclude(self, seconds: float) -> None:
        """Leaves out time that was not spent training."""
        self._start += seconds


def timed(loader: Iterable[Batch], meter: Meter) -> Iterable[Batch]:
    """Yields the loader's batches and adds the time spent waiting for each to the meter."""
    batches = iter(loader)
    while True:
        start = time.monotonic()
        batch = next(batches, None)
        meter.wait += time.monotonic() - start
        if batch is None:
            return
        yield batch
