"""What an evaluation leaves: metrics with their intervals, and the files that hold them.

V videos, K classes.
"""

import csv
import json
import math
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nlvideo.data.lists.path_list import VideoTable
from nlvideo.evaluation import metrics
from nlvideo.evaluation.scoring import Found
from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.training.run_status import write_whole

RESULT_FILE, SCORES_FILE, PREDICTIONS_FILE, CLASSES_FILE = "result.json", "scores.npz", "predictions.csv", "classes.csv"
SUBMISSION_FILE, LOCALIZATION_FILE = "submission_classify.txt", "submission_localize.txt"
SHOWN = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_class_accuracy": "mean of classes",
    "map": "mAP",
    "map_official": "mAP, official rules",
    "localization_map": "localisation mAP",
}
INTERVAL = f"{metrics.LEVEL:.0%} percentile bootstrap over videos, {metrics.RESAMPLES} resamples".replace("%", " %")


class Scores(NamedTuple):
    """What one pass found, in the order of the table."""

    scores: np.ndarray  # (V, K) float32; NaN where a video gave none
    after: np.ndarray  # (V, num_clips + num_crops) ranks, or (V, num_clips + num_crops, K), see VideoScore
    clips: np.ndarray  # (V, num_clips, K), or (V, 0, K)
    failures: dict[int, str]  # index in the table -> reason


def merge_scores(parts: list[Found], table: VideoTable) -> Scores:
    """Returns the scores of all processes in the table's order.

    Raises:
        RuntimeError: a video was left out or came twice.
    """
    found = {video: value for part in parts for video, value in part.items()}
    counted = sum(len(part) for part in parts)
    if counted != len(table) or set(found) != set(range(len(table))):
        raise RuntimeError(f"{len(table)} videos, but {counted} results for {len(found)} of them.")
    failures = {video: found[video] for video in range(len(table)) if isinstance(found[video], str)}
    whole = [value for value in found.values() if not isinstance(value, str)]
    if not whole:
        raise UserError(
            f"None of the {len(table)} videos of {table.source} could be decoded; the first, {table.path(0)}: "
            f"{failures[0]}"
        )
    columns = []
    for i, example in enumerate(whole[0]):
        # a video without scores ranks behind every class
        empty = len(table.classes) if np.issubdtype(example.dtype, np.integer) else np.nan
        column = np.full((len(table), *example.shape), empty, example.dtype)
        for video, value in found.items():
            if not isinstance(value, str):
                column[video] = value[i]
        columns.append(column)
    return Scores(*columns, failures)


def summarize(found: Scores, table: VideoTable, num_clips: int) -> dict[str, Any]:
    """Returns the metrics as fractions, with the intervals that drawing other videos would give.

    A video that cannot be decoded counts as wrong, as a missing one does in the authors' test; the score over the
    decoded ones alone stands beside it.
    """
    values = list(np.moveaxis(found.after, 1, 0))
    measure = _measure_multi_label if table.multi_label else _measure_single_label
    result = measure(found, table)
    result["interval"] = INTERVAL
    for key, part in (("by_clips", values[:num_clips]), ("by_crops", values[num_clips:])):
        name = key.removeprefix("by_")
        result[key] = [{name: i, **_headlines(value, table)} for i, value in enumerate(part, 1)]
    result |= {
        "num_videos": len(table),
        "num_undecodable": len(found.failures),
        "num_missing": sum(not os.path.exists(table.path(i)) for i in found.failures),
        "undecodable": [{"video": table.name(i), "reason": reason} for i, reason in found.failures.items()],
    }
    return result


def _measure_single_label(found: Scores, table: VideoTable) -> dict[str, Any]:
    ranks = metrics.target_ranks(found.scores, table.targets)
    decoded = np.setdiff1d(np.arange(len(table)), list(found.failures))
    k = min(5, len(table.classes))
    return {
        "top1": metrics.topk_accuracy(ranks, 1),
        "top5": metrics.topk_accuracy(ranks, k),
        "mean_class_accuracy": metrics.mean_class_accuracy(ranks, table.targets),
        "top1_interval": metrics.accuracy_interval(ranks < 1),
        "top5_interval": metrics.accuracy_interval(ranks < k),
        "mean_class_accuracy_interval": metrics.class_accuracy_interval(ranks < 1, table.targets),
        "top1_decoded": metrics.topk_accuracy(ranks[decoded], 1),
    }


