"""The files that an evaluation leaves.

V videos, K classes.
"""

import csv
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nlvideo.data.lists.video_table import VideoTable
from nlvideo.evaluation.class_metrics import class_metrics
from nlvideo.evaluation.intervals import BOOTSTRAP
from nlvideo.evaluation.summary import Scores, per_class
from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.runtime.files import replacing, write_text

RESULT_FILE, SCORES_FILE, PREDICTIONS_FILE, CLASSES_FILE = "result.json", "scores.npz", "predictions.csv", "classes.csv"
SUBMISSION_FILE, LOCALIZATION_FILE = "submission_classify.txt", "submission_localize.txt"
METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_class_accuracy": "mean of classes",
    "map": "mAP",
    "map_official": "mAP, official rules",
    "localization_map": "localisation mAP",
    "f1_macro": "F1 (macro)",
    "ece": "calibration error (ECE)",
}
SHOWN_NAMES = METRIC_NAMES | {"mean_class_accuracy": "mean of classes (balanced accuracy)"}  # where there is room


def write_results(folder: Path, result: dict[str, Any], found: Scores, table: VideoTable) -> None:
    """Writes scores.npz, predictions.csv, classes.csv and, last, result.json, all in the order of the list."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / SCORES_FILE) as partial, open(partial, "wb") as file:
        names, classes = np.array(table.ids()), np.array(table.classes)
        np.savez(file, ids=names, classes=classes, scores=found.scores, targets=table.targets)
    _write_predictions(folder / PREDICTIONS_FILE, found, table)
    _write_classes(folder / CLASSES_FILE, found, table)
    if table.segments is not None:  # as Charades's lists have
        _write_submissions(folder, found, table)
    write_text(folder / RESULT_FILE, json.dumps(result, indent=1))


def _write_predictions(path: Path, found: Scores, table: VideoTable) -> None:
    k = min(5, len(table.classes))
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        header = [f"{what}{i}" for i in range(1, k + 1) for what in ("class", "score")]
        writer.writerow(["video", "target", *header])
        for i, name in enumerate(table.ids()):
            row = [name, table.target_names(i)]
            if i not in found.failures:
                for best in np.argsort(-found.scores[i], kind="stable")[:k]:
                    row += [table.classes[best], f"{found.scores[i, best]:.6f}"]
            writer.writerow(row)


def _write_classes(path: Path, found: Scores, table: VideoTable) -> None:
    rows = class_rows(table.classes, found.scores, table.targets)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.6f}" if isinstance(value, float) else value for key, value in row.items()})


def class_rows(classes: Sequence[str], scores: np.ndarray, targets: np.ndarray) -> list[dict[str, Any]]:
    """Returns what is said of each class, {column: value}: fractions, None where one is not defined.

    Args:
        classes: K names.
        scores: (V, K).
        targets: (V,) integers, or (V, K) bool for multi-label data.
    """
    multi_label = targets.ndim == 2
    counts, values = per_class(scores, targets, multi_label)
    found = class_metrics(scores, targets)
    columns = {
        "average precision" if multi_label else "accuracy": values,
        "precision": found.precision,
        "recall": found.recall,
        "f1": found.f1,
    }
    return [
        {"class": str(name), "videos": int(counts[k])}
        | {column: None if np.isnan(value[k]) else float(value[k]) for column, value in columns.items()}
        for k, name in enumerate(classes)
    ]


def _write_submissions(folder: Path, found: Scores, table: VideoTable) -> None:
    """Writes Charades's files: `id score ...` a video, and `id point score ...`, points counted from 1."""
    ids = [name.removesuffix(".mp4") for name in table.names()]

    def line(*words: Any, scores: np.ndarray) -> str:
        return " ".join([*map(str, words), *(f"{score:.7g}" for score in scores)]) + "\n"

    decoded = [i for i in range(len(table)) if i not in found.failures]
    with open(folder / SUBMISSION_FILE, "w") as file:
        file.writelines(line(ids[i], scores=found.scores[i]) for i in decoded)
    if found.clips.shape[1]:
        with open(folder / LOCALIZATION_FILE, "w") as file:
            for i in decoded:
                file.writelines(line(ids[i], p, scores=scores) for p, scores in enumerate(found.clips[i], 1))


