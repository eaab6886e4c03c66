"""nlvideo-evaluate: the scores of checkpoints, every video with all its views in one pass."""

import dataclasses
import glob
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from nlvideo.build.data import class_names, prepare_data, read_val_table, video_views
from nlvideo.build.model import build_model, check_clip
from nlvideo.config.compose import command_line_keys, from_container, run_command, to_container, to_yaml
from nlvideo.config.schema import EvaluateConfig, TrainConfig
from nlvideo.data.decoding.opening import load_decoder
from nlvideo.data.lists.path_list import VideoTable
from nlvideo.evaluation.metrics import headline
from nlvideo.evaluation.report import REPORT_FILE, write_report
from nlvideo.evaluation.result_files import (
    RESULT_FILE,
    Scores,
    merge_scores,
    print_table,
    read_results,
    summarize,
    write_results,
)
from nlvideo.evaluation.scoring import IDENTITY_FILE, Kept, Scorer, refuse_other, score_videos
from nlvideo.models.resnet import VideoResNet
from nlvideo.runtime import distributed
from nlvideo.runtime.errors import REPORTED_ERRORS, RunFailed, UserError, UserFileNotFoundError, error_line
from nlvideo.runtime.launch import launch_ranks
from nlvideo.runtime.precision import resolve_precision, use_tf32
from nlvideo.runtime.signals import StopSignal
from nlvideo.weights.checkpoint_file import evaluation_weights, load_checkpoint

KEPT_FOLDER = "unfinished"
VIEWS_PER_STEP = {"cpu": 2, "cuda": 15}  # the last bits of scores depend on it, so it is fixed, and recorded


def main() -> None:
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    run_command(run, "evaluate")


def run(composed: DictConfig) -> float:
    """Evaluates checkpoints with their own data settings, which keys on the command line replace.

    Returns the last one's top-1 or mAP. One that fails does not stop the others.
    """
    checkpoints = expand(composed)
    values, failed = [], []
    for checkpoint, output_dir in checkpoints:
        try:
            config = merge_with_checkpoint(composed, checkpoint, output_dir)
            if distributed.is_first():
                print(to_yaml(config))
            # torchrun's processes stay together from one checkpoint to the next
            function = evaluate if distributed.under_torchrun() else evaluate_and_leave
            result = launch_ranks(function, config, config.num_devices)
        except REPORTED_ERRORS as error:
            if len(checkpoints) == 1 or distributed.under_torchrun():
                raise
            failed.append(checkpoint)
            print(f"{checkpoint}: {error_line(error)}", file=sys.stderr)
        else:
            values.append((checkpoint, result[headline(result)]))
    distributed.leave_world()
    if len(checkpoints) > 1 and distributed.is_first():
        for checkpoint, value in values:
            print(f"{'-' if value is None else f'{100 * value:.2f} %':>9}  {checkpoint}")
        for checkpoint in failed:
            print(f"{'failed':>9}  {checkpoint}")
    if failed:
        raise RunFailed(f"{len(failed)} of {len(checkpoints)} checkpoints could not be evaluated.")
    return values[-1][1]


def expand(composed: DictConfig) -> list[tuple[str, str | None]]:
    """Returns the checkpoint files asked for, and the folder of each one's results, None for its own."""
    if OmegaConf.is_missing(composed, "checkpoint") or not composed.checkpoint:
        raise UserError("checkpoint has no value; give it as checkpoint=PATH on the command line.")
    asked = [composed.checkpoint] if isinstance(composed.checkpoint, str) else list(composed.checkpoint)
    files = []
    for name in map(str, asked):
        matching = sorted(glob.glob(name)) if glob.has_magic(name) and not os.path.exists(name) else [name]
        if not matching:
            raise UserFileNotFoundError(f"checkpoint={name} names no file.")
        files += [file for file in matching if file not in files]
    if composed.output_dir is None or len(files) == 1:
        return [(file, composed.output_dir) for file in files]
    # outputs/RUN/checkpoint.pt or outputs/RUN/checkpoints/step_00000100.pt
    folders = ["-".join([*Path(file).absolute().parent.parts[-2:], Path(file).stem]) for file in files]
    if len(set(folders)) < len(files):
        raise UserError("output_dir: the checkpoints have no names to tell their results apart; leave output_dir out.")
    return [(file, os.path.join(composed.output_dir, name)) for file, name in zip(files, folders, strict=True)]


def merge_with_checkpoint(composed: DictConfig, checkpoint: str, output_dir: str | None = None) -> EvaluateConfig:
    """Returns the checkpoint's data settings under what the command line gave, and prints what was replaced."""
    given = command_line_keys(composed) | {"checkpoint": checkpoint, "output_dir": output_dir}
    trained = from_container(TrainConfig, load_checkpoint(checkpoint)["config"])
    return merge_data(EvaluateConfig, trained, given)


