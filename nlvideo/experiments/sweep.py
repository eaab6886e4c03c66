"""Sweeps (-m): every point is a run in a process of its own, with a readable folder below the sweep's output_dir.

The command that starts the sweep checks all points first and reports those that failed at the end. The points
themselves may be started elsewhere (hydra/launcher=submitit_slurm).
"""

import dataclasses
import hashlib
import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from nlvideo.build.model import build_model
from nlvideo.config.compose import explain, to_container, to_dataclass, to_yaml, without_hydra
from nlvideo.config.schema import TrainConfig
from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.runtime.files import check_writable
from nlvideo.runtime.launch import ending, refuse_tasks_without_ranks, under_torchrun
from nlvideo.runtime.signals import passed_on
from nlvideo.training.loggers import check_logger
from nlvideo.training.resume import begun_config, differences, stored_config
from nlvideo.training.run_status import FAILED, FINISHED, PATIENCE, read_status, score_of, write_status
from nlvideo.weights.adoption import take_from_pretrained

LOG_FILE = "log.txt"
MAX_NAME_LENGTH = 150  # of a point's folder
POINT_FLAG = "--config-from-stdin"  # nlvideo.train then trains the resolved config that comes as JSON


class Point(NamedTuple):
    folder: Path
    config: TrainConfig


class Sweep(Callback):
    """What the command of a sweep does before and after its points; Hydra makes one for each sweep.

    Args:
        only_shown: print the points' configs and exit (-m --cfg job).
    """

    def __init__(self, only_shown: bool = False):
        self.only_shown = only_shown
        self.points: list[Point] = []

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        """Composes and checks every point, and tells the points where the sweep's folder is and how to be named."""
        if under_torchrun():
            sys.exit("error: -m starts the ranks of its points itself; use num_devices=N instead of torchrun.")
        try:
            refuse_tasks_without_ranks()
            root, self.points = _plan(config, config_name)
            done = [is_finished(point.folder, point.config) for point in self.points]
            power = "" if self.only_shown else _power_if_dry(self.points, done)
        except (HydraException, OmegaConfBaseException) as error:
            sys.exit(f"error: {explain(error)}")  # Hydra would make a warning of any other exception
        except UserError as error:
            sys.exit(f"error: {error}")
        if self.only_shown:
            print("\n".join(f"# {point.folder}\n{to_yaml(point.config)}" for point in self.points))
            sys.exit()
        print(f"sweep of {len(done)} points in {root}, {sum(done)} of them finished already")
        if power:
            for point, end in zip(self.points, done, strict=True):
                print(f"{point.folder.name}{': finished' * end}")
            print(power)
            sys.exit()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Prints how the points ended; exits with 1 if one has failed."""
        from rich.console import Console
        from rich.table import Table

        table, failed = Table("point", "state", "validation, one centre clip"), []
        for point in self.points:
            status = read_status(point.folder)
            state, score = status.get("state", "not started"), score_of(status)
            table.add_row(point.folder.name, state, "-" if score is None else f"{100 * score:.2f} %")
            if state == FAILED:
                failed.append(f"{point.folder.name}: {status['error']}\n  log: {point.folder / LOG_FILE}")
        Console().print(table)
        if failed:
            sys.exit("\n".join([f"{len(failed)} of {len(self.points)} points failed:", *failed]))


def _power_if_dry(points: Sequence[Point], done: Sequence[bool]) -> str:
    """Returns what the points can show if this is a dry run, else ""."""
    dry = {point.config.dry_run for point in points}
    if len(dry) > 1:
        raise UserError("dry_run=true is for all points of a sweep or for none.")
    if dry != {True}:
        return ""
    from nlvideo.experiments.sweep_power import power_line  # imports scipy.stats, which takes half a second

    return power_line([point.config for point in points], done)


def show_points_instead(arguments: list[str]) -> None:
    """Turns `-m --cfg job`, which Hydra does not support, into the option of the Sweep above, in place."""
    flags = [argument for argument in arguments if argument in ("--cfg", "-c")]
    if not {"-m", "--multirun"} & {*arguments} or not flags:
        return
    at = arguments.index(flags[0])
    if arguments[at + 1 : at + 2] != ["job"]:
        sys.exit("error: the configs of a sweep are printed by -m --cfg job.")
    arguments[at : at + 2] = ["hydra.callbacks.sweep.only_shown=true"]


def in_sweep() -> bool:
    """Returns whether Hydra is running a point of a sweep.

    Raises:
        UserError: the config is a sweep (+ablation=...), but -m is missing.
    """
    if not HydraConfig.initialized():
        return False
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return True
    if HydraConfig.get().sweeper.get("params"):
        raise UserError("This config is a sweep over several runs: add -m, or leave +ablation=... out.")
    return False


def train_point(config: TrainConfig, stated: Mapping[str, Any]) -> float:
    """Trains one point of a sweep unless it is finished; returns its last validation score, nan if it failed.

    Args:
        config: as composed.
        stated: {key: value} of what the command line states.
    """
    config = _placed(config, HydraConfig.get())
    folder = Path(config.output_dir)
    try:
        config = take_from_pretrained(config, stated, begun_config(config))
    except UserError as error:  # the other points go on
        folder.mkdir(parents=True, exist_ok=True)
        write_status(folder, FAILED, error=str(error))
        return math.nan
    if is_finished(folder, config):
        print(f"{folder.name}: finished already")
        return _score_or_nan(folder)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOG_FILE
    print(f"{folder.name}: log in {log}", flush=True)
    written = log.stat().st_size if log.exists() else 0  # by earlier tries
    try:
        code, received = _train_in_process(config, log)
    except OSError as error:  # no process could be started, or the disk is full
        write_status(folder, FAILED, error=str(error))
        return math.nan
    if received:
        _obey(received[-1])
    if code == 0:
        return _score_or_nan(folder)
    write_status(folder, FAILED, error=_last_error(log, written, code))
    return math.nan


def is_finished(folder: Path, config: TrainConfig) -> bool:
    """Returns whether the folder holds this very run, trained to its end."""
    status, stored = read_status(folder), stored_config(folder)
    if status.get("state") != FINISHED or stored is None or differences(stored, config):
        return False
    if status.get("reason") == PATIENCE and config.patience == stored["patience"]:
        return True
    in_epochs = config.optim.max_epochs
    same_length = in_epochs is not None and in_epochs == stored["optim"].get("max_epochs")
    return status["step"] >= (stored["optim"]["max_steps"] if same_length else config.optim.max_steps)


def _score_or_nan(folder: Path) -> float:
    score = score_of(read_status(folder))
    return math.nan if score is None else score


def _plan(config: DictConfig, config_name: str | None) -> tuple[str, list[Point]]:
    """Returns the sweep's folder and its points; writes into the sweep's config where it is and how points are named.

    Raises:
        UserError: a point that cannot be trained, two in one folder, or one whose folder holds another run.
    """
    swept = dict(config.hydra.sweeper.get("params") or {})  # what an ablation's file sweeps over; the command line wins
    lines = [*(f"{key}={values}" for key, values in swept.items()), *config.hydra.overrides.task]
    overrides = OverridesParser.create().parse_overrides(lines)
    fixed = [o for o in overrides if not o.is_sweep_override() and o.key_or_group not in swept]
    hydra_overrides = list(config.hydra.overrides.hydra)
    root = compose(config_name, [*hydra_overrides, *map(_line, fixed)]).output_dir
    check_writable(Path(root))
    unnamed = json.dumps([o.key_or_group for o in fixed])
    told = [f"hydra.sweep.dir={json.dumps(root)}", f"hydra.job.config.override_dirname.exclude_keys={unnamed}"]

    points: dict[Path, Point] = {}
    values = {override.get_key_element(): _values(override) for override in overrides}  # a key's last override wins
    for combination in product(*values.values()):
        composed = compose(config_name, [*hydra_overrides, *told, *combination], return_hydra_config=True)
        hydra_config = composed.hydra
        composed, stated = without_hydra(composed)
        point = _checked_point(_placed(to_dataclass(composed), hydra_config), stated)
        if point.folder in points:
            raise UserError(f"-m: two points would have the folder {point.folder}; sweep over each value once.")
        points[point.folder] = point
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = root
        config.hydra.overrides.hydra = [*hydra_overrides, *told]
    return root, list(points.values())


def _line(override: Override) -> str:
    assert override.input_line is not None  # it was parsed
    return override.input_line


def _values(override: Override) -> list[str]:
    """Returns the override itself, or one for each value that it sweeps over."""
    if not override.is_sweep_override():
        return [_line(override)]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _checked_point(config: TrainConfig, stated: Mapping[str, Any]) -> Point:
    try:
        config = take_from_pretrained(config, stated, begun_config(config))
    except UserFileNotFoundError:  # another run may be about to write it; the point itself must find it
        pass
    with torch.device("meta"):
        build_model(config.model, config.block, config.data, 1)
    check_logger(config.logger)
    folder = Path(config.output_dir)
    changed = differences(stored_config(folder), config)
    if changed:
        lines = "\n  ".join(changed)
        raise UserError(f"{folder} holds another run than the point asked for:\n  {lines}")
    return Point(folder, config)


def _placed(config: TrainConfig, hydra_config: Any) -> TrainConfig:
    """Returns the point's config with its own folder, in which it resumes if it was begun."""
    name = re.sub(r"[^\w.+-]", "_", hydra_config.job.override_dirname) or "point"
    if len(name) > MAX_NAME_LENGTH:
        name = f"{name[: MAX_NAME_LENGTH - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return dataclasses.replace(config, output_dir=str(Path(hydra_config.sweep.dir) / name), resume="auto")


