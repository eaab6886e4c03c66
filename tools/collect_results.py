"""Makes one table of runs: what distinguishes them, their metrics, their spread over seeds, and their cost.

    python tools/collect_results.py outputs/ablation                     # every run below
    python tools/collect_results.py outputs/* --csv runs.csv --markdown runs.md

A run is a folder with a config.yaml, a sweep's point too. Runs that differ in nothing but the seed are one row of the
second table: mean +- sample standard deviation. Only finished runs enter it; the others are named below.
"""

import argparse
import csv
import json
import statistics
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from yaml import YAMLError

from nlvideo.config import TrainConfig, from_container, to_container
from nlvideo.logger import METRICS_FILE, read_metrics
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
    max_steps: int
    error: str | None
    metrics: dict[str, float | None]  # name -> value
    cost: dict[str, float | None]
    overrides: str = "-"  # in what it differs from the others, but for the seed
    seed: int = 0


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
            arguments.markdown.write_text("\n\n".join(markdown(rows) for rows in tables.values()) + "\n")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for title, rows in tables.items():
        print_rows(title, rows)
    for run in runs:
        if run.state != FINISHED:
            print(f"not finished: {run.name}: {run.state} at step {run.step}{f', {run.error}' if run.error else ''}")


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
    try:
        if not (path / CONFIG_FILE).exists():  # it failed before it began
            status = read_status(path)
            return Run(name, {}, status["state"], 0, 0, status.get("error"), {}, {})
        config = from_container(TrainConfig, OmegaConf.to_container(OmegaConf.load(path / CONFIG_FILE)))
        rows = read_metrics(path) if (path / METRICS_FILE).exists() else []
        status = read_status(path)
        results = [json.loads(file.read_text()) for file in sorted(path.rglob("result.json"))]
    except (ValueError, YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    train, val = ([row for row in rows if row["split"] == split] for split in ("train", "val"))
    metrics = {
        "best top-1": max((100 * row["top1"] for row in val), default=None),
        "last top-1": 100 * val[-1]["top1"] if val else None,
        "last top-5": 100 * val[-1]["top5"] if val else None,
    }
    for result in results:
        views = f"{result['views']['num_clips']}x{result['views']['num_crops']}"
        metrics |= {f"{views} top-1": 100 * result["top1"], f"{views} top-5": 100 * result["top5"]}
    speeds = [row["clips_per_second"] for row in train]
    cost = network_cost(json.dumps(to_container(config)), status.get("num_classes")) | {
        "hours": sum(row["seconds"] for row in rows) / 3600,
        "clips/s": statistics.median(speeds) if speeds else None,
    }
    step = status.get("step", rows[-1]["step"] if rows else 0)
    state = status.get("state", "unfinished")
    settings = flatten(to_container(config))
    places = f"block.places.r{config.model.depth}"
    settings = {key: value for key, value in settings.items() if not key.startswith("block.places.") or key == places}
    return Run(
        name, settings, state, step, config.optim.max_steps, status.get("error"), metrics, cost, seed=config.seed
    )


@cache
def network_cost(config: str, num_classes: int | None) -> dict[str, float | None]:
    """Returns millions of parameters and billions of multiply-adds of a clip; None where the classes are not known."""
    if num_classes is None:
        return {"M params": None, "G multiply-adds": None}
    config = from_container(TrainConfig, json.loads(config))
    with torch.device("meta"):
        network = build_model(config.model, config.block, config.data, num_classes)
    cost = count_cost(network, config.data.num_frames, config.data.crop_size, config.data.crop_size)
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
        state = f"{run.state} {run.step}/{run.max_steps}"
        row = {"run": run.name, "overrides": run.overrides, "seed": str(run.seed), "state": state}
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
            row[name] = spread([value for value in values if value is not None])
        rows.append(row)
    return rows


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
    Console(width=max(width, 80)).print(table)


if __name__ == "__main__":
    main()
