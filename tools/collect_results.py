"""Makes one table of runs: what distinguishes them, their metrics, their spread over seeds, and their cost.

    python tools/collect_results.py outputs/ablation                     # every run below
    python tools/collect_results.py outputs/* --csv runs.csv --markdown runs.md

A run is a folder with a config.yaml, a sweep's point too. Runs that differ in nothing but the seed are one row of the
second table: mean +- sample standard deviation. Only finished runs enter it; the others are named below. A run that was
evaluated several times with the same views has its latest step under their name, the others under their folders'.
"""

import argparse
import csv
import json
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from yaml import YAMLError

from nlvideo.compose import from_container, to_container
from nlvideo.config import BlockConfig, DataConfig, ModelConfig, TrainConfig
from nlvideo.logger import METRICS, METRICS_FILE, read_metrics
from nlvideo.metrics import headline
from nlvideo.models import build_model
from nlvideo.models.cost import count_cost
from nlvideo.resume import CONFIG_FILE, FREE_KEYS
from nlvideo.status import FINISHED, STATUS_FILE, read_status

# What two runs may differ in without being two things that someone compares.
UNIMPORTANT = {*FREE_KEYS, "name"} - {"model.pretrained", "optim.max_steps"}
COSTS = ("M params", "G multiply-adds", "hours", "clips/s")


@dataclass
class Run:
    """A run as a line of the table; metrics are in percent, None where there are none."""

    name: str
    settings: dict[str, Any]  # dotted key -> value
    state: str
    step: int
    max_steps: int | None  # None, as the seed, where the run failed before it began
    error: str | None
    metrics: dict[str, float | None]  # name -> value
    cost: dict[str, float | None]
    overrides: str = "-"  # in what it differs from the others, but for the seed
    seed: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="one line a run, all digits")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="both tables")
    arguments = parser.parse_args()
    try:
        runs = [run for folder in arguments.folders for run in read_runs(folder)]
        name_differences(runs)
        tables = {"runs": run_rows(runs), "over seeds": group_rows(runs)}
        if arguments.csv:
            write_csv(arguments.csv, runs)
        if arguments.markdown:
            parts = [*(markdown(rows) for rows in tables.values()), *not_finished(runs)]
            arguments.markdown.write_text("\n\n".join(parts) + "\n")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for title, rows in tables.items():
        print_rows(title, rows)
    for line in not_finished(runs):
        print(line)


def read_runs(folder: Path) -> list[Run]:
    """Returns the runs in a folder, itself included, in the order of their names.

    Raises:
        FileNotFoundError, ValueError: there is no such folder, no run in it, or a file of one that cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder {folder} does not exist.")
    found = sorted({path.parent for name in (CONFIG_FILE, STATUS_FILE) for path in folder.rglob(name)})
    if not found:
        raise ValueError(f"{folder} holds no run: there is no {CONFIG_FILE} in it or below.")
    return [read_run(path, folder) for path in found]


def read_run(path: Path, folder: Path) -> Run:
    name = str(path.relative_to(folder.parent))
    with naming(path / STATUS_FILE):
        status = read_status(path)
        if not (path / CONFIG_FILE).exists():  # it failed before it began
            return Run(name, {}, status["state"], 0, None, status.get("error"), {}, {})
        state = status["state"] if status else "unfinished"
    with naming(path / CONFIG_FILE):
        config = from_container(TrainConfig, OmegaConf.to_container(OmegaConf.load(path / CONFIG_FILE)))
        sizes = (config.data.num_frames, config.data.crop_size, status.get("num_classes"))
        cost = network_cost(json.dumps(to_container(config.model)), json.dumps(to_container(config.block)), *sizes)
    with naming(path / METRICS_FILE):
        rows = read_metrics(path) if (path / METRICS_FILE).exists() else []
        train, val = ([row for row in rows if row["split"] == split] for split in ("train", "val"))
        main = headline(val[-1] if val else {})
        metrics = {f"best {METRICS[main]}": max((100 * row[main] for row in val), default=None)}
        metrics |= {f"last {name}": 100 * val[-1][key] for key, name in METRICS.items() if val and key in val[-1]}
        speeds = [row["clips_per_second"] for row in train]
        cost = cost | {
            "hours": sum(row["seconds"] for row in rows) / 3600,
            "clips/s": statistics.median(speeds) if speeds else None,
        }
        step = status.get("step", rows[-1]["step"] if rows else 0)
    metrics |= read_evaluations(path)
    settings = flatten(to_container(config))
    places = f"block.places.r{config.model.depth}"
    settings = {key: value for key, value in settings.items() if not key.startswith("block.places.") or key == places}
    return Run(
        name, settings, state, step, config.optim.max_steps, status.get("error"), metrics, cost, seed=config.seed
    )


def read_evaluations(path: Path) -> dict[str, float]:
    """Returns {"10x3 top-1": percent, ...} of all evaluations in a run's folder."""
    found = []
    for file in sorted(path.rglob("result.json")):
        with naming(file):
            result = json.loads(file.read_text())
            views = f"{result['views']['num_clips']}x{result['views']['num_crops']}"
            scores = {name: 100 * result[key] for key, name in METRICS.items() if result.get(key) is not None}
            found.append((result["step"], views, str(file.parent.relative_to(path)), scores))
    metrics = {}
    for _, views, folder, scores in sorted(found, key=lambda evaluation: -evaluation[0]):
        name = f"{views} {folder}" if any(f"{views} {metric}" in metrics for metric in scores) else views
        metrics |= {f"{name} {metric}": value for metric, value in scores.items()}
    return metrics


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Makes whatever is wrong with a file's content a ValueError of one line that names the file."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} cannot be read: {error.msg} in {error.doc.strip()[:60]!r}") from None
    except (ValueError, TypeError, AttributeError, KeyError, YAMLError, OmegaConfBaseException) as error:
        reason = f"it lacks {error}" if type(error) is KeyError else " ".join(str(error).split())
        raise ValueError(f"{file} cannot be read: {reason}") from None


