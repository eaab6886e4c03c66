"""nlvideo-evaluate: the score of a checkpoint, every video with all its views in one pass.

V videos, K classes.
"""

import csv
import dataclasses
import hashlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from nlvideo import distributed as world_of
from nlvideo.checkpoint import evaluation_weights, load_checkpoint
from nlvideo.config import (
    EvaluateConfig,
    TrainConfig,
    command_line_keys,
    from_container,
    run_command,
    to_container,
    to_yaml,
)
from nlvideo.data import VideoTable, prepare_data, read_val_table, video_views
from nlvideo.data.decode import load_decoder
from nlvideo.data.transforms import normalize
from nlvideo.metrics import mean_class_accuracy, target_ranks, topk_accuracy
from nlvideo.models import VideoResNet, build_model, check_clip
from nlvideo.precision import autocast, input_dtype, resolve_precision


class Scores(NamedTuple):
    """What one pass found: for each video of the table its scores, and why a video has none."""

    scores: np.ndarray  # (V, K) float32, softmax averaged over positions and views; NaN where undecodable
    failures: dict[int, str]  # index in the table -> reason


def main() -> None:
    run_command(run, "evaluate")


def run(composed: DictConfig) -> float:
    """Evaluates a checkpoint with its own data settings, which keys on the command line replace; returns top-1."""
    config = merge_with_checkpoint(composed)
    if world_of.is_first():
        print(to_yaml(config))
    return world_of.launch(evaluate, config, config.num_devices)["top1"]


def merge_with_checkpoint(composed: DictConfig) -> EvaluateConfig:
    """Returns the checkpoint's data settings under what the command line gave, and prints what was replaced."""
    given = command_line_keys(composed)
    if "checkpoint" not in given:
        raise ValueError("checkpoint has no value; give it as checkpoint=PATH on the command line.")
    trained = from_container(TrainConfig, load_checkpoint(composed.checkpoint)["config"])
    container = {"data": to_container(trained.data), "precision": trained.precision}
    # The checkpoint knows its class names; a file with them is read where the command line names one, to be compared.
    container["data"] |= {"classes": None, "num_classes": None}
    if "data.root" in given and not any(key.startswith("data.synthetic") for key in given):
        container["data"]["synthetic"] = None  # nothing is written into a folder that the user names
    for key, value in given.items():
        *path, name = key.split(".")
        node = container
        for part in path:
            node = node.setdefault(part, {})
        if key.startswith(("data.", "precision")) and node.get(name) != value:
            print(f"{key}: {node.get(name)} in the checkpoint, {value} on the command line")
        node[name] = value
    config = from_container(EvaluateConfig, container)
    dataclasses.replace(trained, data=config.data)  # the checks of TrainConfig, on the merged data settings
    return config


def evaluate(config: EvaluateConfig) -> dict:
    """Scores the validation videos and, on rank 0, writes the results; returns the content of result.json."""
    world = world_of.init_world()
    started = time.monotonic()
    checkpoint = load_checkpoint(config.checkpoint)
    trained = from_container(TrainConfig, checkpoint["config"])
    load_decoder(config.data.decoder)
    if world.is_main:
        prepare_data(config.data)
    world_of.wait_for_all()
    table = read_val_table(config.data, checkpoint["classes"])
    folder = output_folder(config, checkpoint["step"])
    identity = {
        "checkpoint": str(config.checkpoint),
        "checkpoint_sha256": _sha256(config.checkpoint),
        "step": checkpoint["step"],
        "list": table.source,
        "list_sha256": table.digest(),
        "num_frames": config.data.num_frames,
        "frame_stride": config.data.frame_stride,
        "views": dataclasses.asdict(config.data.test),
        "decoder": config.data.decoder,
        "mean": config.data.mean,
        "std": config.data.std,
        "batch_norm": "precise" if checkpoint.get("precise_bn") else "running",
    }
    _refuse_other_results(folder, identity)

    # The head averages over the training crop's extent, whatever is evaluated.
    clip = dataclasses.replace(trained.data, num_frames=config.data.num_frames)
    network = build_model(trained.model, trained.block, clip, len(checkpoint["classes"]))
    check_clip(network, clip.num_frames, config.data.test.crop_size, config.data.test.crop_size)
    network.load_state_dict(evaluation_weights(checkpoint))
    dtype = resolve_precision(config.precision, world.device)
    network = network.to(world.device, input_dtype(dtype), memory_format=torch.channels_last_3d).eval()
    mine = score_videos(network, config, world, dtype, table)
    found = merge_scores(world_of.gather(mine), table)

    result = summarize(found, table)
    result |= identity
    result |= {
        "precision": str(dtype).removeprefix("torch."),
        "views_per_step": config.views_per_step,
        "num_devices": world.size,
        "num_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.processor(),
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__, "python": platform.python_version()},
        "seconds": round(time.monotonic() - started, 1),
    }
    if world.is_main:
        write_results(folder, result, found, table)
        print_table(result, folder)
    world_of.leave_world()
    return result


