"""Brings evaluations to the same videos and classes in the same order, and refuses those that cannot be compared."""

from collections.abc import Sequence

import numpy as np

from nlvideo.evaluation.result_files import Evaluation
from nlvideo.runtime.errors import UserError

MAX_LISTED_NAMES = 3  # videos or classes in a message


def align_runs(runs: dict[str, Evaluation], common: bool) -> tuple[dict[str, Evaluation], list[str]]:
    """Returns the runs with videos and classes in the baseline's order, and notes on videos left out.

    Args:
        runs: by name; the first is the baseline.
        common: keep the videos that all runs have, instead of refusing lists that differ.

    Raises:
        UserError: the runs cannot be compared.
    """
    (first, baseline), *others = runs.items()
    for name, run in others:
        if run.multi_label != baseline.multi_label:
            kinds = ("single-label", "multi-label")
            raise UserError(
                f"{first} is {kinds[baseline.multi_label]}, {name} {kinds[run.multi_label]}: they share no metric."
            )
        runs = runs | {name: _with_classes_of(baseline, run, (first, name))}
        if not np.array_equal(run.ids, baseline.ids):
            _check_same_videos(runs[name], baseline, (first, name), common)
        _check_same_targets(runs[name], baseline, (first, name))
    kept = np.logical_and.reduce([np.isin(baseline.ids, run.ids) for run in runs.values()])
    if not kept.any():
        raise UserError("No video is in all of the lists.")
    notes = [
        f"{name}: {len(run.ids) - kept.sum()} of {len(run.ids)} videos left out, since not all lists have them"
        for name, run in runs.items()
        if len(run.ids) > kept.sum()
    ]
    runs = {name: _select(run, baseline.ids[kept]) for name, run in runs.items()}
    if baseline.multi_label and not runs[first].targets.any():
        raise UserError("No video of the list has an action, so there is no metric to compare.")
    return runs, notes


def _with_classes_of(baseline: Evaluation, run: Evaluation, names: tuple[str, str]) -> Evaluation:
    """Returns the run with its classes in the baseline's order."""
    if np.array_equal(run.classes, baseline.classes):
        return run
    place = {name: k for k, name in enumerate(run.classes.tolist())}
    only = _only_in(baseline.classes, run.classes, names)
    if only or not len(place) == len(run.classes) == len(baseline.classes):
        raise UserError(f"The classes of {names[0]} and {names[1]} differ: {only or 'a name occurs twice'}.")
    order = np.array([place[name] for name in baseline.classes.tolist()])
    targets = run.targets[:, order] if run.multi_label else np.argsort(order)[run.targets]
    return run._replace(classes=baseline.classes, scores=run.scores[:, order], targets=targets)


def _check_same_videos(run: Evaluation, baseline: Evaluation, names: tuple[str, str], common: bool) -> None:
    """Refuses lists of different videos, unless `common` allows them, and lists that repeat a name."""
    for name, one in zip(names, (baseline, run), strict=True):
        found, counts = np.unique(one.ids, return_counts=True)
        if len(found) < len(one.ids):
            raise UserError(
                f"The list of {name} repeats videos ({listed_names(found[counts > 1])}), so they cannot be matched by "
                "name."
            )
    only = _only_in(baseline.ids, run.ids, names)
    if only and not common:
        both = np.isin(baseline.ids, run.ids).sum()
        raise UserError(
            f"{names[0]} and {names[1]} scored different videos: {only}; use --common to compare the {both:,} that "
            "both have."
        )


def _check_same_targets(run: Evaluation, baseline: Evaluation, names: tuple[str, str]) -> None:
    ids = baseline.ids[np.isin(baseline.ids, run.ids)]
    differs = _select(baseline, ids).targets != _select(run, ids).targets
    differs = differs.any(1) if run.multi_label else differs
    if differs.any():
        raise UserError(
            f"{names[0]} and {names[1]} have different targets for {differs.sum():,} of {len(ids):,} videos "
            f"({listed_names(ids[differs])}), so they cannot be compared."
        )


def _select(run: Evaluation, ids: np.ndarray) -> Evaluation:
    """Returns the run with these videos only, in this order."""
    if np.array_equal(run.ids, ids):
        return run
    place = {name: v for v, name in enumerate(run.ids.tolist())}
    order = [place[name] for name in ids.tolist()]
    return run._replace(ids=ids, scores=run.scores[order], targets=run.targets[order])


def _only_in(a: np.ndarray, b: np.ndarray, names: tuple[str, str]) -> str:
    """Returns "3 only in A (x, y, ...)", for each of the two that has names of its own; "" if neither has."""
    parts = []
    for name, one, other in ((names[0], a, b), (names[1], b, a)):
        missing = one[~np.isin(one, other)]
        if len(missing):
            parts.append(f"{len(missing):,} only in {name} ({listed_names(missing)})")
    return ", ".join(parts)


def listed_names(names: Sequence[str] | np.ndarray) -> str:
    """Returns the first names, separated by commas."""
    return ", ".join(names[:MAX_LISTED_NAMES]) + (", ..." if len(names) > MAX_LISTED_NAMES else "")
