"""Sweeps (-m): every point is a run in a process of its own, with a readable folder below the sweep's output_dir.

The command that starts the sweep checks all points first and names those that failed at the end; the points
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
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from nlvideo.build.model import build_model
from nlvideo.config.compose import explain, to_container, to_dataclass, to_yaml
from nlvideo.config.schema import TrainConfig
from nlvideo.runtime.distributed import under_torchrun
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.launch import ending
from nlvideo.runtime.signals import passed_on
from nlvideo.training.resume import CONFIG_FILE, differences
from nlvideo.training.run_status import FAILED, FINISHED, read_status, write_status

LOG_FILE = "log.txt"
LONGEST_NAME = 150  # of a point's folder


class Point(NamedTuple):
    folder: Path
    config: TrainConfig


class Sweep(Callback):
    """What the command of a sweep does before and after its points."""

    points: list[Point] = []
    only_shown = False  # -m --cfg job

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        """Composes and checks every point, and tells the points where the sweep's folder is and how to be named."""
        if under_torchrun():
            sys.exit("error: -m starts the processes of its points itself; give num_devices=N instead of torchrun.")
        try:
            Sweep.points = _plan(config, config_name)
        except (HydraException, OmegaConfBaseException) as error:
            sys.exit(f"error: {explain(error)}")  # Hydra would make a warning of any other exception
        except ValueError as error:
            sys.exit(f"error: {error}")
        if Sweep.only_shown:
            print("\n".join(f"# {point.folder}\n{to_yaml(point.config)}" for point in Sweep.points))
            sys.exit()
        done = [is_finished(point.folder, point.config) for point in Sweep.points]
        print(f"sweep of {len(done)} points, {sum(done)} of them finished already, in {config.hydra.sweep.dir}")

    @classmethod
    def end(cls) -> None:
        """Prints how the points ended; exits with 1 if one has failed. Without a sweep it does nothing."""
        if not cls.points:
            return
        from rich.console import Console
        from rich.table import Table

        table, failed = Table("point", "state", "validation, one centre clip"), []
        for point in cls.points:
            status = read_status(point.folder)
            score = score_of(status)
            table.add_row(
                point.folder.name, status.get("state", "not started"), "-" if score is None else f"{100 * score:.2f} %"
            )
            if status.get("state") == FAILED:
                failed.append(f"{point.folder.name}: {status['error']}\n  log: {point.folder / LOG_FILE}")
        Console().print(table)
        if failed:
            sys.exit("\n".join([f"{len(failed)} of {len(cls.points)} points failed:", *failed]))


def wants_configs(arguments: list[str]) -> bool:
    """Takes --cfg job, which Hydra does not know with -m, out of the arguments; returns whether it was there."""
    flags = [argument for argument in arguments if argument in ("--cfg", "-c")]
    if not {"-m", "--multirun"} & {*arguments} or not flags:
        return False
    at = arguments.index(flags[0])
    if arguments[at + 1 : at + 2] != ["job"]:
        sys.exit("error: a sweep's configurations are shown by -m --cfg job.")
    del arguments[at : at + 2]
    return True


def run_point(config: TrainConfig) -> float:
    """Trains one point of a sweep unless it is finished; returns its last validation score, nan if it failed."""
    config = _placed(config, HydraConfig.get())
    folder = Path(config.output_dir)
    if is_finished(folder, config):
        print(f"{folder.name}: finished already")
        return score_of(read_status(folder))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{folder.name}: log in {folder / LOG_FILE}", flush=True)
    log = folder / LOG_FILE
    written = log.stat().st_size if log.exists() else 0  # by earlier tries
    try:
        code, received = _train_apart(config, log)
    except OSError as error:  # no process could be started, or the disk is full
        write_status(folder, FAILED, error=str(error))
        return math.nan
    if received:
        _obey(received[-1])
    if code == 0:
        score = score_of(read_status(folder))
        return math.nan if score is None else score
    write_status(folder, FAILED, error=_last_words(log, written, code))
    return math.nan


def is_finished(folder: Path, config: TrainConfig) -> bool:
    """Returns whether the folder holds this very run, trained to its last step."""
    status = read_status(folder)
    return (
        status.get("state") == FINISHED
        and status["step"] >= config.optim.max_steps
        and not _stored_differences(folder, config)
    )


