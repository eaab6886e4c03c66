"""nlvideo-evaluate: the scores of checkpoints, every video with all its views in one pass."""

import dataclasses
import glob
import hashlib
import json
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nlvideo.runtime.threads  # noqa: F401, before torch is loaded

# isort: split
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from nlvideo.build.data import build_opener, check_stores, index_note, video_views, view_workers
from nlvideo.build.model import check_clip
from nlvideo.build.tables import class_names, prepare_data, read_val_table
from nlvideo.config.compose import command_line_keys, compose_stated, run_command, to_yaml, without_places
from nlvideo.config.schema import EvaluateConfig
from nlvideo.data.clips.batch import Colours
from nlvideo.data.decoding.opening import load_decoder
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.data.stores.traffic import Totals, totals
from nlvideo.evaluation.kept_scores import IDENTITY_FILE, KeptScores, VideoScores, refuse_other
from nlvideo.evaluation.metrics import headline
from nlvideo.evaluation.report import REPORT_FILE, write_report
from nlvideo.evaluation.result_files import RESULT_FILE, print_table, read_results, write_results
from nlvideo.evaluation.scoring import VIEWS_PER_STEP, Pooler, Scorer, score_videos
from nlvideo.evaluation.settings import merge_settings
from nlvideo.evaluation.summary import merge_scores, summarize
from nlvideo.runtime import distributed
from nlvideo.runtime.callable_module import make_callable
from nlvideo.runtime.cores import cores_of_rank
from nlvideo.runtime.distributed import World
from nlvideo.runtime.errors import REPORTED_ERRORS, RunFailed, UserError, UserFileNotFoundError, error_line
from nlvideo.runtime.folder_lock import holding
from nlvideo.runtime.launch import launch_ranks
from nlvideo.runtime.precision import keeping_torch_settings, resolve_precision, use_tf32
from nlvideo.runtime.progress import progress_bar
from nlvideo.runtime.signals import StopSignal
from nlvideo.weights.hub import is_repository
from nlvideo.weights.trained_network import TrainedCheckpoint, checkpoint_path, read_trained

KEPT_FOLDER = "unfinished"


def main() -> None:
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names need not be text
    run_command(evaluate_checkpoints, "evaluate")


