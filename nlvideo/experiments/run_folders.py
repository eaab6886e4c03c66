"""Summaries of run folders: settings, state, metrics, evaluations and cost of each run."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nlvideo.build.model import build_model
from nlvideo.config.compose import from_container, to_container
from nlvideo.config.schema import BlockConfig, DataConfig, ModelConfig, TrainConfig
from nlvideo.evaluation.metrics import headline
from nlvideo.evaluation.result_files import RESULT_FILE
from nlvideo.models.cost import count_cost
from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.training.metrics_file import METRICS_FILE, VALIDATION_METRICS, read_metrics
from nlvideo.training.resume import CONFIG_FILE, stored_config
from nlvideo.training.run_status import STATUS_FILE, read_status

PARAMS, MULTIPLY_ADDS, HOURS, SPEED = COSTS = ("M params", "G multiply-adds", "hours", "clips/s")
CONTENT_ERRORS = (ValueError, TypeError, AttributeError, KeyError, YAMLError, OmegaConfBaseException)


@dataclass
class RunSummary:
    """What a run's folder holds, as a line of a table.

    Attributes:
        name: its path from the parent of the folder that was searched.
        settings: {dotted key: value}; empty, as the metrics and the cost, if the run failed before it started.
        state: finished, stopped, failed or unfinished.
        metrics: {name: percent, or None without a validation}.
        cost: {one of COSTS: value, or None if unknown}.
        overrides: what sets it apart from the other runs, other than the seed.
    """

    name: str
    path: Path
    settings: dict[str, Any]
    state: str
    step: int
    max_steps: int | None
    error: str | None
    metrics: dict[str, float | None]
    cost: dict[str, float | None]
    overrides: str = "-"
    seed: int | None = None


def read_runs(folder: Path) -> list[RunSummary]:
    """Returns all runs in a folder, the folder itself included, sorted by path.

    Raises:
        UserError: the folder does not exist or holds no run, or a file of a run cannot be read.
    """
    if not folder.is_dir():
        raise UserFileNotFoundError(f"The folder {folder} does not exist.")
    found = sorted({path.parent for name in (CONFIG_FILE, STATUS_FILE) for path in folder.rglob(name)})
    if not found:
        raise UserError(f"{folder} holds no run: no {CONFIG_FILE} in it or below.")
    return [_read_run(path, str(path.relative_to(folder.parent))) for path in found]


def _read_run(path: Path, name: str) -> RunSummary:
    with _reading(path / STATUS_FILE):
        status = read_status(path)
        state, error = status["state"] if status else "unfinished", status.get("error")
    if not (path / CONFIG_FILE).exists():  # it failed before it started
        return RunSummary(name, path, {}, state, 0, None, error, {}, {})
    with _reading(path / CONFIG_FILE):
        config = from_container(TrainConfig, stored_config(path) or {})
    with _reading(path / CONFIG_FILE, (UserError,)):  # a network that cannot be built; any other error is a bug
        network = _network_cost(config, status.get("num_classes"))
    with _reading(path / METRICS_FILE):
        rows = read_metrics(path) if (path / METRICS_FILE).exists() else []
        metrics, cost = _validation_metrics(rows), network | _time_spent(rows)
        last_step = rows[-1]["step"] if rows else 0
    return RunSummary(
        name=name,
        path=path,
        settings=_settings(config),
        state=state,
        step=status.get("step", last_step),
        max_steps=config.optim.max_steps,
        error=error,
        metrics=metrics | _evaluation_metrics(path),
        cost=cost,
        seed=config.seed,
    )


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Returns {dotted key: value}; of a block's places only those for the network's depth."""
    used = f"block.places.r{config.model.depth}"
    settings = _flatten(to_container(config))
    return {key: value for key, value in settings.items() if key == used or not key.startswith("block.places.")}


def _validation_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Returns the best main metric and all metrics of the last validation, in percent."""
    val = [row for row in rows if row["split"] == "val"]
    last = val[-1] if val else {}
    main = headline(last)
    metrics: dict[str, float | None] = {
        f"best {VALIDATION_METRICS[main]}": max((100 * row[main] for row in val), default=None)
    }
    return metrics | {f"last {name}": 100 * last[key] for key, name in VALIDATION_METRICS.items() if key in last}


def _time_spent(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    speeds = [row["clips_per_second"] for row in rows if row["split"] == "train"]
    hours = sum(row["seconds"] for row in rows) / 3600
    return {HOURS: hours, SPEED: statistics.median(speeds) if speeds else None}


class FoundEvaluation(NamedTuple):
    """An evaluation in a run's folder."""

    folder: Path
    step: int
    views: tuple[int, int]  # clips, crops
    result: dict[str, Any]


def find_evaluations(path: Path) -> list[FoundEvaluation]:
    """Returns all evaluations in a run's folder, sorted by path."""
    found = []
    for file in sorted(path.rglob(RESULT_FILE)):
        with _reading(file):
            result = json.loads(file.read_text())
            views = (result["views"]["num_clips"], result["views"]["num_crops"])
            found.append(FoundEvaluation(file.parent, result["step"], views, result))
    return found


def _evaluation_metrics(path: Path) -> dict[str, float | None]:
    """Returns {"10x3 top-1": percent, ...} of all evaluations of a run.

    Of several with the same views the one of the latest step has the short name; the others are named by their folders.
    """
    metrics: dict[str, float | None] = {}
    for found in sorted(find_evaluations(path), key=lambda evaluation: -evaluation.step):
        views = "x".join(map(str, found.views))
        with _reading(found.folder / RESULT_FILE):
            scores = {
                name: 100 * found.result[key]
                for key, name in VALIDATION_METRICS.items()
                if found.result.get(key) is not None
            }
        taken = any(f"{views} {metric}" in metrics for metric in scores)
        prefix = f"{views} {found.folder.relative_to(path)}" if taken else views
        metrics |= {f"{prefix} {metric}": value for metric, value in scores.items()}
    return metrics


@contextmanager
def _reading(file: Path, errors: tuple[type[Exception], ...] = CONTENT_ERRORS) -> Iterator[None]:
    """Turns errors, by default all that a file's corrupt content raises, into a UserError of one line naming it."""
    try:
        yield
    except errors as error:
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} in {error.doc.strip()[:60]!r}"
        elif type(error) is KeyError:  # OmegaConf's are a subclass, with a message
            reason = f"{error} is missing"
        else:
            reason = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read: {reason}") from None


def _network_cost(config: TrainConfig, num_classes: int | None) -> dict[str, float | None]:
    """Returns the parameters and the multiply-adds of a clip; None if the number of classes is unknown."""
    if num_classes is None:
        return {PARAMS: None, MULTIPLY_ADDS: None}
    groups = json.dumps(to_container(config.model)), json.dumps(to_container(config.block))
    params, multiply_adds = _counted_cost(*groups, config.data.num_frames, config.data.crop_size, num_classes)
    return {PARAMS: params / 1e6, MULTIPLY_ADDS: multiply_adds / 1e9}


@cache
def _counted_cost(model: str, block: str, num_frames: int, crop_size: int, num_classes: int) -> tuple[int, int]:
    """Returns parameters and multiply-adds; the config groups come as JSON, so that runs of one network share them."""
    groups = from_container(ModelConfig, json.loads(model)), from_container(BlockConfig, json.loads(block))
    with torch.device("meta"):
        network = build_model(*groups, DataConfig(num_frames=num_frames, crop_size=crop_size), num_classes)
    cost = count_cost(network, num_frames, crop_size, crop_size)
    return cost.params, cost.multiply_adds


def _flatten(container: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in container.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