@torch.inference_mode()
def score_videos(
    network: VideoResNet,
    config: EvaluateConfig,
    world: world_of.World,
    dtype: torch.dtype,
    table: VideoTable,
) -> dict[int, np.ndarray | str]:
    """Returns for each of this process's videos its scores (K,) float32, or the reason why it has none.

    Softmax at each position of the fully convolutional network, the mean over positions, then over views
    (Sec. 4.1 and the authors' test_net_video.py).
    """
    mean, std = torch.tensor(config.data.mean), torch.tensor(config.data.std)
    found = {}
    bar = tqdm(
        video_views(config.data, table, rank=world.rank, size=world.size),
        total=len(range(world.rank, len(table), world.size)),
        desc=f"evaluating {table.source}",
        unit="video",
        disable=not world.is_main,
        mininterval=0.2 if sys.stderr.isatty() else 10,
    )
    for video in bar:
        if video.failures:
            found[video.video] = video.failures[0].reason
            continue
        total = torch.zeros(network.num_classes, dtype=torch.float64)
        for clips in video.chunks(config.views_per_step):
            inputs = normalize(clips.to(world.device, non_blocking=True), mean, std, input_dtype(dtype))
            with autocast(world.device, dtype):
                logits = network.position_logits(inputs)  # (views, positions, K)
            scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(2).mean(1)
            total += scores.double().sum(0).cpu()
        found[video.video] = (total / video.num_views).float().numpy()
    return found


def merge_scores(parts: list[dict[int, np.ndarray | str]], table: VideoTable) -> Scores:
    """Returns the scores of all processes in the table's order; every video must have come exactly once."""
    scores = np.full((len(table), len(table.classes)), np.nan, np.float32)
    failures = {}
    counted = sum(len(part) for part in parts)
    for part in parts:
        for video, value in part.items():
            if isinstance(value, str):
                failures[video] = value
            else:
                scores[video] = value
    scored = int(np.isfinite(scores).all(axis=1).sum())
    if counted != len(table) or scored + len(failures) != len(table):
        raise RuntimeError(
            f"{len(table)} videos, but {scored} finite scores and {len(failures)} failures from {counted} evaluated: "
            "a score is not finite, or a video was left out or repeated."
        )
    return Scores(scores, dict(sorted(failures.items())))


def summarize(found: Scores, table: VideoTable) -> dict:
    """Returns the metrics as fractions. A video that cannot be decoded counts as wrong, as a missing one does in
    the authors' test; the score over the decoded ones alone stands beside it."""
    ranks = target_ranks(found.scores, table.targets)
    decoded = np.setdiff1d(np.arange(len(table)), list(found.failures))
    k = min(5, len(table.classes))
    return {
        "top1": topk_accuracy(ranks, 1),
        "top5": topk_accuracy(ranks, k),
        "mean_class_accuracy": mean_class_accuracy(ranks, table.targets),
        "num_videos": len(table),
        "num_undecodable": len(found.failures),
        "top1_decoded": topk_accuracy(ranks[decoded], 1) if len(decoded) else None,
        "undecodable": [{"video": table.name(i), "reason": reason} for i, reason in found.failures.items()],
    }


def output_folder(config: EvaluateConfig, step: int) -> Path:
    if config.output_dir is not None:
        return Path(config.output_dir)
    test = config.data.test
    name = f"evaluation_step{step}_{test.num_clips}x{test.num_crops}_{test.clip_sampling}"
    return Path(config.checkpoint).parent / name


def write_results(folder: Path, result: dict, found: Scores, table: VideoTable) -> None:
    """Writes scores.npz, predictions.csv and, last, result.json, all in the order of the list."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [table.name(i) for i in range(len(table))]
    np.savez(folder / "scores.npz", ids=np.array(names), classes=np.array(table.classes), scores=found.scores)
    k = min(5, len(table.classes))
    with open(folder / "predictions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        header = [f"{what}{i}" for i in range(1, k + 1) for what in ("class", "score")]
        writer.writerow(["video", "target", *header])
        for i, name in enumerate(names):
            row = [name, table.classes[table.targets[i]]]
            if i not in found.failures:
                for best in np.argsort(-found.scores[i], kind="stable")[:k]:
                    row += [table.classes[best], f"{found.scores[i, best]:.6f}"]
            writer.writerow(row)
    partial = folder / ".result.json.part"
    partial.write_text(json.dumps(result, indent=1))
    partial.replace(folder / "result.json")


def print_table(result: dict, folder: Path) -> None:
    """Prints the scores and, in lines of their own that no terminal cuts, what could not be decoded and the files."""
    from rich.console import Console
    from rich.table import Table

    views = result["views"]
    table = Table("views", "videos", "undecodable", "top-1", "top-5", "mean of classes")
    table.add_row(
        f"{views['num_clips']} x {views['num_crops']}",
        str(result["num_videos"]),
        str(result["num_undecodable"]),
        *(f"{100 * result[key]:.2f} %" for key in ("top1", "top5", "mean_class_accuracy")),
    )
    Console().print(table)
    for row in result["undecodable"][:10]:
        print(f"undecodable, counted as wrong: {row['video']}: {row['reason']}")
    if result["num_undecodable"] > 10:
        print(f"... and {result['num_undecodable'] - 10} more, all in result.json")
    print(f"checkpoint   {result['checkpoint']}, step {result['step']}")
    print(f"results      {folder}/result.json, predictions.csv, scores.npz")


def _refuse_other_results(folder: Path, identity: dict) -> None:
    """Raises FileExistsError if the folder holds the result of another evaluation."""
    file = folder / "result.json"
    if not file.exists():
        return
    held = json.loads(file.read_text())
    differing = [key for key, value in identity.items() if held.get(key) != value and key != "checkpoint"]
    if differing:
        key = differing[0]
        raise FileExistsError(
            f"{folder} holds the result of another evaluation ({key}: {held.get(key)}, now {identity[key]}); "
            "give another output_dir."
        )


def _sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
