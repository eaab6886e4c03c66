"""metrics.jsonl: one line of JSON for each logged step and each validation of a run."""

import json
from pathlib import Path
from typing import Any

from nlvideo.runtime import files

METRICS_FILE = "metrics.jsonl"
# What validations measure in percent, {key in the file: name for people}. Runs of 0.1 have no mean_class_accuracy.
VALIDATION_METRICS = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean of classes", "map": "mAP"}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a run's metrics; one that a kill cut in two is left out."""
    text = (folder / METRICS_FILE).read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def drop_later_metrics(folder: Path, step: int) -> None:
    """Removes the lines of steps after `step`, which a resumed run writes again."""
    if (folder / METRICS_FILE).exists():
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        files.write_text(folder / METRICS_FILE, "".join(f"{json.dumps(row)}\n" for row in kept))


def is_better(metric: str, value: float, than: float) -> bool:
    """Returns whether a validation is better than another one; of losses, the lower is."""
    return value < than if metric == "loss" else value > than


def without_gain(rows: list[dict[str, Any]], metric: str) -> int:
    """Returns how many validations in a row, the last ones, were not better than the best before them."""
    values = [row[metric] for row in rows if row["split"] == "val" and row.get(metric) is not None]
    best = 0
    for i, value in enumerate(values):
        if is_better(metric, value, values[best]):
            best = i
    return max(0, len(values) - 1 - best)
