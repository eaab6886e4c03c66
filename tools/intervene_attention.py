"""Measures whether what the blocks of a trained network attend to matters: its accuracy with other attention weights.

    python tools/intervene_attention.py run/checkpoint.pt
    python tools/intervene_attention.py outputs/ablation/experiment-c2d_r50_nl5+seed-*/checkpoint.pt --csv drops.csv
    python tools/intervene_attention.py run/checkpoint.pt --list test.csv --root DIR --block res4.3 res4.5

The weights are replaced by their mean over queries, their mean over videos, shuffled and uniform ones, and the blocks
are removed (nlvideo/attention/interventions.py); nothing is trained. Several checkpoints are one network trained with
several seeds. The clip is the centre clip of each video, its centre crop of data.crop_size pixels. Drops are paired by
seed and video, with the 95 % interval and p of tools/collect_results.py --table. p (Holm) counts all rows but those
that cannot change anything, such as a mean over queries where all queries share a map. mAP has no values of single
videos, so its interval is over seeds, and there is none for one checkpoint. The network computes in float32.
"""

import argparse
import csv
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from nlvideo.attention.interventions import (
    INTERVENTIONS,
    TRAINED,
    MeanMap,
    change_of,
    collected_maps,
    replaced_maps,
)
from nlvideo.build.data import center_batches
from nlvideo.build.tables import read_val_table
from nlvideo.config.schema import DataConfig
from nlvideo.data.clips.batch import Batch, Colours, Normalizer
from nlvideo.data.decoding.opening import load_decoder
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.evaluation.metrics import headline, target_ranks, validation_metrics
from nlvideo.evaluation.settings import refuse_stored_addresses
from nlvideo.evaluation.significance import holm, interval_and_p
from nlvideo.experiments.tables import p_cell
from nlvideo.runtime.errors import UserError, reporting_errors
from nlvideo.runtime.files import make_place, replacing
from nlvideo.runtime.precision import use_tf32
from nlvideo.runtime.progress import progress_bar
from nlvideo.weights.trained_network import TrainedCheckpoint, read_trained

