"""Runs of any kind in tables: what sets them apart, and their means over seeds."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlvideo.experiments.run_folders import COSTS, RunSummary
from nlvideo.experiments.tables import mean_and_deviation
from nlvideo.runtime.errors import UserError
from nlvideo.training.resume import FREE_KEYS
from nlvideo.training.run_status import FINISHED

# Keys in which runs may differ without being different experiments.
LENGTHS = {"optim.max_steps", "optim.max_epochs", "patience"}
IGNORED_KEYS = {*FREE_KEYS, "name"} - LENGTHS - {"model.pretrained", "data.root"}


def compared(settings: Mapping[str, Any], key: str) -> Any:
    """Returns a setting as it is compared: of the data's folder the name alone, which machines keep at other places."""
    value = settings.get(key)
    return Path(value).name if key == "data.root" and value else value


def set_overrides(runs: Sequence[RunSummary]) -> None:
    """Sets every run's `overrides`: the keys whose values differ between the runs.

    A block brings many keys that differ in the same pattern, such as its kind and its places; only the first of each
    pattern is listed.
    """
    started = [run for run in runs if run.settings]
    keys = sorted({key for run in started for key in run.settings})
    listed, seen = [], set()
    for key in keys:
        values = tuple(repr(compared(run.settings, key)) for run in started)
        pattern = tuple(values.index(value) for value in values)
        ignored = key == "seed" or any(key == k or key.startswith(f"{k}.") for k in IGNORED_KEYS)
        if not ignored and len(set(values)) > 1 and pattern not in seen:
            seen.add(pattern)
            listed.append(key)
    for run in started:
        run.overrides = " ".join(f"{key}={compared(run.settings, key)}".replace(" ", "") for key in listed) or "-"


def run_rows(runs: Sequence[RunSummary]) -> list[dict[str, str]]:
    rows = []
    for run in runs:
        state = run.state if run.max_steps is None else f"{run.state} {run.step}/{run.max_steps}"
        seed = "-" if run.seed is None else str(run.seed)
        row = {"run": run.name, "overrides": run.overrides, "seed": seed, "state": state}
        row |= {name: _two_decimals(run.metrics.get(name)) for name in metric_names(runs)}
        rows.append(row | {name: _two_decimals(run.cost.get(name)) for name in COSTS})
    return rows


def group_rows(runs: Sequence[RunSummary]) -> list[dict[str, str]]:
    """Returns a row for each group of finished runs that differ in the seed only."""
    groups = defaultdict(list)
    for run in runs:
        if run.state == FINISHED:
            groups[run.overrides].append(run)
    rows = []
    for overrides, members in groups.items():
        seed, count = Counter(run.seed for run in members).most_common(1)[0]
        if count > 1:
            same = ", ".join(run.name for run in members if run.seed == seed)
            raise UserError(f"{same} are the same run with the same seed {seed}; collect one of them.")
        row = {"overrides": overrides, "seeds": str(len(members))}
        for name in [*metric_names(runs), *COSTS]:
            values = [run.metrics.get(name, run.cost.get(name)) for run in members]
            known = [value for value in values if value is not None]
            row[name] = mean_and_deviation(known)
            if 0 < len(known) < len(members):
                row[name] += f" ({len(known)} of {len(members)} seeds)"
        rows.append(row)
    return rows


def unfinished(runs: Iterable[RunSummary]) -> list[str]:
    """Returns a line for each run that is not part of any mean."""
    return [
        f"not finished: {run.name}: {run.state} at step {run.step}{f', {run.error}' if run.error else ''}"
        for run in runs
        if run.state != FINISHED
    ]


def metric_names(runs: Iterable[RunSummary]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.metrics))


def _two_decimals(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
