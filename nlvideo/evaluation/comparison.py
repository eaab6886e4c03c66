"""Two evaluations of the same videos: differences and their intervals, what changed, and the mean of their scores.

V videos, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from nlvideo.evaluation import metrics
from nlvideo.evaluation.result_files import Evaluation, per_class
from nlvideo.runtime.errors import UserError

SHOWN_NAMES = 3  # of videos or classes in a message
ENSEMBLE = "ensemble"
# What a difference may come from, beside the network; the checkpoint and the views are added.
PROTOCOL = "num_frames frame_stride activation batch_norm precision decoder device_type mean std".split()


@dataclass
class Difference:
    """A run's metric minus the baseline's, as fractions."""

    value: float
    ends: list[float]  # of the interval
    below: float | None = None  # share of resamples below zero, where it was counted


@dataclass
class Change:
    """A video that two runs see differently; best classes are "" for an undecodable video or multi-label data."""

    way: str
    video: str
    target: str
    classes: tuple[str, str]  # the best ones, of the baseline and of the run
    scores: tuple[float, float]  # of the best class, or the mean of the video's actions


@dataclass
class Comparison:
    """A run against the baseline."""

    name: str
    run: Evaluation
    differences: dict[str, Difference]  # metric -> difference, the main one first
    counts: np.ndarray  # (K,) videos of each class
    values: np.ndarray  # (2, K) accuracy or average precision, of the baseline and of the run; nan without videos
    changes: list[Change]
    discordant: tuple[int, int] | None  # videos that only the baseline, only the run has right; None for multi-label

    @property
    def gains(self) -> np.ndarray:
        return self.values[1] - self.values[0]

    def sorted_classes(self) -> np.ndarray:
        """Returns the classes that have videos, largest gain first, equal ones in their order."""
        order = np.argsort(-self.gains, kind="stable")
        return order[~np.isnan(self.gains[order])]


def aligned(runs: dict[str, Evaluation], common: bool) -> tuple[dict[str, Evaluation], list[str]]:
    """Returns the runs with the videos and classes in the baseline's order, and what was left out for that.

    Raises:
        UserError: the runs cannot be compared.
    """
    (first, baseline), *others = runs.items()
    for name, run in others:
        if run.multi_label != baseline.multi_label:
            kinds = ("one class", "several classes")
            raise UserError(
                f"{first} has {kinds[baseline.multi_label]} a video, {name} {kinds[run.multi_label]}: "
                "they share no metric."
            )
        runs = runs | {name: with_classes(run, baseline, (first, name))}
        if not np.array_equal(run.ids, baseline.ids):
            check_list(runs[name], baseline, (first, name), common)
        refuse_other_targets(runs[name], baseline, (first, name))
    kept = np.logical_and.reduce([np.isin(baseline.ids, run.ids) for run in runs.values()])
    if not kept.any():
        raise UserError("No video is in the lists of all runs.")
    notes = [
        f"{name}: {len(run.ids) - kept.sum()} of {len(run.ids)} videos left out, which are not in all lists"
        for name, run in runs.items()
        if len(run.ids) > kept.sum()
    ]
    runs = {name: chosen(run, baseline.ids[kept]) for name, run in runs.items()}
    if baseline.multi_label and not runs[first].targets.any():
        raise UserError("No video of the list has an action, so there is nothing to compare by.")
    return runs, notes


def with_classes(run: Evaluation, baseline: Evaluation, names: tuple[str, str]) -> Evaluation:
    """Returns the run with its classes in the baseline's order."""
    if np.array_equal(run.classes, baseline.classes):
        return run
    place = {name: k for k, name in enumerate(run.classes.tolist())}
    only = only_in(baseline.classes, run.classes, names)
    if only or not len(place) == len(run.classes) == len(baseline.classes):
        raise UserError(f"The classes of {names[0]} and {names[1]} differ: {only or 'a name occurs twice'}.")
    order = np.array([place[name] for name in baseline.classes.tolist()])
    targets = run.targets[:, order] if run.multi_label else np.argsort(order)[run.targets]
    return run._replace(classes=baseline.classes, scores=run.scores[:, order], targets=targets)


def check_list(run: Evaluation, baseline: Evaluation, names: tuple[str, str], common: bool) -> None:
    """Refuses lists with other videos, which `common` allows, or that cannot be matched by name."""
    for name, one in zip(names, (baseline, run), strict=True):
        found, counts = np.unique(one.ids, return_counts=True)
        if len(found) < len(one.ids):
            raise UserError(f"The list of {name} names videos twice ({some(found[counts > 1])}), so none is matched.")
    only = only_in(baseline.ids, run.ids, names)
    if only and not common:
        both = np.isin(baseline.ids, run.ids).sum()
        raise UserError(
            f"{names[0]} and {names[1]} scored other videos: {only}; --common compares the {both:,} that both have."
        )


