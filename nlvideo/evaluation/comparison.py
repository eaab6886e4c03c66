"""Compares evaluations of the same videos: metric differences with intervals, what changed, and ensembles.

V videos, K classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nlvideo.evaluation import metrics
from nlvideo.evaluation.alignment import listed_names
from nlvideo.evaluation.intervals import (
    Interval,
    accuracy_difference_interval,
    class_accuracy_difference_interval,
    map_difference_interval,
)
from nlvideo.evaluation.result_files import Evaluation
from nlvideo.evaluation.significance import detectable_difference, detectable_errors, mcnemar_p
from nlvideo.evaluation.summary import per_class
from nlvideo.runtime.errors import UserError

ENSEMBLE = "ensemble"
# Settings that can explain a difference between two runs; the checkpoint and the views are compared too.
COMPARED_SETTINGS = "num_frames frame_stride activation batch_norm precision decoder device_type mean std".split()


@dataclass
class MetricDifference:
    """A run's metric minus the baseline's, as fractions."""

    value: float
    interval: Interval  # paired
    below: float | None = None  # fraction of resamples below zero; mAP only


@dataclass
class Change:
    """A video that two runs score differently.

    Pairs hold the baseline first. The best classes are "" for an undecodable video and for multi-label data.
    """

    way: str  # fixed, broken or other; for multi-label data risen, fallen or decoded by one
    video: str
    target: str
    classes: tuple[str, str]  # the best ones
    scores: tuple[float, float]  # of the best class; for multi-label data the mean over the video's actions


@dataclass
class Comparison:
    """A run against the baseline."""

    name: str
    run: Evaluation
    differences: dict[str, MetricDifference]  # by metric, the main one first
    counts: np.ndarray  # (K,) videos of each class
    values: np.ndarray  # (2, K) accuracy or average precision of the baseline and the run; NaN without videos
    changes: list[Change]
    discordant: tuple[int, int] | None  # videos that only the baseline, only the run gets right; None for multi-label
    detectable: float  # difference of the main metric, see significance.detectable_difference

    @property
    def p(self) -> float:
        """Returns that of McNemar's exact test, NaN for multi-label data."""
        return float("nan") if self.discordant is None else mcnemar_p(self.discordant)

    @property
    def gains(self) -> np.ndarray:
        """Returns (K,) the run's value of each class minus the baseline's."""
        return self.values[1] - self.values[0]

    def sorted_classes(self) -> np.ndarray:
        """Returns the indices of the classes that have videos, largest gain first, ties in class order."""
        order = np.argsort(-self.gains, kind="stable")
        return order[~np.isnan(self.gains[order])]


def undecodable_notes(runs: dict[str, Evaluation]) -> list[str]:
    """Returns a note for each run with undecodable videos."""
    found = {name: run.ids[_undecodable(run)] for name, run in runs.items()}
    return [
        f"{name}: {len(ids):,} undecodable, counted as wrong ({listed_names(ids)})"
        for name, ids in found.items()
        if len(ids)
    ]


def _undecodable(run: Evaluation) -> np.ndarray:
    """Returns (V,) bool."""
    return np.isnan(run.scores).any(1)


def average_scores(
    runs: dict[str, Evaluation], weights: list[float] | None, file: Path
) -> tuple[Evaluation, list[str]]:
    """Returns the mean of the runs' scores as a run, and notes on it.

    A video gets the mean over the runs that decoded it.

    Args:
        runs: by name, aligned.
        weights: one per run; None: equal.
        file: the name of the new run.

    Raises:
        UserError: the scores are on different scales.
    """
    poolings = {name: run.result.get("views", {}).get("pooling") for name, run in runs.items()}
    if len(set(poolings.values())) > 1:
        listed = ", ".join(f"{name} {pooling}" for name, pooling in poolings.items())
        raise UserError(f"Scores with different pooling over views are on different scales: {listed}.")
    scores = np.stack([run.scores for run in runs.values()]).astype(np.float64)  # (runs, V, K)
    known = ~np.isnan(scores).any(2, keepdims=True)
    share = known * np.reshape(weights or [1.0] * len(runs), (-1, 1, 1))
    with np.errstate(invalid="ignore"):
        mean = np.where(known, scores * share, 0).sum(0) / share.sum(0)  # NaN where no run has scores
    notes, partly = [], known.any(0) & ~known.all(0)
    if partly.any():
        notes.append(f"{ENSEMBLE}: {partly.sum():,} videos are averaged over only the runs that decoded them")
    views = [run.result.get("views", {}) for run in runs.values()]
    if "sum" in poolings.values() and len({(view.get("num_clips"), view.get("num_crops")) for view in views}) > 1:
        notes.append(f"{ENSEMBLE}: sums over more views weigh more; --weights can balance them")
    first = next(iter(runs.values()))
    return first._replace(folder=file, result={}, scores=mean.astype(np.float32)), notes


def main_metrics(run: Evaluation) -> dict[str, float]:
    """Returns the metrics that are compared, as fractions, the main one first."""
    if run.multi_label:
        return {"map": float(np.nanmean(per_class(run.scores, run.targets, True)[1]))}
    ranks = metrics.target_ranks(run.scores, run.targets)
    return {
        "top1": metrics.topk_accuracy(ranks, 1),
        "top5": metrics.topk_accuracy(ranks, min(5, len(run.classes))),
        "mean_class_accuracy": metrics.mean_class_accuracy(ranks, run.targets),
    }


