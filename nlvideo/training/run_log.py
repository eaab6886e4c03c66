"""What a run leaves to read: a line on the console, metrics.jsonl, TensorBoard and the picture of its curves."""

import csv
import io
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from nlvideo.evaluation.metrics import headline
from nlvideo.weights.checkpoint_file import BEST_FILE, NEWEST_FILE

METRICS_FILE = "metrics.jsonl"
LEDGER_FILE = "bad_videos.csv"
LEDGER_COLUMNS = ("step", "epoch", "video", "reason", "replaced_by")
CURVES_FILE = "curves.png"
TENSORBOARD_FOLDER = "tensorboard"
SHOWN = ("loss", "lr", "clips_per_second", "data_wait_share", "top1", "top5", "map", "num_videos")  # on the console
METRICS = {"top1": "top-1", "top5": "top-5", "map": "mAP"}  # of a validation


class RunLogger:
    """Writes metrics of steps first_step .. max_steps into a run's folder; lines of later steps are dropped first."""

    def __init__(self, folder: Path, first_step: int, max_steps: int):
        self.folder, self.max_steps = folder, max_steps
        self._first_step, self._started = first_step, time.monotonic()
        metrics = folder / METRICS_FILE
        if metrics.exists():
            kept = [row for row in read_metrics(folder) if row["step"] <= first_step]
            partial = metrics.with_suffix(".part")
            partial.write_text("".join(f"{json.dumps(row)}\n" for row in kept))
            partial.replace(metrics)
        self._metrics = open(metrics, "a")
        self._ledger = folder / LEDGER_FILE
        if self._ledger.exists():
            with open(self._ledger, newline="", encoding="utf-8", errors="surrogateescape") as file:
                text = file.read()
            # a process that was killed while it wrote leaves a part of a line
            whole = io.StringIO(text[: text.rfind("\r\n") + 2], newline="")
            rows = [row for row in csv.DictReader(whole) if int(row["step"]) <= first_step]
            partial = self._ledger.with_suffix(".part")
            partial.unlink(missing_ok=True)
            _write_rows(partial, rows)
            partial.replace(self._ledger)
        self._board = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=first_step + 1)
        # A terminal gets a bar; a log file gets one line for each line of metrics.
        self._bar = tqdm(total=max_steps, initial=first_step, unit="step", disable=not sys.stderr.isatty())

    def last_score(self) -> float:
        """Returns the last validation's top-1 or mAP that the file holds, nan if there is none."""
        rows = self._validations()
        return rows[-1][headline(rows[-1])] if rows else math.nan

    def best_score(self) -> float:
        """Returns the best validation's top-1 or mAP that the file holds, -1 if there is none."""
        return max((row[headline(row)] for row in self._validations()), default=-1.0)

    def has_validation(self, step: int) -> bool:
        return any(row["step"] == step for row in self._validations())

    def _validations(self) -> list[dict]:
        return [row for row in read_metrics(self.folder) if row["split"] == "val"]

    def advance(self) -> None:
        self._bar.update()

    def log(self, split: str, step: int, values: dict[str, float]) -> None:
        """Records the values of one step (steps done so far) under "train" or "val"."""
        self._metrics.write(json.dumps({"split": split, "step": step, **values}) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(f"{split}/{name}", value, step)
        text = "  ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        if self._bar.disable:
            print(f"{split} {step}/{self.max_steps}  {text}  eta {self._eta(step)}", flush=True)
        elif split == "train":
            self._bar.set_postfix_str(text)
        else:
            self._bar.write(f"{split} {step}/{self.max_steps}  {text}")

    def log_gains(self, step: int, gains: dict[str, float]) -> None:
        """Adds how much each block adds to what passes through it to TensorBoard."""
        for place, gain in gains.items():
            self._board.add_scalar(f"gain/{place}", gain, step)

    def show_clips(self, step: int, clips: torch.Tensor) -> None:
        """Shows the first eight of the clips (N, C, T, H, W) uint8 in TensorBoard: a row each, at most eight frames."""
        times = np.unique(np.linspace(0, clips.shape[2] - 1, 8).round().astype(int))
        shown = clips[:8, :, times]  # (n, C, t, H, W)
        n, c, t, h, w = shown.shape
        self._board.add_image("clips", shown.permute(1, 0, 3, 2, 4).reshape(c, n * h, t * w), step)

    def sync(self) -> None:
        """Makes the metrics outlast a power failure, before a checkpoint relies on them."""
        os.fsync(self._metrics.fileno())

    def log_failures(self, rows: list[dict[str, Any]]) -> None:
        """Adds videos that could not be decoded to the ledger, which exists only if there are any."""
        if rows:
            _write_rows(self._ledger, rows)

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, error, *_) -> None:
        """Closes the files and, after a run without an error, draws the curves."""
        self._bar.close()
        self._metrics.close()
        self._board.close()
        if error is None:
            draw_curves(self.folder, self.folder / CURVES_FILE)

    def _eta(self, step: int) -> str:
        done = step - self._first_step
        seconds = (time.monotonic() - self._started) / done * (self.max_steps - step) if done else 0
        return tqdm.format_interval(seconds)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics; the rest of one that was being written when the run was killed is none."""
    text = (folder / METRICS_FILE).read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _write_rows(ledger: Path, rows: list[dict[str, Any]]) -> None:
    new = not ledger.exists()
    with open(ledger, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, LEDGER_COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())


def print_results(folder: Path, step: int, max_steps: int, finished: bool) -> None:
    """Prints the table of results and, in lines of their own that no terminal cuts, where everything lies."""
    from rich.console import Console
    from rich.table import Table

    rows = read_metrics(folder)
    losses = [f"{row['loss']:.4f}" for row in rows if row["split"] == "train"]
    val = [row for row in rows if row["split"] == "val"]
    tops, name = [row[headline(row)] for row in val], METRICS[headline(val[-1] if val else {})]
    table = Table("steps", "training loss", f"validation {name}, one centre clip", "best")
    shown = [f"{100 * value:.2f} %" for value in (tops[-1], max(tops))] if tops else ["-", "-"]
    table.add_row(f"{step} of {max_steps}", losses[-1] if losses else "-", *shown)
    Console().print(table)
    print(f"checkpoint   {folder / NEWEST_FILE}" + (f", the best {folder / BEST_FILE}" if tops else ""))
    print(f"curves       {folder / CURVES_FILE}")
    print(f"TensorBoard  tensorboard --logdir {folder / TENSORBOARD_FOLDER}")
    if not finished:
        print("Stopped before the end; the same command with resume=auto goes on from here.")


def draw_curves(folder: Path, picture: Path) -> None:
    """Draws the training loss, the validation accuracy and the learning rate over the steps."""
    from matplotlib.figure import Figure

    rows = read_metrics(folder)
    train = [row for row in rows if row["split"] == "train"]
    val = [row for row in rows if row["split"] == "val"]
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    (loss, accuracy), (rate, speed) = figure.subplots(2, 2)
    loss.plot([r["step"] for r in train], [r["loss"] for r in train])
    loss.set(title="training loss", ylim=(0, None))
    for name, label in METRICS.items():
        rows = [r for r in val if name in r]
        if rows:
            accuracy.plot([r["step"] for r in rows], [100 * r[name] for r in rows], marker=".", label=label)
    accuracy.set(title="validation, one centre clip (%)", ylim=(0, 102))
    if val:
        accuracy.legend(loc="lower right")
    rate.plot([r["step"] for r in train], [r["lr"] for r in train])
    rate.set(title="learning rate", ylim=(0, None))
    speed.plot([r["step"] for r in train], [r["clips_per_second"] for r in train])
    speed.set(title="clips per second", ylim=(0, None))
    for axes in (loss, accuracy, rate, speed):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)
