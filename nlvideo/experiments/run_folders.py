"""What the folders of runs say: settings, metrics, evaluations and cost of each."""

import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nlvideo.build.model import build_model
from nlvideo.config.compose import from_container, to_container
from nlvideo.config.schema import BlockConfig, DataConfig, ModelConfig, TrainConfig
from nlvideo.evaluation.metrics import headline
from nlvideo.evaluation.result_files import RESULT_FILE
from nlvideo.models.cost import count_cost
from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.training.resume import CONFIG_FILE
from nlvideo.training.run_log import METRICS, METRICS_FILE, read_metrics
from nlvideo.training.run_status import STATUS_FILE, read_status


@dataclass
class Run:
    """A run as a line of the table; metrics are in percent, None where there are none."""

    name: str
    path: Path
    settings: dict[str, Any]  # dotted key -> value
    state: str
    step: int
    max_steps: int | None  # None, as the seed, where the run failed before it began
    error: str | None
    metrics: dict[str, float | None]  # name -> value
    cost: dict[str, float | None]
    overrides: str = "-"  # in what it differs from the others, but for the seed
    seed: int | None = None


def read_runs(folder: Path) -> list[Run]:
    """Returns the runs in a folder, itself included, in the order of their names.

    Raises:
        UserError: there is no such folder, no run in it, or a file of one that cannot be read.
    """
    if not folder.is_dir():
        raise UserFileNotFoundError(f"The folder {folder} does not exist.")
    found = sorted({path.parent for name in (CONFIG_FILE, STATUS_FILE) for path in folder.rglob(name)})
    if not found:
        raise UserError(f"{folder} holds no run: there is no {CONFIG_FILE} in it or below.")
    return [read_run(path, folder) for path in found]


def read_run(path: Path, folder: Path) -> Run:
    name = str(path.relative_to(folder.parent))
    with naming(path / STATUS_FILE):
        status = read_status(path)
        if not (path / CONFIG_FILE).exists():  # it failed before it began
            return Run(name, path, {}, status["state"], 0, None, status.get("error"), {}, {})
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
        name, path, settings, state, step, config.optim.max_steps, status.get("error"), metrics, cost, seed=config.seed
    )


class Evaluated(NamedTuple):
    folder: Path
    step: int
    views: tuple[int, int]  # clips, crops
    result: dict[str, Any]


def evaluations(path: Path) -> list[Evaluated]:
    """Returns all evaluations in a run's folder."""
    found = []
    for file in sorted(path.rglob(RESULT_FILE)):
        with naming(file):
            result = json.loads(file.read_text())
            views = (result["views"]["num_clips"], result["views"]["num_crops"])
            found.append(Evaluated(file.parent, result["step"], views, result))
    return found


def read_evaluations(path: Path) -> dict[str, float]:
    """Returns {"10x3 top-1": percent, ...} of all evaluations in a run's folder."""
    metrics = {}
    for one in sorted(evaluations(path), key=lambda evaluation: -evaluation.step):
        views = "x".join(map(str, one.views))
        with naming(one.folder / RESULT_FILE):
            scores = {name: 100 * one.result[key] for key, name in METRICS.items() if one.result.get(key) is not None}
        taken = any(f"{views} {metric}" in metrics for metric in scores)
        name = f"{views} {one.folder.relative_to(path)}" if taken else views
        metrics |= {f"{name} {metric}": value for metric, value in scores.items()}
    return metrics


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Makes whatever is wrong with a file's content a ValueError of one line that names the file."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise UserError(f"{file} cannot be read: {error.msg} in {error.doc.strip()[:60]!r}") from None
    except (ValueError, TypeError, AttributeError, KeyError, YAMLError, OmegaConfBaseException) as error:
        reason = f"it lacks {error}" if type(error) is KeyError else " ".join(str(error).split())
        raise UserError(f"{file} cannot be read: {reason}") from None


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
