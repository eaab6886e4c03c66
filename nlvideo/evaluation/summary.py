"""What an evaluation found, as numbers: metrics with their intervals.

V videos, K classes.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from nlvideo.data.lists.video_table import VideoTable
from nlvideo.data.shards.video_file import is_missing
from nlvideo.data.stores.addresses import is_address
from nlvideo.data.stores.local_copy import is_there
from nlvideo.evaluation import intervals, metrics
from nlvideo.evaluation.calibration import calibration
from nlvideo.evaluation.class_metrics import class_metrics, f1_interval
from nlvideo.evaluation.kept_scores import VideoScores
from nlvideo.runtime.errors import RunFailed


class Scores(NamedTuple):
    """What one pass found, in the order of the table."""

    scores: np.ndarray  # (V, K) float32; NaN where a video gave none
    after: np.ndarray  # (V, num_clips + num_crops) ranks, or (V, num_clips + num_crops, K), see VideoScore
    clips: np.ndarray  # (V, num_clips, K), or (V, 0, K)
    failures: dict[int, str]  # index in the table -> reason


def merge_scores(parts: list[VideoScores], table: VideoTable) -> Scores:
    """Returns the scores of all processes in the table's order.

    Raises:
        RuntimeError: a video was left out or came twice.
    """
    found = {video: value for part in parts for video, value in part.items()}
    counted = sum(len(part) for part in parts)
    if counted != len(table) or set(found) != set(range(len(table))):
        raise RuntimeError(f"{len(table)} videos, but {counted} results for {len(found)} of them.")
    reasons = ((video, found[video]) for video in range(len(table)))
    failures = {video: reason for video, reason in reasons if isinstance(reason, str)}
    whole = [value for value in found.values() if not isinstance(value, str)]
    if not whole:
        raise RunFailed(
            f"None of the {len(table)} videos of {table.source} could be decoded; the first, {table.path(0)}: "
            f"{failures[0]}"
        )
    columns: list[np.ndarray] = []
    for i, example in enumerate(whole[0]):
        # a video without scores ranks behind every class
        empty = len(table.classes) if np.issubdtype(example.dtype, np.integer) else np.nan
        column = np.full((len(table), *example.shape), empty, example.dtype)
        for video, value in found.items():
            if not isinstance(value, str):
                column[video] = value[i]
        columns.append(column)
    scores, after, clips = columns
    return Scores(scores, after, clips, failures)


def _is_gone(path: str) -> bool:
    return not is_there(path) if is_address(path) else is_missing(path)


def summarize(found: Scores, table: VideoTable, num_clips: int, pooling: str) -> dict[str, Any]:
    """Returns the metrics as fractions, with the intervals that drawing other videos would give.

    A video that cannot be decoded counts as wrong, as a missing one does in the authors' test; the score over the
    decoded ones alone stands beside it.

    Args:
        num_clips: of each video.
        pooling: of the views' scores: mean, sum or max.
    """
    values = list(np.moveaxis(found.after, 1, 0))
    measure = _measure_multi_label if table.multi_label else _measure_single_label
    result = _with_kinds(measure(found, table) | _measure_decisions(found, table))
    calibrated = calibration(found.scores, table.targets, pooling)
    result["ece"] = calibrated.error if calibrated else None
    result["calibration_bins"] = calibrated.rows() if calibrated else None
    for key, part in (("by_clips", values[:num_clips]), ("by_crops", values[num_clips:])):
        name = key.removeprefix("by_")
        result[key] = [{name: i, **_headlines(value, table)} for i, value in enumerate(part, 1)]
    result |= {
        "num_videos": len(table),
        "num_undecodable": len(found.failures),
        "num_missing": sum(_is_gone(table.path(i)) for i in found.failures),
        "undecodable": [{"video": table.name(i), "reason": reason} for i, reason in found.failures.items()],
    }
    return result


def _with_kinds(result: dict[str, Any]) -> dict[str, Any]:
    """Returns the result with each interval as its two ends, and the kinds of all in a place of their own."""
    found = {key: value for key, value in result.items() if isinstance(value, intervals.Interval)}
    kinds = {key.removesuffix("_interval"): value.kind for key, value in found.items()}
    ends = {key: list(value.ends) for key, value in found.items()}
    return result | ends | {"interval_kinds": kinds, "interval": intervals.describe(kinds.values())}


def _measure_decisions(found: Scores, table: VideoTable) -> dict[str, Any]:
    """Returns precision, recall and F1; None for a test list, whose actions are not given."""
    means = class_metrics(found.scores, table.targets).means()
    interval = f1_interval(found.scores, table.targets) if means["f1_macro"] is not None else None
    return {**means, "f1_macro_interval": interval}


def _measure_single_label(found: Scores, table: VideoTable) -> dict[str, Any]:
    ranks = metrics.target_ranks(found.scores, table.targets)
    decoded = np.setdiff1d(np.arange(len(table)), list(found.failures))
    k = min(5, len(table.classes))
    mean_of_classes = metrics.mean_class_accuracy(ranks, table.targets)
    return {
        "top1": metrics.topk_accuracy(ranks, 1),
        "top5": metrics.topk_accuracy(ranks, k),
        "mean_class_accuracy": mean_of_classes,
        "balanced_accuracy": mean_of_classes,  # scikit-learn's name of the same number
        "top1_interval": intervals.accuracy_interval(ranks < 1),
        "top5_interval": intervals.accuracy_interval(ranks < k),
        "mean_class_accuracy_interval": intervals.class_accuracy_interval(ranks < 1, table.targets),
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
        "map_interval": intervals.map_interval(official, table.targets),
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
    """Returns the scores (V * P, K) at P points of each video and which actions take place there, (V * P, K) bool.

    Point p of P lies at p / P of the length that the list gives (Charades_v1_localize.m).
    """
    assert table.segments is not None  # clips are kept only where they can be localised
    segments, points = table.segments, found.clips.shape[1]
    lengths = segments.lengths
    targets = [segments.at(v, p / points * lengths[v]) for v in range(len(table)) for p in range(points)]
    return found.clips.reshape(len(targets), -1), np.array(targets)


def _headlines(value: np.ndarray, table: VideoTable) -> dict[str, float | None]:
    if not table.multi_label:
        k = min(5, len(table.classes))
        return {"top1": metrics.topk_accuracy(value, 1), "top5": metrics.topk_accuracy(value, k)}
    if not table.targets.any():
        return {"map": None}
    official = metrics.without_actions_last(value, table.targets)
    return {"map": metrics.mean_average_precision(official, table.targets)}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def per_class(scores: np.ndarray, targets: np.ndarray, multi_label: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns each class's number of videos (K,) and its accuracy or average precision (K,), nan without videos."""
    if multi_label:
        official = metrics.without_actions_last(scores, targets)
        return targets.sum(0), metrics.average_precisions(official, targets)
    ranks = metrics.target_ranks(scores, targets)
    num_classes = scores.shape[1]
    return np.bincount(targets, minlength=num_classes), metrics.class_accuracies(ranks, targets, num_classes)