def refuse_other_targets(run: Evaluation, baseline: Evaluation, names: tuple[str, str]) -> None:
    ids = baseline.ids[np.isin(baseline.ids, run.ids)]
    differs = chosen(baseline, ids).targets != chosen(run, ids).targets
    differs = differs.any(1) if run.multi_label else differs
    if differs.any():
        raise UserError(
            f"{names[0]} and {names[1]} have other targets for {differs.sum():,} of {len(ids):,} videos "
            f"({some(ids[differs])}), so they cannot be compared."
        )


def chosen(run: Evaluation, ids: np.ndarray) -> Evaluation:
    """Returns the run with these videos alone, in this order."""
    if np.array_equal(run.ids, ids):
        return run
    place = {name: v for v, name in enumerate(run.ids.tolist())}
    order = [place[name] for name in ids.tolist()]
    return run._replace(ids=ids, scores=run.scores[order], targets=run.targets[order])


def only_in(a: np.ndarray, b: np.ndarray, names: tuple[str, str]) -> str:
    """Returns "3 only in A (x, y, ...)" of both, "" where they have the same."""
    parts = []
    for name, one, other in ((names[0], a, b), (names[1], b, a)):
        missing = one[~np.isin(one, other)]
        if len(missing):
            parts.append(f"{len(missing):,} only in {name} ({some(missing)})")
    return ", ".join(parts)


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")


def undecodable_notes(runs: dict[str, Evaluation]) -> list[str]:
    found = {name: run.ids[undecodable(run)] for name, run in runs.items()}
    return [
        f"{name}: {len(ids):,} undecodable, counted as wrong ({some(ids)})" for name, ids in found.items() if len(ids)
    ]


def undecodable(run: Evaluation) -> np.ndarray:
    return np.isnan(run.scores).any(1)


def ensemble(runs: dict[str, Evaluation], weights: list[float] | None, file: Path) -> tuple[Evaluation, list[str]]:
    """Returns the mean of the scores as a run, and notes on it. A video has the mean of the runs that decoded it.

    Raises:
        UserError: the scores are on different scales.
    """
    poolings = {name: run.result.get("views", {}).get("pooling") for name, run in runs.items()}
    if len(set(poolings.values())) > 1:
        listed = ", ".join(f"{name} {pooling}" for name, pooling in poolings.items())
        raise UserError(f"Scores pooled over views in different ways are on different scales: {listed}.")
    scores = np.stack([run.scores for run in runs.values()]).astype(np.float64)  # (N, V, K)
    known = ~np.isnan(scores).any(2, keepdims=True)
    share = known * np.reshape(weights or [1.0] * len(runs), (-1, 1, 1))
    with np.errstate(invalid="ignore"):
        mean = np.where(known, scores * share, 0).sum(0) / share.sum(0)  # NaN where no run has scores
    notes, partly = [], known.any(0) & ~known.all(0)
    if partly.any():
        notes.append(f"{ENSEMBLE}: {partly.sum():,} videos have the mean of those runs alone that decoded them")
    views = [run.result.get("views", {}) for run in runs.values()]
    if "sum" in poolings.values() and len({(view.get("num_clips"), view.get("num_crops")) for view in views}) > 1:
        notes.append(f"{ENSEMBLE}: sums over more views weigh more; --weights can make up for it")
    first = next(iter(runs.values()))
    return first._replace(folder=file, result={}, scores=mean.astype(np.float32)), notes


def measured(run: Evaluation) -> dict[str, float]:
    """Returns the metrics as fractions, the main one first."""
    if run.multi_label:
        return {"map": float(np.nanmean(per_class(run.scores, run.targets, True)[1]))}
    ranks = metrics.target_ranks(run.scores, run.targets)
    return {
        "top1": metrics.topk_accuracy(ranks, 1),
        "top5": metrics.topk_accuracy(ranks, min(5, len(run.classes))),
        "mean_class_accuracy": metrics.mean_class_accuracy(ranks, run.targets),
    }


def compared(name: str, run: Evaluation, baseline: Evaluation) -> Comparison:
    (counts, before), (_, after) = (per_class(one.scores, one.targets, one.multi_label) for one in (baseline, run))
    if run.multi_label:
        differences, changes, discordant = map_difference(run, baseline), changed_actions(run, baseline), None
    else:
        a, b = right(baseline), right(run)
        discordant = int((a & ~b).sum()), int((b & ~a).sum())
        differences, changes = accuracy_differences(run, baseline), changed_classes(run, baseline)
    return Comparison(name, run, differences, counts, np.stack([before, after]), changes, discordant)


def right(run: Evaluation) -> np.ndarray:
    return metrics.target_ranks(run.scores, run.targets) < 1