def evaluate_from_python(checkpoint: str | os.PathLike, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluates a checkpoint, as `nlvideo-evaluate` does, and returns what result.json holds; it is `nlvideo.evaluate`.

    Args:
        checkpoint: a file, or a run's folder.
        overrides: of its settings, such as ["data.root=clips", "data.test.num_crops=1"].

    Raises:
        UserError: what the command would refuse, before anything is written.
        RunFailed: the evaluation cannot continue, for a reason that the message explains.
        KeyboardInterrupt: Ctrl-C; scores are kept, and the same call resumes. Other signals raise SystemExit.
    """
    _, given = compose_stated("evaluate", overrides)
    try:
        with keeping_torch_settings():
            return evaluate_checkpoint(given, str(checkpoint_path(os.fspath(checkpoint))), given.get("output_dir"))
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGINT:
            raise KeyboardInterrupt from None
        raise


def evaluate_checkpoints(composed: DictConfig) -> float:
    """Evaluates checkpoints with their own data settings, which keys on the command line replace.

    Returns the last one's top-1 or mAP. One that fails does not stop the others.
    """
    if distributed.under_torchrun():
        distributed.init_world()
    checkpoints, given = distributed.on_main(expand_checkpoints, composed), command_line_keys(composed)
    values, failed = [], []
    for checkpoint, output_dir in checkpoints:
        try:
            result = evaluate_checkpoint(given, checkpoint, output_dir)
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


def evaluate_checkpoint(given: Mapping[str, Any], checkpoint: str, output_dir: str | None) -> dict[str, Any]:
    """Evaluates one checkpoint on as many ranks as the config asks for; returns the content of result.json.

    Args:
        given: {key: value} that replace the checkpoint's own settings.
    """
    if distributed.under_torchrun():
        distributed.init_world()
    trained = distributed.on_main(read_trained, checkpoint)  # nodes without a common disk lack the file
    settings = {**given, "checkpoint": checkpoint, "output_dir": output_dir}
    config = merge_settings(EvaluateConfig, trained.config, settings)
    if distributed.is_first():
        print(to_yaml(config))
        if trained.note:
            print(trained.note)
    if config.num_devices > 1:
        return launch_ranks(evaluate_and_leave, config, config.num_devices)
    # torchrun's ranks stay together from one checkpoint to the next
    return launch_ranks(partial(evaluate, trained=trained), config, config.num_devices)


def evaluate_and_leave(config: EvaluateConfig) -> dict[str, Any]:
    result = evaluate(config)
    distributed.leave_world()
    return result


def expand_checkpoints(composed: DictConfig) -> list[tuple[str, str | None]]:
    """Returns the checkpoint files asked for, and the folder of each one's results, None for its own."""
    if OmegaConf.is_missing(composed, "checkpoint") or not composed.checkpoint:
        raise UserError("checkpoint has no value; give it as checkpoint=PATH on the command line.")
    asked = [composed.checkpoint] if isinstance(composed.checkpoint, str) else list(composed.checkpoint)
    files: list[str] = []
    for name in map(str, asked):
        matching = sorted(glob.glob(name)) if glob.has_magic(name) and not os.path.exists(name) else [name]
        if not matching:
            raise UserFileNotFoundError(f"checkpoint={name} matches no file.")
        files += [file for file in map(str, map(checkpoint_path, matching)) if file not in files]
    if composed.output_dir is None or len(files) == 1:
        return [(file, composed.output_dir) for file in files]
    # outputs/RUN/checkpoint.pt or outputs/RUN/checkpoints/step_00000100.pt
    folders = ["-".join([*Path(file).absolute().parent.parts[-2:], Path(file).stem]) for file in files]
    if len(set(folders)) < len(files):
        raise UserError("output_dir: the checkpoints have no names to tell their results apart; leave output_dir out.")
    return [(file, os.path.join(composed.output_dir, name)) for file, name in zip(files, folders, strict=True)]


@dataclass(frozen=True)
class EvaluationJob:
    """What is scored, how, and where the results go.

    Attributes:
        identity: everything that the scores depend on, as result.json holds it.
    """

    config: EvaluateConfig
    trained: TrainedCheckpoint
    table: VideoTable
    world: World
    dtype: torch.dtype
    views_per_step: int
    folder: Path
    identity: dict[str, Any]


def evaluate(config: EvaluateConfig, trained: TrainedCheckpoint | None = None) -> dict[str, Any]:
    """Scores the validation videos and, on rank 0, writes the results; returns the content of result.json.

    Scores are kept in a folder of their own meanwhile, so that the same call resumes after any interruption.

    Args:
        trained: the checkpoint, where the caller has read it already.
    """
    started, world = time.monotonic(), distributed.init_world()
    distributed.check_same(hashlib.sha256(to_yaml(without_places(config)).encode()).hexdigest(), "configuration")
    use_tf32(False, world.device)
    trained = (trained or read_trained(config.checkpoint)).named(class_names(config.data))
    job = plan_evaluation(config, trained, world)
    before = totals()
    result = distributed.on_main(finished_result, job.folder, job.identity)
    if result is None:
        with holding(job.folder / KEPT_FOLDER):
            result = score_and_write(job, started)
    elif world.is_main:
        print(f"{job.folder} holds this evaluation already, finished; remove the folder to score again.")
        shutil.rmtree(job.folder / KEPT_FOLDER, ignore_errors=True)  # a kill may have left it
    fetched = Totals(*distributed.sum_over_ranks([*totals(since=before)]))
    if world.is_main:
        if config.report and not (job.folder / REPORT_FILE).exists():
            opener = build_opener(dataclasses.replace(config.data, time_limit_seconds=None, clip_fps=None))
            write_report(read_results(job.folder), job.table, opener)
        print_table(result, job.folder)
        if fetched.opens:
            print(f"store        {fetched.line()}")
        if config.report:
            print(f"report       {job.folder}/{REPORT_FILE}")
    distributed.wait_for_all()
    return result


def plan_evaluation(config: EvaluateConfig, trained: TrainedCheckpoint, world: World) -> EvaluationJob:
    """Reads the list, finds the folder of the results, and settles everything that the scores depend on."""
    load_decoder(config.data.decoder)
    distributed.on_each_node(prepare_data, config.data)
    table = distributed.together(read_table_for, config, trained)
    if world.is_main:
        print(table.note)
    names = class_names(config.data)
    if world.is_main and names is not None and names != list(table.classes):
        print(f"data.classes={config.data.classes} lists the network's classes in another order; matched by name")
    dtype = resolve_precision(config.precision, world.device)
    folder = output_folder(config, trained.step)
    torch.set_num_threads(config.num_threads or threads_of_ranks(folder))
    views_per_step = config.views_per_step or VIEWS_PER_STEP[world.device.type]
    identity = identity_of(config, trained, table)
    identity |= {
        "precision": str(dtype).removeprefix("torch."),
        "device_type": world.device.type,
        "views_per_step": views_per_step,
        "num_threads": torch.get_num_threads() if world.device.type == "cpu" else None,
        "torch": str(torch.__version__),
    }
    note = distributed.on_main(index_note, config.data)
    if note and world.is_main:
        print(f"index     {note}")
    workers = view_workers(config.data)  # before any rank on this machine starts its own
    if workers.note and world.is_main:
        print(f"workers   {workers.note}")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=workers.number))
    # where a node has its list and videos may differ, what they are may not
    distributed.check_same({key: identity[key] for key in identity if key not in ("list", "videos")}, "evaluation")
    return EvaluationJob(config, trained, table, world, dtype, views_per_step, folder, identity)


