"""How a run ended, in a file that other programs read."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from nlvideo.runtime import files

STATUS_FILE = "status.json"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"  # states
MAX_STEPS, PATIENCE, SIGNAL, DRY_RUN = "max_steps", "patience", "signal", "dry_run"  # reasons of an end


class TrainResult(NamedTuple):
    """How a run ended.

    Attributes:
        folder: where its files are.
        state: FINISHED or STOPPED.
        reason: MAX_STEPS, PATIENCE, SIGNAL or DRY_RUN.
        step: the steps done.
        metric: "top1", or "map" for multi-label data.
        score: its value at the last validation, between 0 and 1; nan if there was none.
        received: the signal that stopped the run, 0 for none.
    """

    folder: Path
    state: str
    reason: str
    step: int
    metric: str
    score: float
    received: int = 0

    def describe(self) -> str:
        """Returns why the run ended, in words."""
        by = signal.Signals(self.received).name if self.received else "a signal"
        return {
            MAX_STEPS: f"all {self.step} steps done",
            PATIENCE: f"stopped early at step {self.step}: no gain for the last validations (patience)",
            SIGNAL: f"stopped at step {self.step} by {by}",
            DRY_RUN: "dry run",
        }[self.reason]


@contextmanager
def noting_failure(folder: Path | None) -> Iterator[None]:
    """Leaves FAILED with the error in a run's folder if the block raises; None: on a rank that writes nothing."""
    try:
        yield
    except Exception as error:
        if folder is not None and folder.is_dir():
            with suppress(OSError):  # a full disk may be the error
                write_status(folder, FAILED, reason="error", error=str(error) or type(error).__name__)
        raise


def write_status(folder: Path, state: str, **values: Any) -> None:
    """Writes {"state": FINISHED, STOPPED or FAILED, ...}."""
    files.write_text(folder / STATUS_FILE, json.dumps({"state": state, **values}, indent=1) + "\n")


def read_status(folder: Path) -> dict[str, Any]:
    """Returns what write_status wrote, {} where a run has not ended yet or was killed."""
    file = folder / STATUS_FILE
    return json.loads(file.read_text()) if file.exists() else {}


def score_of(status: dict[str, Any]) -> float | None:
    """Returns the last validation's score; runs of earlier versions stored it under its metric's name."""
    return status.get("score", status.get("top1"))