def accuracy_differences(run: Evaluation, baseline: Evaluation) -> dict[str, Difference]:
    """Returns the differences of accuracies; each drawn video brings both runs' outcomes: 1, 0 or -1 together."""
    a, b = (metrics.target_ranks(one.scores, one.targets) for one in (baseline, run))
    top1, top5 = ((b < k).astype(float) - (a < k) for k in (1, min(5, len(run.classes))))
    before, after = measured(baseline), measured(run)
    ends = {
        "top1": metrics.accuracy_interval(top1),
        "top5": metrics.accuracy_interval(top5),
        "mean_class_accuracy": metrics.class_accuracy_interval(top1, run.targets),
    }
    return {key: Difference(after[key] - before[key], ends[key]) for key in after}


def map_difference(run: Evaluation, baseline: Evaluation) -> dict[str, Difference]:
    official = [metrics.without_actions_last(one.scores, one.targets) for one in (baseline, run)]
    drawn = []

    def difference(weights: np.ndarray) -> np.ndarray:
        a, b = (metrics.map_of_draws(scores, run.targets, weights) for scores in official)
        drawn.append(b - a)
        return drawn[-1]

    ends = metrics.interval(difference, len(run.ids))
    value = measured(run)["map"] - measured(baseline)["map"]
    return {"map": Difference(value, ends, float(np.mean(np.concatenate(drawn) < 0)))}


def mcnemar(discordant: tuple[int, int]) -> float:
    """Returns the two-sided p: how often a fair coin would part the discordant videos at least as unevenly."""
    return float(binomtest(discordant[0], sum(discordant)).pvalue) if sum(discordant) else 1.0


def changed_classes(run: Evaluation, baseline: Evaluation) -> list[Change]:
    """Returns the videos with another best class, those fixed first, then broken, then otherwise changed."""
    pair = (baseline, run)
    best = np.stack([np.where(undecodable(one), -1, np.nan_to_num(one.scores, nan=-np.inf).argmax(1)) for one in pair])
    (a, b), names = (best == run.targets), [*run.classes.tolist(), ""]
    found = []
    for way, chosen_ones in (("fixed", b & ~a), ("broken", a & ~b), ("other", ~a & ~b & (best[0] != best[1]))):
        for v in np.flatnonzero(chosen_ones):
            scores = [float(one.scores[v, k]) if k >= 0 else np.nan for one, k in zip(pair, best[:, v], strict=True)]
            target = names[run.targets[v]]
            found.append(Change(way, str(run.ids[v]), target, (names[best[0, v]], names[best[1, v]]), tuple(scores)))
    return found


def changed_actions(run: Evaluation, baseline: Evaluation) -> list[Change]:
    """Returns the videos whose actions have another mean score, the largest rise first, undecodable ones last."""
    counted = np.flatnonzero(run.targets.any(1))
    targets = run.targets[counted]
    means = [(np.where(targets, one.scores[counted], 0)).sum(1) / targets.sum(1) for one in (baseline, run)]
    change = means[1] - means[0]
    both = np.isnan(means[0]) & np.isnan(means[1])
    found = []
    for i in np.argsort(-change, kind="stable"):
        if change[i] and not both[i]:
            v = counted[i]
            way = "decoded by one" if np.isnan(change[i]) else "risen" if change[i] > 0 else "fallen"
            target = ";".join(run.classes[run.targets[v]])
            found.append(Change(way, str(run.ids[v]), target, ("", ""), (float(means[0][i]), float(means[1][i]))))
    return found


def differing_protocol(baseline: Evaluation, run: Evaluation) -> list[str]:
    """Returns a note on what differs in how the scores were made."""
    a, b = (protocol(one.result) for one in (baseline, run))
    keys = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
    if "checkpoint" in keys and one_checkpoint(baseline, run):
        keys.remove("checkpoint")
    parts = [f"{key} ({a.get(key, '-')} | {b.get(key, '-')})" for key in keys]
    return [f"differ in: {', '.join(parts)}"] if parts else []


def one_checkpoint(a: Evaluation, b: Evaluation) -> bool:
    """Says whether both are of the same file, which may have lain in two places."""
    digests = {one.result.get("checkpoint_sha256") for one in (a, b)}
    return len(digests) == 1 and None not in digests


def protocol(result: dict[str, Any]) -> dict[str, Any]:
    found = {f"views.{key}": value for key, value in result.get("views", {}).items()}
    found |= {key: result[key] for key in PROTOCOL if key in result}
    if "checkpoint" in result:
        digest = result.get("checkpoint_sha256", "")[:8]
        found = {"checkpoint": f"{result['checkpoint']}, step {result.get('step', '-')}, {digest}"} | found
    return found