def merge_data(cls: type, trained: TrainConfig, given: dict[str, Any]) -> Any:
    """Returns a config of class `cls` with the data settings of a trained network, under the keys given."""
    container = {"data": to_container(trained.data), "precision": trained.precision}
    # The checkpoint knows its class names. A file with the list's is compared with them, if there is one.
    container["data"]["num_classes"] = None
    names = container["data"]["classes"]
    if names is not None and not Path(given.get("data.root", trained.data.root), names).is_file():
        container["data"]["classes"] = None
    if "data.root" in given and not any(key.startswith("data.synthetic") for key in given):
        container["data"]["synthetic"] = None  # nothing is written into a folder that the user names
    for key, value in given.items():
        *path, name = key.split(".")
        node = container
        for part in path:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        if key.startswith(("data.", "precision")) and node.get(name) != value:
            print(f"{key}: {node.get(name)} in the checkpoint, {value} on the command line")
        node[name] = value
    config = from_container(cls, container)
    dataclasses.replace(trained, data=config.data)  # the checks of TrainConfig, on the merged data settings
    return config


def evaluate_and_leave(config: EvaluateConfig) -> dict:
    result = evaluate(config)
    distributed.leave_world()
    return result


def evaluate(config: EvaluateConfig) -> dict:
    """Scores the validation videos and, on rank 0, writes the results; returns the content of result.json.

    What was scored is kept in a folder of its own, so that the same call goes on after any interruption.
    """
    world, started = distributed.init_world(), time.monotonic()
    distributed.check_same(hashlib.sha256(to_yaml(config).encode()).hexdigest(), "configuration")
    use_tf32(False, world.device)
    checkpoint = load_checkpoint(config.checkpoint)
    trained = from_container(TrainConfig, checkpoint["config"])
    load_decoder(config.data.decoder)
    distributed.on_main(prepare_data, config.data)
    table = distributed.together(read_table_for, config, trained, checkpoint["classes"])
    if world.is_main and (class_names(config.data) or list(table.classes)) != list(table.classes):
        print(
            f"data.classes={config.data.classes} has the network's classes in another order; they are matched by name"
        )
    dtype = resolve_precision(config.precision, world.device)
    folder = output_folder(config, checkpoint["step"])
    # An evaluation goes on as it began, also on a machine with other cores.
    begun = distributed.on_main(recorded, folder)
    torch.set_num_threads(config.num_threads or begun.get("num_threads") or len(os.sched_getaffinity(0)))
    views_per_step = config.views_per_step or VIEWS_PER_STEP[world.device.type]
    identity = describe(config, checkpoint, table, dtype, world.device, views_per_step)
    distributed.check_same(identity, "evaluation")
    finished = distributed.on_main(finished_result, folder, identity)
    if finished is None:
        scorer = Scorer(
            load_network(checkpoint, trained, config),
            world.device,
            dtype,
            mean=config.data.mean,
            std=config.data.std,
            multi_label=table.multi_label,
            views_per_step=views_per_step,
        )
        kept = Kept(folder / KEPT_FOLDER, identity)
        before = distributed.on_main(kept.open)
        if before and world.is_main:
            print(f"going on: {len(before)} of {len(table)} videos are scored already")
        videos = sorted(set(range(len(table))) - set(before))[world.rank :: world.size]
        stopping = StopSignal()
        mine = score_videos(
            scorer,
            video_views(config.data, table, videos),
            table,
            world,
            total=len(videos),
            videos_per_step=config.videos_per_step,
            pooling=config.data.test.pooling,
            keep_clips=localizes(config),
            kept=kept,
            stopped=lambda: stopping.received,
        )
        stopping.release()
        stop_if_asked(stopping, folder)
        parts = distributed.gather(mine)
        seconds = {"seconds": round(time.monotonic() - started, 1), "num_scored_before": len(before)}
        finished = distributed.on_main(
            lambda: finish(folder, identity, [*parts, kept.before], table, config, seconds, world)
        )
    elif world.is_main:
        print(f"{folder} holds this evaluation already, finished; remove the folder to score again.")
        shutil.rmtree(folder / KEPT_FOLDER, ignore_errors=True)  # a kill may have left it
    if world.is_main:
        if config.report and not (folder / REPORT_FILE).exists():
            write_report(read_results(folder), table, decoder=config.data.decoder, frame_rate=config.data.frame_rate)
        print_table(finished, folder)
        if config.report:
            print(f"report       {folder}/{REPORT_FILE}")
    distributed.wait_for_all()
    return finished