SEED = 0  # of the shuffled maps
CLIP_KEYS = ("num_frames", "frame_stride", "clip_fps", "crop_size", "mean", "std")  # the clips that a network takes
NOTHING = 1e-4  # scores that differ by a smaller share of the largest one do so by rounding
PIXELS_PER_PASS = 2**22  # of all frames: 42 clips of 24 x 64 x 64, 2 of 32 x 224 x 224
Scores = dict[tuple[str, str], np.ndarray]  # {(intervention, blocks): logits (V, K)}
ALL = "all"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="of one network, one for each seed")
    parser.add_argument(
        "--list", metavar="LIST", help="of videos with their classes, relative to --root (default: the runs' data.val)"
    )
    parser.add_argument("--root", metavar="DIR", help="folder of the videos (default: the runs' data.root)")
    parser.add_argument("--block", nargs="+", metavar="PLACE", help="also each of these blocks alone, such as res4.5")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="the table, unrounded")
    arguments = parser.parse_args()
    with reporting_errors():
        if arguments.csv:
            make_place(arguments.csv, f"--csv {arguments.csv}")
        rows = measure(arguments)
        print_rows(rows, len(arguments.checkpoints))
        if arguments.csv:
            write_csv(arguments.csv, rows)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the rows of the table: a metric for each intervention and its drop."""
    trained = [read_trained(path) for path in arguments.checkpoints]
    first = trained[0]
    for other in trained[1:]:
        refuse_other_network(first, other)
    seeds = [one.config.seed for one in trained]
    if len({*seeds}) < len(seeds):
        raise UserError(f"The checkpoints must have a seed each; they have {', '.join(map(str, seeds))}.")
    places = first.build_network().places
    if not places:
        raise UserError(f"{first.path} has no context blocks (block.kind=none), so there are no maps to replace.")
    for place in arguments.block or []:
        if place not in places:
            raise UserError(f"--block {place}: {first.path} has blocks at {', '.join(places)}.")
    table, data = read_list(first, arguments)
    chosen = {ALL: tuple(places)} | {place: (place,) for place in arguments.block or []}
    scores = [network_scores(checkpoint, data, table, chosen) for checkpoint in trained]
    return summarize(scores, table.targets)


def refuse_other_network(first: TrainedCheckpoint, other: TrainedCheckpoint) -> None:
    """Raises UserError for a checkpoint that is not of the same network and classes."""
    for key, compared in (("model", None), ("block", None), ("data", CLIP_KEYS)):
        ours, theirs = (dataclasses.asdict(getattr(one.config, key)) for one in (first, other))
        for name in compared or ours.keys() - {"pretrained", "dropout"}:
            if ours[name] != theirs[name]:
                raise UserError(
                    f"{other.path} has {key}.{name}={theirs[name]}, {first.path} {ours[name]}: they are not one "
                    "network trained with several seeds."
                )
    if list(first.classes) != list(other.classes):
        raise UserError(f"{other.path} and {first.path} have other classes.")


def read_list(first: TrainedCheckpoint, arguments: argparse.Namespace) -> tuple[VideoTable, DataConfig]:
    """Returns the videos to measure, and the settings to read them with."""
    data = first.config.data
    given = [f"data.{key}" for key, value in (("val", arguments.list), ("root", arguments.root)) if value]
    refuse_stored_addresses(data, [*given, "data.classes"])
    # The class names are the checkpoint's, and no set is written.
    data = dataclasses.replace(
        data,
        val=arguments.list or data.val,
        root=arguments.root or data.root,
        classes=None,
        num_classes=None,
        synthetic=None,
        num_workers=None,  # this and the next two are of the machine that it was trained on
        index=None,
        cache_dir=None,
    )
    load_decoder(data.decoder)
    return read_val_table(data, first.classes), data


@torch.inference_mode()
def network_scores(
    checkpoint: TrainedCheckpoint, data: DataConfig, table: VideoTable, chosen: dict[str, tuple[str, ...]]
) -> Scores:
    """Returns the logits of every intervention; NaN for videos that cannot be decoded.

    Args:
        chosen: {name: blocks to replace together}.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    use_tf32(False, device)
    network = checkpoint.build_network().eval().to(device)
    normalize = Normalizer(Colours(data.mean, data.std), device, torch.float32)
    name = str(checkpoint.path)
    means = {place: MeanMap() for place in network.places}
    with collected_maps(network, means):
        for batch in batches(data, table, f"mean maps of {name}"):
            network(normalize(batch.clips))
    rounds = [(TRAINED, ALL)] + [(kind, blocks) for blocks in chosen for kind in INTERVENTIONS if kind != TRAINED]
    scores = {key: np.full((len(table), len(checkpoint.classes)), np.nan, np.float32) for key in rounds}
    generators = {key: torch.Generator(device).manual_seed(SEED) for key in rounds}
    for batch in batches(data, table, f"interventions in {name}"):
        clips = normalize(batch.clips)
        for kind, blocks in rounds:
            replaced = chosen[blocks] if kind != TRAINED else ()
            changes = {place: change_of(kind, means[place], generators[kind, blocks]) for place in replaced}
            with replaced_maps(network, changes):
                scores[kind, blocks][batch.videos.numpy()] = network(clips).cpu().numpy()
    return scores