def _plan(config: DictConfig, config_name: str | None) -> list[Point]:
    """Returns the points of a sweep and, in its config, names its folder and which overrides make a point's name.

    Raises:
        UserError: a point that cannot be trained, two in one folder, or one whose folder holds another run.
    """
    swept = dict(config.hydra.sweeper.get("params") or {})  # what an ablation's file sweeps over; the command line wins
    lines = [*(f"{key}={values}" for key, values in swept.items()), *config.hydra.overrides.task]
    overrides = OverridesParser.create().parse_overrides(lines)
    fixed = [o for o in overrides if not o.is_sweep_override() and o.key_or_group not in swept]
    (combinations,) = BasicSweeper.split_arguments(overrides, None)
    hydra_overrides = list(config.hydra.overrides.hydra)
    base = compose(config_name, [*hydra_overrides, *(o.input_line for o in fixed)])
    root, unnamed = base.output_dir, json.dumps([o.key_or_group for o in fixed])
    told = [f"hydra.sweep.dir={json.dumps(root)}", f"hydra.job.config.override_dirname.exclude_keys={unnamed}"]

    points: dict[Path, Point] = {}
    for combination in combinations:
        composed = compose(config_name, [*hydra_overrides, *told, *combination], return_hydra_config=True)
        hydra_config = composed.hydra
        with open_dict(composed):
            del composed["hydra"]
        point_config = _placed(to_dataclass(composed), hydra_config)
        with torch.device("meta"):
            build_model(point_config.model, point_config.block, point_config.data, 1)
        if point_config.dry_run:
            raise UserError("dry_run=true says what one run would do; leave out -m.")
        folder = Path(point_config.output_dir)
        if folder in points:
            raise UserError(f"-m: two points would have the folder {folder}; sweep over each value once.")
        changed = _stored_differences(folder, point_config)
        if changed:
            lines = "\n  ".join(changed)
            raise UserError(f"{folder} holds another run than the point asked for:\n  {lines}")
        points[folder] = Point(folder, point_config)
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = root
        config.hydra.overrides.hydra = [*hydra_overrides, *told]
    return list(points.values())


def _placed(config: TrainConfig, hydra_config: DictConfig) -> TrainConfig:
    """Returns the point's config with its own folder, in which it goes on if it was begun."""
    name = re.sub(r"[^\w.+-]", "_", hydra_config.job.override_dirname) or "point"
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return dataclasses.replace(config, output_dir=str(Path(hydra_config.sweep.dir) / name), resume="auto")


def _stored_differences(folder: Path, config: TrainConfig) -> list[str]:
    if not (folder / CONFIG_FILE).exists():
        return []
    return differences(OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE)), config)


def _train_apart(config: TrainConfig, log: Path) -> tuple[int, list[int]]:
    """Trains in a process of its own, whose output goes to the console and the log.

    Returns its exit code and the signals that came meanwhile, which it was given too.
    """
    command = [sys.executable, "-m", "nlvideo.experiments.train_point"]
    pipe = subprocess.PIPE
    with open(log, "ab") as file, subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as point:
        with passed_on(point.send_signal) as received:
            point.stdin.write(json.dumps(to_container(config)).encode())
            point.stdin.close()
            while chunk := point.stdout.read1(1 << 16):
                file.write(chunk)
                file.flush()
                sys.stdout.buffer.write(chunk)
                sys.stdout.flush()
            return point.wait(), received


def _obey(number: int) -> None:
    """Ends this process after a signal, as whoever started it wants: submitit puts the job back into the queue."""
    handler = signal.getsignal(number)
    if callable(handler) and handler is not signal.default_int_handler:
        handler(number, None)
    print("Stopped; the same command goes on from here.")
    sys.exit(128 + number)


def _last_words(log: Path, start: int, code: int) -> str:
    """Returns the first error that a failed point has printed behind `start`, or how its process ended."""
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ") or ": error: " in line]
    return errors[0] if errors else f"{ending(code)}; {lines[-1] if lines else 'no output'}"


def score_of(status: dict) -> float | None:
    """Returns the last validation's score; runs of earlier versions called it by its metric."""
    return status.get("score", status.get("top1"))