def threads_of_ranks(folder: Path) -> int:
    """Returns how many CPU threads each rank has unless the config says so, the same on all: scores depend on it.

    An evaluation that was begun keeps its number, also with other ranks or on a machine with other cores. Of a new one
    each rank has its part of the cores, the smallest of all.
    """
    begun, part = distributed.on_main(recorded, folder), min(distributed.gather(cores_of_rank()))
    return begun.get("num_threads") or part


def read_table_for(config: EvaluateConfig, trained: TrainedCheckpoint) -> VideoTable:
    """Returns the videos to evaluate.

    Raises:
        UserError: a list of a kind that the network was not trained for.
    """
    data, before = config.data, trained.config.data
    if data.is_multi_label != before.is_multi_label:
        kinds = {True: "several classes a video, or none", False: "one class a video"}
        raise UserError(
            f"data.format={data.format}: the list has {kinds[data.is_multi_label]}, but the network was trained for "
            f"{kinds[before.is_multi_label]} (data.format={before.format}, data.multi_label={before.multi_label})."
        )
    table = read_val_table(data, trained.classes)
    check_stores(data, table)
    if localizes(config):
        if table.segments is None:
            raise UserError(
                f"data.test.clip_sampling=points: {table.source} does not say when its actions take place, which "
                "localisation needs; take another data.test.clip_sampling."
            )
        unknown = np.flatnonzero(np.isnan(table.segments.lengths))
        if len(unknown):
            raise UserError(
                f"data.test.clip_sampling=points: {table.source} does not give the length of "
                f"{table.name(int(unknown[0]))} (column length), which localisation needs."
            )
    return table


def localizes(config: EvaluateConfig) -> bool:
    """Returns whether clips are scored one by one, against the actions at their time."""
    return config.data.is_multi_label and config.data.test.clip_sampling == "points"


def identity_of(config: EvaluateConfig, trained: TrainedCheckpoint, table: VideoTable) -> dict[str, Any]:
    """Returns what the scores depend on, apart from the device."""
    rate = {} if config.data.clip_fps is None else {"clip_fps": config.data.clip_fps}  # results before it lack the key
    return {
        "checkpoint": str(config.checkpoint),
        "checkpoint_sha256": trained.sha256,
        "step": trained.step,
        "list": table.source,
        "list_sha256": table.digest(),
        "videos": table.root,
        "num_frames": config.data.num_frames,
        "frame_stride": config.data.frame_stride,
        "views": dataclasses.asdict(config.data.test),
        "activation": "sigmoid" if table.multi_label else "softmax",
        "decoder": config.data.decoder,
        "frame_rate": config.data.frame_rate,
        **rate,
        "mean": config.data.mean,
        "std": config.data.std,
        "batch_norm": "precise" if trained.content.get("precise_bn") else "running",
    }


