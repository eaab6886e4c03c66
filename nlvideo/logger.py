"""What a run leaves to read: a line on the console, metrics.jsonl, TensorBoard and the picture of its curves."""

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

METRICS_FILE = "metrics.jsonl"
LEDGER_FILE = "bad_videos.csv"
LEDGER_COLUMNS = ("step", "epoch", "video", "reason", "replaced_by")
CURVES_FILE = "curves.png"
TENSORBOARD_FOLDER = "tensorboard"


class RunLogger:
    """Writes metrics of steps first_step .. max_steps into a run's folder; lines of later steps are dropped first."""

    def __init__(self, folder: Path, first_step: int, max_steps: int):
        self.folder, self.max_steps = folder, max_steps
        self._first_step, self._started = first_step, time.monotonic()
        metrics = folder / METRICS_FILE
        if metrics.exists():
            kept = [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= first_step]
            partial = metrics.with_suffix(".part")
            partial.write_text("".join(f"{line}\n" for line in kept))
            partial.replace(metrics)
        self._metrics = open(metrics, "a")
        self._ledger = folder / LEDGER_FILE
        if self._ledger.exists():
            with open(self._ledger, newline="", encoding="utf-8", errors="surrogateescape") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= first_step]
            partial = self._ledger.with_suffix(".part")
            _write_rows(partial, rows)
            partial.replace(self._ledger)
        self._board = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=first_step + 1)
        # A terminal gets a bar; a log file gets one line for each line of metrics.
        self._bar = tqdm(total=max_steps, initial=first_step, unit="step", disable=not sys.stderr.isatty())

    def last_top1(self) -> float:
        """Returns the last validation's top-1 that the file holds, nan if there is none."""
        rows = [row for row in self._rows() if row["split"] == "val"]
        return rows[-1]["top1"] if rows else float("nan")

    def has_validation(self, step: int) -> bool:
        return any(row["split"] == "val" and row["step"] == step for row in self._rows())

    def _rows(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / METRICS_FILE).read_text().splitlines()]

    def advance(self) -> None:
        self._bar.update()

    def log(self, split: str, step: int, values: dict[str, float]) -> None:
        """Records the values of one step (steps done so far) under "train" or "val"."""
        self._metrics.write(json.dumps({"split": split, "step": step, **values}) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar.disable:
            print(f"{split} {step}/{self.max_steps}  {text}  eta {self._eta(step)}", flush=True)
        elif split == "train":
            self._bar.set_postfix_str(text)
        else:
            self._bar.write(f"{split} {step}/{self.max_steps}  {text}")

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
            draw_curves(self.folder / METRICS_FILE, self.folder / CURVES_FILE)

    def _eta(self, step: int) -> str:
        done = step - self._first_step
        seconds = (time.monotonic() - self._started) / done * (self.max_steps - step) if done else 0
        return tqdm.format_interval(seconds)


def _write_rows(ledger: Path, rows: list[dict[str, Any]]) -> None:
    new = not ledger.exists()
    with open(ledger, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, LEDGER_COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draws the training loss, the validation accuracy and the learning rate over the steps."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    train = [row for row in rows if row["split"] == "train"]
    val = [row for row in rows if row["split"] == "val"]
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    (loss, accuracy), (rate, speed) = figure.subplots(2, 2)
    loss.plot([r["step"] for r in train], [r["loss"] for r in train])
    loss.set(title="training loss", ylim=(0, None))
    for name, label in (("top1", "top-1"), ("top5", "top-5")):
        accuracy.plot([r["step"] for r in val], [100 * r[name] for r in val], marker=".", label=label)
    accuracy.set(title="validation accuracy, one centre clip (%)", ylim=(0, 102))
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
