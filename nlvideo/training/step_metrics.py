"""Training steps in numbers: what a step gives, summed over ranks, and the line of metrics that steps add up to."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from nlvideo.data.clips.batch import Batch
from nlvideo.runtime import distributed
from nlvideo.runtime.copy_stream import HostCopy
from nlvideo.runtime.errors import RunFailed
from nlvideo.training.step_timer import StepTimer

# Values that depend on the machine's speed; all others are the same in every run of a config.
TIMINGS = ("seconds", "clips_per_second", "data_wait_share", "forward_share", "backward_share", "communication_share")

SMALLEST_SCALE = 2.0**-14  # of a float16 loss


class StepResult(NamedTuple):
    """What a training step gives on this rank."""

    loss: float  # mean over this rank's clips
    grad_norm: float  # before clipping, the same on every rank
    right: float | None  # share of clips whose best class is the target, None for multi-label data
    loss_scale: float | None  # after the step; None where the loss is not scaled

    @property
    def updated(self) -> bool:
        """False where the loss scaler skipped the update, because a gradient was not finite."""
        return self.loss_scale is None or math.isfinite(self.grad_norm)

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and (math.isfinite(self.grad_norm) or not self.updated)


class LateResult:
    """A step's result on its way from the device. Reading it waits for that step, not for those launched later.

    Args:
        values: (3,) float64 or, where the loss is scaled, (4,): loss, grad_norm, right, loss_scale of a StepResult.
        multi_label: `right` means nothing.
    """

    def __init__(self, values: Tensor, multi_label: bool):
        self._values, self._multi_label = HostCopy(values), multi_label

    def read(self) -> StepResult:
        loss, grad_norm, right, *scale = self._values.read().tolist()
        return StepResult(loss, grad_norm, None if self._multi_label else right, scale[0] if scale else None)


class StepTotals(NamedTuple):
    """A training step over all ranks."""

    loss: float  # mean
    right: float | None  # mean
    grad_norm: float | None  # None where the update was skipped
    num_clips: int
    num_bad: int  # videos that could not be decoded, one however many clips it was to give
    num_slow: int  # of them, those that took too long
    num_not_finite: int  # ranks
    stop: bool  # some rank was asked to stop


class LaunchedStep(NamedTuple):
    """A training step that the device has been given, and whose result has not been read yet."""

    step: int
    lr: float
    batches: list[Batch]  # the micro-batches of this rank
    result: LateResult


def reduce_step(result: StepResult, batches: Sequence[Batch], stop: int) -> StepTotals:
    """Returns the totals of a step, in one all-reduce.

    Args:
        batches: the micro-batches of this rank.
        stop: the signal that asked this rank to stop, 0 for none.
    """
    failures = [failure for batch in batches for failure in batch.failures]
    num_slow = sum(failure.slow for failure in failures)
    num_clips = sum(len(batch.targets) for batch in batches)
    local = [1, bool(stop), not result.finite, len(failures), num_clips, num_slow, result.loss, result.right or 0.0]
    ranks, stopping, broken, bad, clips, slow, loss, right = distributed.sum_over_ranks(local)
    return StepTotals(
        loss=loss / ranks,
        right=None if result.right is None else right / ranks,
        grad_norm=result.grad_norm if result.updated else None,
        num_clips=int(clips),
        num_bad=int(bad),
        num_slow=int(slow),
        num_not_finite=int(broken),
        stop=stopping > 0,
    )


def refuse_vanishing_scale(result: StepResult) -> None:
    """Raises RunFailed if the loss scaler has made the loss so small that nothing is learnt any more."""
    if result.loss_scale is not None and result.loss_scale < SMALLEST_SCALE:
        raise RunFailed(
            f"float16: gradients are not finite even with the loss scaled by {result.loss_scale:g}, so nothing is "
            "learnt. Use precision=bfloat16 or float32."
        )


def refuse_non_finite(result: StepResult, totals: StepTotals, step: int, videos: Iterable[str]) -> None:
    """Raises RunFailed if loss or gradient are not finite on some rank; that rank names the step and its videos."""
    if not result.finite:
        raise RunFailed(
            f"The loss is {result.loss} and the norm of the gradient {result.grad_norm} at step {step}, on the "
            f"videos {', '.join(videos)}."
        )
    if totals.num_not_finite:
        raise RunFailed(f"At step {step} the loss of another rank is not finite; that rank names the videos.")


class StepMetrics:
    """Collects the steps since the last line of metrics.

    Args:
        state: what `state` returned when the run was left, {} for a new one.
    """

    def __init__(self, state: dict[str, Any]):
        self._losses: list[float] = list(state.get("losses", []))
        self._right: list[float] = list(state.get("right", []))
        self._grad_norms: list[float] = list(state.get("grad_norms", []))
        self._clips = 0
        self._start = time.monotonic()

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint needs so that the next line of metrics is that of an uninterrupted run."""
        lists = {"losses": self._losses, "right": self._right, "grad_norms": self._grad_norms}
        return {name: list(values) for name, values in lists.items()}

    def add(self, totals: StepTotals) -> None:
        self._losses.append(totals.loss)
        if totals.right is not None:
            self._right.append(totals.right)
        if totals.grad_norm is not None:
            self._grad_norms.append(totals.grad_norm)
        self._clips += totals.num_clips

    def take(self, lr: float, bad_share: float, timer: StepTimer) -> dict[str, float | None]:
        """Returns the values since the last call, the same on every rank, and starts over.

        Times are those of this process since it was started; their shares are averaged over ranks.
        """
        seconds = time.monotonic() - self._start
        spent = {"data_wait": 0.0, "forward": 0.0, "backward": 0.0, **timer.take()}
        ranks, *shares = distributed.sum_over_ranks([1, *(value / seconds for value in spent.values())])
        values: dict[str, float | None] = {"loss": _mean(self._losses)}
        if self._right:
            values["top1"] = _mean(self._right)
        values |= {
            "lr": lr,
            "grad_norm": _mean(self._grad_norms) if self._grad_norms else None,
            "skipped_updates": len(self._losses) - len(self._grad_norms),
            "bad_share": bad_share,
            "seconds": seconds,
            "clips_per_second": self._clips / seconds,
        }
        values |= {f"{name}_share": share / ranks for name, share in zip(spent, shares, strict=True)}
        self._losses, self._right, self._grad_norms, self._clips = [], [], [], 0
        self._start = time.monotonic()
        return values

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out time that is not spent training."""
        paused = time.monotonic()
        yield
        self._start += time.monotonic() - paused


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