def output_folder(config: EvaluateConfig, step: int) -> Path:
    """Returns where the results go: beside the checkpoint or in the published folder, unless the config says otherwise.

    Those of a network of the hub go into outputs, as a run's: its files lie in a cache.
    """
    if config.output_dir is not None:
        return Path(config.output_dir)
    test = config.data.test
    name = f"evaluation_step{step}_{test.num_clips}x{test.num_crops}_{test.clip_sampling}"
    if is_repository(config.checkpoint):
        return Path("outputs", config.checkpoint.replace("/", "--"), name)
    path = checkpoint_path(config.checkpoint)
    return (path if path.is_dir() else path.parent) / name


def recorded(folder: Path) -> dict[str, Any]:
    """Returns what the scores in a folder depend on, finished or not; {} if it holds none."""
    for file in (folder / RESULT_FILE, folder / KEPT_FOLDER / IDENTITY_FILE):
        if file.exists():
            return json.loads(file.read_text())
    return {}


def finished_result(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the result that the folder holds already, if any.

    Raises:
        UserFileExistsError: it is of another evaluation.
    """
    if not (folder / RESULT_FILE).exists():
        return None
    held = read_results(folder).result
    refuse_other(held, identity, f"{folder} holds the result of")
    return held


def score_and_write(job: EvaluationJob, started: float) -> dict[str, Any]:
    """Scores what is not scored yet and writes the results; returns the content of result.json."""
    kept = KeptScores(job.folder / KEPT_FOLDER, job.identity)
    before = distributed.on_main(kept.open)
    if before and job.world.is_main:
        print(f"resumed: {len(before)} of {len(job.table)} videos are scored already")
    videos = sorted(set(range(len(job.table))) - set(before))[job.world.rank :: job.world.size]
    parts = distributed.gather(score_share(job, videos, kept))
    seconds = {"seconds": round(time.monotonic() - started, 1), "num_scored_before": len(before)}
    result = distributed.on_main(lambda: finish(job, [*parts, kept.before], seconds))
    shutil.rmtree(kept.folder, ignore_errors=True)  # where nodes share no disk, each has kept its own
    return result


def score_share(job: EvaluationJob, videos: list[int], kept: KeptScores) -> VideoScores:
    """Returns the scores of this rank's videos; exits if a rank is asked to stop meanwhile."""
    data = job.config.data
    network = job.trained.build_network(data.num_frames)
    size = data.test.crop_size or data.test.short_side
    check_clip(network, data.num_frames, size, size)
    scorer = Scorer(
        network,
        job.world.device,
        job.dtype,
        colours=Colours(data.mean, data.std),
        multi_label=job.table.multi_label,
        views_per_step=job.views_per_step,
    )
    label, hidden = f"evaluating {job.table.source}", not job.world.is_main
    with (
        StopSignal() as stopping,
        closing(video_views(data, job.table, videos)) as views,
        progress_bar(total=len(videos), desc=label, unit="video", disable=hidden) as bar,
    ):
        found = score_videos(
            scorer,
            Pooler(job.table, data.test.pooling, localizes(job.config)),
            stopping.while_waiting(views),
            kept,
            videos_per_step=job.config.videos_per_step,
            stopped=lambda: stopping.received,
            bar=bar,
        )
    exit_if_stopped(stopping, job.folder)
    return found


def exit_if_stopped(stopping: StopSignal, folder: Path) -> None:
    """Exits on all ranks if one was asked to stop."""
    received = max(distributed.gather(stopping.received))
    if not received:
        return
    if distributed.is_first():
        print(f"Stopped; scores are kept in {folder / KEPT_FOLDER}. Resume with the same command.")
    distributed.leave_world()
    sys.exit(128 + received)


def finish(job: EvaluationJob, parts: list[VideoScores], seconds: dict[str, float]) -> dict[str, Any]:
    """Writes the results, removes what was kept meanwhile, and returns the content of result.json."""
    device, folder = job.world.device, job.folder
    scores = merge_scores(parts, job.table)
    test = job.config.data.test
    result = summarize(scores, job.table, test.num_clips, test.pooling) | job.identity
    result |= {
        "videos_per_step": job.config.videos_per_step,
        "num_devices": job.world.size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__, "python": platform.python_version()},
        **seconds,
    }
    write_results(folder, result, scores, job.table)
    shutil.rmtree(folder / KEPT_FOLDER, ignore_errors=True)  # some file systems keep a folder whose files are open
    (folder / REPORT_FILE).unlink(missing_ok=True)
    return json.loads(json.dumps(result))  # as it will be read


if __name__ == "__main__":
    main()
else:
    make_callable(__name__, evaluate_from_python)
