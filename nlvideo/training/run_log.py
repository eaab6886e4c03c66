"""What a run leaves as it trains: console lines, metrics.jsonl, TensorBoard, checkpoints, the ledger of bad videos."""

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from nlvideo.evaluation.metrics import headline
from nlvideo.runtime.progress import print_above_bars, progress_bar
from nlvideo.training.background_log import BackgroundLog
from nlvideo.training.bad_videos import LEDGER_FILE, append_to_ledger, drop_later_rows
from nlvideo.training.checkpoint_writer import CheckpointWriter
from nlvideo.training.curves import CURVES_FILE, draw_curves
from nlvideo.training.metrics_file import (
    METRICS_FILE,
    VALIDATION_METRICS,
    drop_later_metrics,
    is_better,
    read_metrics,
    without_gain,
)
from nlvideo.training.run_status import FAILED, FINISHED, STOPPED, TrainResult
from nlvideo.training.step_files import BEST_FILE
from nlvideo.weights.checkpoint_file import NEWEST_FILE

TENSORBOARD_FOLDER = "tensorboard"
# Waited for a logger at the end; a run that is asked to stop has other things to do before it is killed.
LOGGER_SECONDS = {FINISHED: 15.0, STOPPED: 5.0, FAILED: 5.0}
CONSOLE_METRICS = (
    "loss",
    "lr",
    "clips_per_second",
    "data_wait_share",
    "top1",
    "top5",
    "mean_class_accuracy",
    "map",
    "num_videos",
)