def _train_in_process(config: TrainConfig, log: Path) -> tuple[int, list[int]]:
    """Trains in a process of its own, whose output goes to the console and the log.

    Returns its exit code and the signals that came meanwhile, which were passed on to it.
    """
    command = [sys.executable, "-m", "nlvideo.train", POINT_FLAG]
    pipe = subprocess.PIPE
    with open(log, "ab") as file, subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as point:
        assert point.stdin is not None and point.stdout is not None  # they are pipes
        with passed_on(point.send_signal) as received:
            point.stdin.write(json.dumps(to_container(config)).encode())
            point.stdin.close()
            while chunk := point.stdout.read1(1 << 16):  # type: ignore[attr-defined]
                file.write(chunk)
                file.flush()
                sys.stdout.buffer.write(chunk)
                sys.stdout.flush()
            return point.wait(), received


def _obey(number: int) -> None:
    """Ends this process after a signal as whoever started it expects: submitit requeues the job."""
    handler = signal.getsignal(number)
    if callable(handler) and handler is not signal.default_int_handler:
        handler(number, None)
    print("Stopped; resume with the same command.")
    sys.exit(128 + number)


def _last_error(log: Path, start: int, code: int) -> str:
    """Returns the first error that a failed point printed after byte `start` of its log, or how its process ended."""
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ") or ": error: " in line]
    return errors[0] if errors else f"{ending(code)}; {lines[-1] if lines else 'no output'}"