class Evaluation(NamedTuple):
    """A finished evaluation, as its folder holds it."""

    folder: Path
    result: dict[str, Any]
    ids: np.ndarray  # (V,) names of the videos
    classes: np.ndarray  # (K,) names
    scores: np.ndarray  # (V, K)
    targets: np.ndarray  # (V,) int64, or (V, K) bool

    @property
    def multi_label(self) -> bool:
        return self.targets.ndim == 2


def read_results(folder: str | Path) -> Evaluation:
    """Returns what write_results wrote.

    Raises:
        UserError: the folder holds no finished evaluation.
    """
    folder = Path(folder)
    for name in (RESULT_FILE, SCORES_FILE):
        if not (folder / name).is_file():
            raise UserFileNotFoundError(
                f"{folder} holds no finished evaluation: {name} is missing; run nlvideo-evaluate."
            )
    broken = f"{folder} holds no evaluation that can be read"
    if not zipfile.is_zipfile(folder / SCORES_FILE):  # as one that was cut
        raise UserError(f"{broken}: {SCORES_FILE} is no whole npz file.")
    try:
        result = json.loads((folder / RESULT_FILE).read_text())
        with np.load(folder / SCORES_FILE) as held:
            arrays = [held[name] for name in ("ids", "classes", "scores", "targets")]
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{broken}: {error}") from None
    ids, classes, scores, targets = arrays
    size = (len(ids), len(classes))
    if not isinstance(result, dict) or scores.shape != size or targets.shape not in (size, size[:1]):
        raise UserError(f"{broken}: its arrays do not fit together.")
    return Evaluation(folder, result, ids, classes, scores, targets)


def shown_metrics(result: dict[str, Any]) -> dict[str, str]:
    """Returns {key: name} of the metrics that the table and the page show; results before some of them lack these."""
    return {
        key: name
        for key, name in SHOWN_NAMES.items()
        if key in result and not (key == "ece" and result[key] is None)  # scores that are no probabilities
    }


def interval_cell(result: Mapping[str, Any], key: str) -> str:
    """Returns "97.66 to 100.00 (Wilson)", in percent, or "" where the metric has no interval."""
    ends = result.get(f"{key}_interval")
    if not ends:
        return ""
    kind = result.get("interval_kinds", {}).get(key, BOOTSTRAP)  # which all were before kinds were written
    return "{:.2f} to {:.2f} ({})".format(*(100 * end for end in ends), kind)


def print_table(result: dict[str, Any], folder: Path) -> None:
    """Prints the scores and, in lines of their own that no terminal cuts, what could not be decoded and the files."""
    from rich.console import Console
    from rich.table import Table

    views = result["views"]
    seen = f"{result['num_videos']} videos, {result['num_undecodable']} undecodable"
    title = f"{views['num_clips']} x {views['num_crops']} views, {seen}"
    table = Table("score", "%", "interval and its kind", title=title)
    for key, name in shown_metrics(result).items():
        table.add_row(name, "-" if result[key] is None else f"{100 * result[key]:.2f}", interval_cell(result, key))
    table.caption = f"interval: {result['interval']}"
    Console().print(table)
    for row in result["undecodable"][:10]:
        print(f"undecodable, counted as wrong: {row['video']}: {row['reason']}")
    if result["num_undecodable"] > 10:
        print(f"... and {result['num_undecodable'] - 10} more, all in result.json")
    print(f"checkpoint   {result['checkpoint']}, step {result['step']}")
    print(f"results      {folder}/{RESULT_FILE}, {PREDICTIONS_FILE}, {CLASSES_FILE}, {SCORES_FILE}")