class RunLog:
    """Writes the metrics of steps first_step .. max_steps into a run's folder; use it in a `with` statement.

    Lines that an earlier start of the run wrote for later steps are dropped.

    Args:
        checkpoints: writes those that rely on the metrics before them.
        logger: gets all metrics as well, and how the run ended.
        shown: the metrics that a line on the console has.

    Attributes:
        interrupted: set by the caller before the end of the `with` statement: the run was asked to stop.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        max_steps: int,
        checkpoints: CheckpointWriter,
        logger: BackgroundLog | None = None,
        *,
        shown: Sequence[str] = CONSOLE_METRICS,
    ):
        self._shown = shown
        self.folder, self.max_steps, self._checkpoints = folder, max_steps, checkpoints
        self.interrupted, self._logger = False, logger
        self._first_step, self._started = first_step, time.monotonic()
        drop_later_metrics(folder, first_step)
        drop_later_rows(folder / LEDGER_FILE, first_step)
        self._metrics = open(folder / METRICS_FILE, "a")
        self._board = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=first_step + 1)
        # A terminal gets a bar; a log file gets one line for each line of metrics.
        self._bar = progress_bar(total=max_steps, initial=first_step, unit="step", disable=not sys.stderr.isatty())

    def last_score(self) -> float:
        """Returns the last validation's top-1 or mAP, nan before the first one."""
        rows = self._validations()
        return rows[-1][headline(rows[-1])] if rows else math.nan

    def is_best(self, metric: str, value: float | None) -> bool:
        """Returns whether a validation that is not logged yet is better than all before it."""
        before = [row[metric] for row in self._validations() if row.get(metric) is not None]
        return value is not None and all(is_better(metric, value, other) for other in before)

    def out_of_patience(self, metric: str, patience: int | None) -> bool:
        """Returns whether the last `patience` validations were no better than the best before them."""
        return patience is not None and without_gain(self._validations(), metric) >= patience

    def has_validation(self, step: int) -> bool:
        return any(row["step"] == step for row in self._validations())

    def _validations(self) -> list[dict[str, Any]]:
        return [row for row in read_metrics(self.folder) if row["split"] == "val"]

    def advance(self) -> None:
        """Moves the progress bar on by a step.

        Raises:
            RunFailed: a checkpoint could not be written.
        """
        self._bar.update()
        self._checkpoints.check()

    def log(self, split: str, step: int, values: dict[str, float | None]) -> None:
        """Records the values after a step under "train" or "val"."""
        self._metrics.write(json.dumps({"split": split, "step": step, **values}) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(f"{split}/{name}", value, step)
        if self._logger:
            self._logger.log(split, step, values)
        text = "  ".join(f"{name} {values[name]:.4g}" for name in self._shown if values.get(name) is not None)
        if self._bar.disable:
            print(f"{split} {step}/{self.max_steps}  {text}  eta {self._eta(step)}", flush=True)
        elif split == "train":
            self._bar.set_postfix_str(text)
        else:
            print_above_bars(f"{split} {step}/{self.max_steps}  {text}")

    def warn(self, line: str | None) -> None:
        """Says something on the console, if there is something to say."""
        if line:
            print_above_bars(f"warning   {line}")

    def log_gains(self, step: int, gains: dict[str, float]) -> None:
        """Records the gain of each block in TensorBoard and the logger."""
        for place, gain in gains.items():
            self._board.add_scalar(f"gain/{place}", gain, step)
        if self._logger and gains:
            self._logger.log("gain", step, gains)

    def show_clips(self, step: int, clips: torch.Tensor) -> None:
        """Shows up to eight of the clips (N, C, T, H, W) uint8 in TensorBoard, a row of up to eight frames each."""
        times = np.unique(np.linspace(0, clips.shape[2] - 1, 8).round().astype(int))
        shown = clips[:8, :, times]  # (n, C, t, H, W)
        n, c, t, h, w = shown.shape
        self._board.add_image("clips", shown.permute(1, 0, 3, 2, 4).reshape(c, n * h, t * w), step)

    def log_bad_videos(self, rows: Sequence[dict[str, Any]]) -> None:
        append_to_ledger(self.folder / LEDGER_FILE, rows)

    def save(self, content: dict[str, Any]) -> None:
        """Starts to write a checkpoint, with the metrics before it on the disk.

        Raises:
            RunFailed: the checkpoint before it could not be written.
        """
        os.fsync(self._metrics.fileno())
        self._checkpoints.save(content)

    def wait_until_saved(self) -> None:
        """Returns once all checkpoints are written.

        Raises:
            RunFailed: one could not be written.
        """
        self._checkpoints.wait()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, error: type | None, *_: object) -> None:
        """Closes the files and, after a run without an error, draws the curves; then ends the logger's run."""
        self._bar.close()
        self._metrics.close()
        self._board.close()
        if error is None:
            draw_curves(self.folder)
        if self._logger:
            state = FAILED if error else STOPPED if self.interrupted else FINISHED
            curves = self.folder / CURVES_FILE
            self._logger.close(state, [curves] if curves.exists() else [], LOGGER_SECONDS[state])

    def _eta(self, step: int) -> str:
        done = step - self._first_step
        seconds = (time.monotonic() - self._started) / done * (self.max_steps - step) if done else 0
        return tqdm.format_interval(seconds)


def print_results(result: TrainResult, max_steps: int, best_metric: str) -> None:
    """Prints the table of results and, on lines of their own that no terminal cuts, where everything lies."""
    from rich.console import Console
    from rich.table import Table

    folder, step = result.folder, result.step
    rows = read_metrics(folder)
    losses = [f"{row['loss']:.4f}" for row in rows if row["split"] == "train"]
    val = [row for row in rows if row["split"] == "val"]
    scores, name = [row[headline(row)] for row in val], VALIDATION_METRICS[headline(val[-1] if val else {})]
    table = Table("steps", "training loss", f"validation {name}, one centre clip", "best")
    shown = [f"{100 * value:.2f} %" for value in (scores[-1], max(scores))] if scores else ["-", "-"]
    table.add_row(f"{step} of {max_steps}", losses[-1] if losses else "-", *shown)
    Console().print(table)
    print(
        f"checkpoint   {folder / NEWEST_FILE}" + (f", the best by {best_metric} {folder / BEST_FILE}" if scores else "")
    )
    print(f"curves       {folder / CURVES_FILE}")
    print(f"TensorBoard  tensorboard --logdir {folder / TENSORBOARD_FOLDER}")
    print(f"end          {result.describe()}")
    if result.state != FINISHED:
        print("Stopped before the end; resume it with the same command and resume=auto.")