def _measure_multi_label(found: Scores, table: VideoTable) -> dict[str, Any]:
    if not table.targets.any():
        return {"map": None, "map_official": None, "map_all_videos": None}  # a test list, whose actions are not given
    official = metrics.without_actions_last(found.scores, table.targets)
    precisions = metrics.average_precisions(official, table.targets)
    decoded = np.setdiff1d(np.arange(len(table)), list(found.failures))
    result = {
        "map": metrics.mean_average_precision(official, table.targets),
        "map_official": _number(np.mean(precisions)),  # none where a class has no positive
        "map_all_videos": metrics.mean_average_precision(found.scores, table.targets),
        "map_interval": metrics.map_interval(official, table.targets),
        "map_decoded": _number(metrics.mean_average_precision(official[decoded], table.targets[decoded])),
        "num_classes_without_videos": int(np.isnan(precisions).sum()),
        "num_videos_without_actions": int((~table.targets.any(1)).sum()),
    }
    if found.clips.shape[1]:
        at = localization(found, table)
        result |= {
            "localization_points": found.clips.shape[1],  # 25 officially
            "localization_map": _number(metrics.mean_average_precision(*at)),
            "localization_map_official": _number(np.mean(metrics.average_precisions(*at))),
        }
    return result


def localization(found: Scores, table: VideoTable) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores (V * P, K) at P points of each video and which actions go on there, (V * P, K) bool.

    Point p of P lies at p / P of the length that the list gives (Charades_v1_localize.m).
    """
    lengths, points = table.segments.lengths, found.clips.shape[1]
    targets = [table.segments.at(v, p / points * lengths[v]) for v in range(len(table)) for p in range(points)]
    return found.clips.reshape(len(targets), -1), np.array(targets)


def _headlines(value: np.ndarray, table: VideoTable) -> dict[str, float]:
    if not table.multi_label:
        k = min(5, len(table.classes))
        return {"top1": metrics.topk_accuracy(value, 1), "top5": metrics.topk_accuracy(value, k)}
    if not table.targets.any():
        return {"map": None}
    official = metrics.without_actions_last(value, table.targets)
    return {"map": metrics.mean_average_precision(official, table.targets)}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def write_results(folder: Path, result: dict[str, Any], found: Scores, table: VideoTable) -> None:
    """Writes scores.npz, predictions.csv and, last, result.json, all in the order of the list."""
    folder.mkdir(parents=True, exist_ok=True)
    names = table.names()
    np.savez(folder / SCORES_FILE, ids=np.array(names), classes=np.array(table.classes), scores=found.scores,
             targets=table.targets)  # fmt: skip
    k = min(5, len(table.classes))
    with open(folder / PREDICTIONS_FILE, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        header = [f"{what}{i}" for i in range(1, k + 1) for what in ("class", "score")]
        writer.writerow(["video", "target", *header])
        for i, name in enumerate(names):
            row = [name, table.target_names(i)]
            if i not in found.failures:
                for best in np.argsort(-found.scores[i], kind="stable")[:k]:
                    row += [table.classes[best], f"{found.scores[i, best]:.6f}"]
            writer.writerow(row)
    with open(folder / CLASSES_FILE, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "videos", "average precision" if table.multi_label else "accuracy"])
        for name, count, value in zip(
            table.classes, *per_class(found.scores, table.targets, table.multi_label), strict=True
        ):
            writer.writerow([name, count, "" if np.isnan(value) else f"{value:.6f}"])
    if table.multi_label:
        _write_submissions(folder, found, table)
    write_whole(folder / RESULT_FILE, json.dumps(result, indent=1))


def per_class(scores: np.ndarray, targets: np.ndarray, multi_label: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns each class's number of videos (K,) and its accuracy or average precision (K,), nan without videos."""
    if multi_label:
        official = metrics.without_actions_last(scores, targets)
        return targets.sum(0), metrics.average_precisions(official, targets)
    ranks = metrics.target_ranks(scores, targets)
    num_classes = scores.shape[1]
    return np.bincount(targets, minlength=num_classes), metrics.class_accuracies(ranks, targets, num_classes)


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


def print_table(result: dict[str, Any], folder: Path) -> None:
    """Prints the scores and, in lines of their own that no terminal cuts, what could not be decoded and the files."""
    from rich.console import Console
    from rich.table import Table

    views = result["views"]
    seen = f"{result['num_videos']} videos, {result['num_undecodable']} undecodable"
    table = Table("score", "%", "interval", title=f"{views['num_clips']} x {views['num_crops']} views, {seen}")
    for key, name in SHOWN.items():
        if key in result:
            ends = result.get(f"{key}_interval")
            cell = "{:.2f} to {:.2f}".format(*(100 * end for end in ends)) if ends else ""
            table.add_row(name, "-" if result[key] is None else f"{100 * result[key]:.2f}", cell)
    table.caption = f"interval: {result['interval']}"
    Console().print(table)
    for row in result["undecodable"][:10]:
        print(f"undecodable, counted as wrong: {row['video']}: {row['reason']}")
    if result["num_undecodable"] > 10:
        print(f"... and {result['num_undecodable'] - 10} more, all in result.json")
    print(f"checkpoint   {result['checkpoint']}, step {result['step']}")
    print(f"results      {folder}/{RESULT_FILE}, {PREDICTIONS_FILE}, {CLASSES_FILE}, {SCORES_FILE}")