def read_table_for(config: EvaluateConfig, trained: TrainConfig, classes: list[str]) -> VideoTable:
    """Returns the videos to evaluate.

    Raises:
        UserError: a list of a kind that the network was not trained for.
    """
    if config.data.multi_label != trained.data.multi_label:
        kinds = {True: "several classes a video, or none", False: "one class a video"}
        raise UserError(
            f"data.format={config.data.format}: the list has {kinds[config.data.multi_label]}, but the network was "
            f"trained for {kinds[trained.data.multi_label]} (data.format={trained.data.format})."
        )
    table = read_val_table(config.data, classes)
    if localizes(config) and np.isnan(table.segments.lengths).any():
        first = table.name(int(np.flatnonzero(np.isnan(table.segments.lengths))[0]))
        raise UserError(
            f"data.test.clip_sampling=points: {table.source} does not say the length of {first} (column length), which "
            "localisation is scored by."
        )
    return table


def localizes(config: EvaluateConfig) -> bool:
    """Returns whether the clips are scored one by one, against what goes on around them."""
    return config.data.multi_label and config.data.test.clip_sampling == "points"


def load_network(checkpoint: dict[str, Any], trained: TrainConfig, config: EvaluateConfig) -> VideoResNet:
    """Returns the checkpoint's network for the clips and crops of the config."""
    # The head averages over the training crop's extent, whatever is evaluated.
    clip = dataclasses.replace(trained.data, num_frames=config.data.num_frames)
    network = build_model(trained.model, trained.block, clip, len(checkpoint["classes"]))
    size = config.data.test.crop_size or config.data.test.short_side
    check_clip(network, clip.num_frames, size, size)
    network.load_state_dict(evaluation_weights(checkpoint))
    return network


def describe(
    config: EvaluateConfig,
    checkpoint: dict[str, Any],
    table: VideoTable,
    dtype: torch.dtype,
    device: torch.device,
    views_per_step: int,
) -> dict[str, Any]:
    """Returns what the scores depend on."""
    return {
        "checkpoint": str(config.checkpoint),
        "checkpoint_sha256": checkpoint["sha256"],  # of its content
        "step": checkpoint["step"],
        "list": table.source,
        "list_sha256": table.digest(),
        "videos": table.root,
        "num_frames": config.data.num_frames,
        "frame_stride": config.data.frame_stride,
        "views": dataclasses.asdict(config.data.test),
        "activation": "sigmoid" if table.multi_label else "softmax",
        "decoder": config.data.decoder,
        "frame_rate": config.data.frame_rate,
        "mean": config.data.mean,
        "std": config.data.std,
        "batch_norm": "precise" if checkpoint.get("precise_bn") else "running",
        "precision": str(dtype).removeprefix("torch."),
        "device_type": device.type,
        "views_per_step": views_per_step,
        "num_threads": torch.get_num_threads() if device.type == "cpu" else None,
        "torch": str(torch.__version__),
    }


def recorded(folder: Path) -> dict[str, Any]:
    """Returns what the scores depend on that the folder holds, finished or not; {} if it holds none."""
    for file in (folder / RESULT_FILE, folder / KEPT_FOLDER / IDENTITY_FILE):
        if file.exists():
            return json.loads(file.read_text())
    return {}


def finished_result(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the result that the folder holds already, if any.

    Raises:
        UserError: it is of another evaluation.
    """
    if not (folder / RESULT_FILE).exists():
        return None
    held = read_results(folder).result
    refuse_other(held, identity, f"{folder} holds the result of")
    return held


def stop_if_asked(stopping: StopSignal, folder: Path) -> None:
    """Ends all processes if one was asked to stop."""
    received = max(distributed.gather(stopping.received))
    if not received:
        return
    if distributed.is_first():
        print(f"Stopped; what is scored is kept in {folder / KEPT_FOLDER}, and the same command goes on from there.")
    distributed.leave_world()
    sys.exit(128 + received)


def finish(
    folder: Path,
    identity: dict[str, Any],
    parts: list[dict],
    table: VideoTable,
    config: EvaluateConfig,
    seconds: dict[str, float],
    world: distributed.World,
) -> dict[str, Any]:
    """Writes the results, removes what was kept meanwhile, and returns the content of result.json."""
    found: Scores = merge_scores(parts, table)
    result = summarize(found, table, config.data.test.num_clips) | identity
    result |= {
        "videos_per_step": config.videos_per_step,
        "num_devices": world.size,
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.processor(),
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__, "python": platform.python_version()},
        **seconds,
    }
    write_results(folder, result, found, table)
    shutil.rmtree(folder / KEPT_FOLDER, ignore_errors=True)  # some file systems keep a folder whose files are open
    (folder / REPORT_FILE).unlink(missing_ok=True)
    return json.loads(json.dumps(result))  # as it will be read


def output_folder(config: EvaluateConfig, step: int) -> Path:
    """Returns where the results go: beside the checkpoint, unless the config says otherwise."""
    if config.output_dir is not None:
        return Path(config.output_dir)
    test = config.data.test
    name = f"evaluation_step{step}_{test.num_clips}x{test.num_crops}_{test.clip_sampling}"
    return Path(config.checkpoint).parent / name


if __name__ == "__main__":
    main()