@cache
def network_cost(
    model: str, block: str, num_frames: int, crop_size: int, num_classes: int | None
) -> dict[str, float | None]:
    """Returns millions of parameters and billions of multiply-adds of a clip; None where the classes are not known.

    Args:
        model, block: the groups of the config, as JSON.
    """
    if num_classes is None:
        return {"M params": None, "G multiply-adds": None}
    groups = from_container(ModelConfig, json.loads(model)), from_container(BlockConfig, json.loads(block))
    with torch.device("meta"):
        network = build_model(*groups, DataConfig(num_frames=num_frames, crop_size=crop_size), num_classes)
    cost = count_cost(network, num_frames, crop_size, crop_size)
    return {"M params": cost.params / 1e6, "G multiply-adds": cost.multiply_adds / 1e9}


def flatten(container: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in container.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def name_differences(runs: list[Run]) -> None:
    """Gives every run its `overrides`: the keys whose values are not the same in all runs.

    A block brings many keys; where its kind or places say it all, they would fill the line, so keys that differ in
    the same way as an earlier one are left out.
    """
    begun = [run for run in runs if run.settings]
    keys = sorted({key for run in begun for key in run.settings})
    shown, seen = [], set()
    for key in keys:
        values = tuple(repr(run.settings.get(key)) for run in begun)
        pattern = tuple(values.index(value) for value in values)
        important = key != "seed" and not any(key == k or key.startswith(f"{k}.") for k in UNIMPORTANT)
        if important and len(set(values)) > 1 and pattern not in seen:
            seen.add(pattern)
            shown.append(key)
    for run in begun:
        run.overrides = " ".join(f"{key}={run.settings.get(key)}".replace(" ", "") for key in shown) or "-"


def run_rows(runs: list[Run]) -> list[dict[str, str]]:
    rows = []
    for run in runs:
        state = run.state if run.max_steps is None else f"{run.state} {run.step}/{run.max_steps}"
        seed = "-" if run.seed is None else str(run.seed)
        row = {"run": run.name, "overrides": run.overrides, "seed": seed, "state": state}
        row |= {name: shown(run.metrics.get(name)) for name in metric_names(runs)}
        rows.append(row | {name: shown(run.cost.get(name)) for name in COSTS})
    return rows


def group_rows(runs: list[Run]) -> list[dict[str, str]]:
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
            raise ValueError(f"{same} are the same run with the seed {seed}, twice; collect one of them.")
        row = {"overrides": overrides, "seeds": str(len(members))}
        for name in [*metric_names(runs), *COSTS]:
            values = [run.metrics.get(name, run.cost.get(name)) for run in members]
            known = [value for value in values if value is not None]
            row[name] = spread(known)
            if 0 < len(known) < len(members):
                row[name] += f" ({len(known)} of {len(members)} seeds)"
        rows.append(row)
    return rows


def not_finished(runs: list[Run]) -> list[str]:
    """Returns a line for each run that no mean contains."""
    return [
        f"not finished: {run.name}: {run.state} at step {run.step}{f', {run.error}' if run.error else ''}"
        for run in runs
        if run.state != FINISHED
    ]


def metric_names(runs: list[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.metrics))


def spread(values: list[float]) -> str:
    """Returns "mean +- sample standard deviation", the mean alone for one value or equal ones."""
    if len(set(values)) < 2:
        return shown(values[0] if values else None)
    return f"{statistics.mean(values):.2f} +- {statistics.stdev(values):.2f}"


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def write_csv(path: Path, runs: list[Run]) -> None:
    plain = ("name", "overrides", "seed", "state", "step", "max_steps", "error")
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*plain, *metric_names(runs), *COSTS])
        writer.writeheader()
        for run in runs:
            writer.writerow({key: getattr(run, key) for key in plain} | run.metrics | run.cost)


def markdown(rows: list[dict[str, str]]) -> str:
    if not rows:
        return "No run is finished."
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def print_rows(title: str, rows: list[dict[str, str]]) -> None:
    if not rows:
        return
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*row.values())
    width = sum(max(len(value) for value in (name, *(row[name] for row in rows))) + 3 for name in rows[0]) + 1
    Console(width=max(width, 80), markup=False).print(table)


if __name__ == "__main__":
    main()