def compare_to_baseline(name: str, run: Evaluation, baseline: Evaluation) -> Comparison:
    """Returns the comparison of two aligned runs."""
    (counts, before), (_, after) = (per_class(one.scores, one.targets, one.multi_label) for one in (baseline, run))
    values = np.stack([before, after])
    if run.multi_label:
        difference, detectable = _map_difference(run, baseline)
        changes = _changed_actions(run, baseline)
        return Comparison(name, run, {"map": difference}, counts, values, changes, None, detectable)
    a, b = (metrics.target_ranks(one.scores, one.targets) < 1 for one in (baseline, run))
    discordant = int((a & ~b).sum()), int((b & ~a).sum())
    differences, changes = accuracy_differences(run, baseline), _changed_classes(run, baseline)
    detectable = detectable_difference(b[None].astype(float) - a)
    return Comparison(name, run, differences, counts, values, changes, discordant, detectable)


def accuracy_differences(run: Evaluation, baseline: Evaluation) -> dict[str, MetricDifference]:
    """Returns the accuracy differences with paired intervals: each resample draws the same videos for both runs."""
    a, b = (metrics.target_ranks(one.scores, one.targets) for one in (baseline, run))
    top1, top5 = ((b < k).astype(float) - (a < k) for k in (1, min(5, len(run.classes))))
    before, after = main_metrics(baseline), main_metrics(run)
    found = {
        "top1": accuracy_difference_interval(top1),
        "top5": accuracy_difference_interval(top5),
        "mean_class_accuracy": class_accuracy_difference_interval(top1, run.targets),
    }
    return {key: MetricDifference(after[key] - before[key], found[key]) for key in after}


def _map_difference(run: Evaluation, baseline: Evaluation) -> tuple[MetricDifference, float]:
    """Returns the difference, and the smallest one that videos with the resamples' spread can show."""
    official = [metrics.without_actions_last(one.scores, one.targets) for one in (baseline, run)]
    drawn = []

    def difference(weights: np.ndarray) -> np.ndarray:
        a, b = (metrics.map_of_draws(scores, run.targets, weights) for scores in official)
        drawn.append(b - a)
        return drawn[-1]

    found = map_difference_interval(difference, run.targets)
    value = main_metrics(run)["map"] - main_metrics(baseline)["map"]
    all_drawn = np.concatenate(drawn)
    spread = float(np.nanstd(all_drawn))
    detectable = spread * detectable_errors(len(run.ids) - 1) if spread else float("nan")
    return MetricDifference(value, found, float(np.mean(all_drawn < 0))), detectable


def _changed_classes(run: Evaluation, baseline: Evaluation) -> list[Change]:
    """Returns the videos whose best class changed: first those fixed, then those broken, then the others."""
    pair = (baseline, run)
    best = np.stack([metrics.best_classes(one.scores) for one in pair])
    (a, b), names = (best == run.targets), [*run.classes.tolist(), ""]
    changes = []
    for way, selected in (("fixed", b & ~a), ("broken", a & ~b), ("other", ~a & ~b & (best[0] != best[1]))):
        for v in np.flatnonzero(selected):
            before, after = (
                float(one.scores[v, k]) if k >= 0 else np.nan for one, k in zip(pair, best[:, v], strict=True)
            )
            classes = names[best[0, v]], names[best[1, v]]
            changes.append(Change(way, str(run.ids[v]), names[run.targets[v]], classes, (before, after)))
    return changes


def _changed_actions(run: Evaluation, baseline: Evaluation) -> list[Change]:
    """Returns the videos whose actions' mean score changed, largest rise first, undecodable ones last."""
    counted = np.flatnonzero(run.targets.any(1))
    targets = run.targets[counted]
    before, after = ((np.where(targets, one.scores[counted], 0)).sum(1) / targets.sum(1) for one in (baseline, run))
    rise = after - before
    in_neither = np.isnan(before) & np.isnan(after)
    changes = []
    for i in np.argsort(-rise, kind="stable"):
        if rise[i] and not in_neither[i]:
            v = counted[i]
            way = "decoded by one" if np.isnan(rise[i]) else "risen" if rise[i] > 0 else "fallen"
            target = ";".join(run.classes[run.targets[v]])
            changes.append(Change(way, str(run.ids[v]), target, ("", ""), (float(before[i]), float(after[i]))))
    return changes


def differing_settings(baseline: Evaluation, run: Evaluation) -> list[str]:
    """Returns a note on the settings in which the runs differ, or nothing."""
    a, b = (_settings(one.result) for one in (baseline, run))
    keys = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
    if "checkpoint" in keys and _same_checkpoint(baseline, run):
        keys.remove("checkpoint")
    parts = [f"{key} ({a.get(key, '-')} | {b.get(key, '-')})" for key in keys]
    return [f"differ in: {', '.join(parts)}"] if parts else []


def _same_checkpoint(a: Evaluation, b: Evaluation) -> bool:
    """Returns whether both evaluated the same checkpoint, wherever it was stored."""
    digests = {one.result.get("checkpoint_sha256") for one in (a, b)}
    return len(digests) == 1 and None not in digests


def _settings(result: dict[str, Any]) -> dict[str, Any]:
    found = {f"views.{key}": value for key, value in result.get("views", {}).items()}
    found |= {key: result[key] for key in COMPARED_SETTINGS if key in result}
    if "checkpoint" in result:
        digest = result.get("checkpoint_sha256", "")[:8]
        found = {"checkpoint": f"{result['checkpoint']}, step {result.get('step', '-')}, {digest}"} | found
    return found