def batches(data: DataConfig, table: VideoTable, what: str) -> Iterator[Batch]:
    """Yields the centre clips of all videos that can be decoded."""
    clips = max(1, PIXELS_PER_PASS // (data.num_frames * data.crop_size**2))
    count = -(-len(table) // clips)
    for batch in progress_bar(center_batches(data, table, clips, rank=0, size=1), desc=what, total=count, unit="batch"):
        if len(batch.videos):
            yield batch


def summarize(scores: Sequence[Scores], targets: np.ndarray) -> list[dict[str, Any]]:
    """Returns a row for each intervention, with the mean over seeds, and the paired drop with its interval and p.

    Args:
        scores: of each seed.
        targets: (V,) int, or (V, K) bool for multi-label data.
    """
    rows = []
    for kind, blocks in scores[0]:
        values = [validation_metrics(of_seed[kind, blocks], targets) for of_seed in scores]
        metric = headline(values[0])
        row: dict[str, Any] = {
            "map": kind,
            "blocks": blocks,
            "metric": metric,
            "value": float(np.mean([v[metric] for v in values])),
        }
        if kind != TRAINED:
            drops = np.stack([_drops(of_seed, (kind, blocks), targets) for of_seed in scores])
            low, high, p = interval_and_p(drops)
            if all(_changes_nothing(of_seed, (kind, blocks)) for of_seed in scores):
                low = high = p = float("nan")
            row |= {"drop": float(drops.mean()), "low": low, "high": high, "p": p}
            row["other_answer"] = float(np.mean([_share_of_others(of_seed, (kind, blocks)) for of_seed in scores]))
        rows.append(row)
    adjusted = iter(holm([one["p"] for one in rows if "p" in one]))
    return [one | {"p_holm": next(adjusted)} if "p" in one else one for one in rows]


def _drops(scores: Scores, key: tuple[str, str], targets: np.ndarray) -> np.ndarray:
    """Returns (V,) 1 where only the trained network is right, -1 where only the other is; (1,) of mAP otherwise."""
    trained, other = scores[TRAINED, ALL], scores[key]
    if targets.ndim == 2:
        return np.array([validation_metrics(trained, targets)["map"] - validation_metrics(other, targets)["map"]])
    return (target_ranks(trained, targets) == 0).astype(float) - (target_ranks(other, targets) == 0)


def _changes_nothing(scores: Scores, key: tuple[str, str]) -> bool:
    """Returns whether the scores are those of the trained network but for rounding."""
    trained, other = np.nan_to_num(scores[TRAINED, ALL]), np.nan_to_num(scores[key])
    return bool(np.abs(trained - other).max() <= NOTHING * np.abs(trained).max())


def _share_of_others(scores: Scores, key: tuple[str, str]) -> float:
    """Returns the share of decoded videos whose best class is another than the trained network's."""
    trained, other = scores[TRAINED, ALL], scores[key]
    decoded = ~np.isnan(trained).any(1)
    return float((trained[decoded].argmax(1) != other[decoded].argmax(1)).mean()) if decoded.any() else float("nan")


def print_rows(rows: Sequence[dict[str, Any]], seeds: int) -> None:
    metric = {"top1": "top-1", "map": "mAP"}[rows[0]["metric"]]
    table = Table(
        "map",
        "blocks",
        metric,
        "drop",
        "p",
        "p (Holm)",
        "other answer",
        title="1 checkpoint" if seeds == 1 else f"mean of {seeds} checkpoints",
    )
    for row in rows:
        cells = [row["map"], row["blocks"] if row["map"] != TRAINED else "-", f"{100 * row['value']:.2f}"]
        if "drop" in row:
            interval = "" if np.isnan(row["low"]) else f" ({100 * row['low']:+.2f} to {100 * row['high']:+.2f})"
            cells += [f"{100 * row['drop']:+.2f}{interval}", *(p_cell(row[key]) for key in ("p", "p_holm"))]
            cells.append(f"{100 * row['other_answer']:.1f} %")
        table.add_row(*cells)
    console = Console()
    Console(width=None if console.is_terminal else 140).print(table)


def write_csv(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    with replacing(file) as partial, open(partial, "w", newline="") as opened:
        writer = csv.DictWriter(opened, max((list(row) for row in rows), key=len))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
