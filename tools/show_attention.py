"""Shows what the context blocks of a network attend to in a video, or measures it over a list of videos.

    python tools/show_attention.py CHECKPOINT VIDEO                          # what attends to the most attended place
    python tools/show_attention.py CHECKPOINT VIDEO --query 5,40,31          # frame 5 of the clip, x 40, y 31
    python tools/show_attention.py CHECKPOINT VIDEO --query 5,40,31 9,10,12 --block res4.5
    python tools/show_attention.py CHECKPOINT [CHECKPOINT ...] --statistics val.csv [--root DIR] [--limit 200]

Of a video the centre clip is taken, at the centre crop of data.crop_size pixels that the checkpoint was trained with.
PREFIX.png has a row for each block, with arrows to the keys that the query attends to most (non-local paper, Figure 3);
with several queries a row for each, of one block (GCNet, Figure 1). PREFIX.mp4 has all frames. Blocks that have one map
for all queries (simplified_non_local, global_context) are shown without any.

--statistics prints GCNet's numbers for each block (nlvideo/attention/map_statistics.py) and writes PREFIX.csv. Files
of the same names are overwritten. The network computes in float32.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from nlvideo.attention.map_statistics import Statistics, mean_statistics, statistics
from nlvideo.attention.maps import Attention, look
from nlvideo.attention.pictures import write_picture, write_video
from nlvideo.attention.rows import chosen_rows
from nlvideo.build.data import read_val_table
from nlvideo.build.model import build_model
from nlvideo.config.compose import from_container
from nlvideo.config.schema import DataConfig, TrainConfig
from nlvideo.data.clips.normalize import normalize
from nlvideo.data.clips.sampling import clip_indices, crop_offsets, resized_size, view_indices
from nlvideo.data.decoding.opening import load_decoder, open_video
from nlvideo.data.decoding.video import DecodeError, SlowVideo
from nlvideo.models.resnet import VideoResNet
from nlvideo.runtime.errors import REPORTED_ERRORS, UserError
from nlvideo.weights.checkpoint_file import evaluation_weights, load_checkpoint

USAGE = "\n       ".join(
    (
        "%(prog)s CHECKPOINT VIDEO [--query FRAME,X,Y ...] [--block PLACE] [--top N] [--start FRAME]",
        "%(prog)s CHECKPOINT [CHECKPOINT ...] --statistics LIST [--root DIR] [--limit N] [--num-clips N]",
    )
)
COLUMNS = {  # heading and form of each number
    "input": ("cosine\ninput", ".3f"),
    "output": ("cosine\noutput", ".3f"),
    "attention": ("cosine\nattention", ".3f"),
    "jsd": ("JSD\nattention", ".3f"),
    "space": ("pixels\naway", ".1f"),
    "time": ("frames\naway", ".2f"),
    "entropy": ("entropy", ".3f"),
    "own_frame": ("own\nframe", ".3f"),
}


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds, ready to be asked."""

    path: str
    network: VideoResNet
    data: DataConfig
    classes: list[str]
    device: torch.device

    def normalized(self, clips: Tensor) -> Tensor:
        """Returns clips (N, T, H, W, 3) uint8 as the network takes them, (N, 3, T, H, W) float32."""
        mean, std = torch.tensor(self.data.mean), torch.tensor(self.data.std)
        return normalize(clips.permute(0, 4, 1, 2, 3).to(self.device), mean, std, torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, usage=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", metavar="CHECKPOINT VIDEO", help="with --statistics checkpoints only")
    parser.add_argument("--query", nargs="+", action="extend", metavar="FRAME,X,Y", help="frame of the clip, pixel")
    parser.add_argument("--block", metavar="PLACE", help="this block only, such as res4.5")
    parser.add_argument("--top", type=int, metavar="N", help="strongest keys marked (default 20)")
    parser.add_argument("--start", type=int, metavar="FRAME", help="of the video, where the clip begins")
    parser.add_argument("--fps", type=int, help="frames a second of PREFIX.mp4 (default 8)")
    parser.add_argument("--output", type=Path, metavar="PREFIX", help="default: attention_ and the video's name")
    parser.add_argument("--statistics", metavar="LIST", help="list of videos, relative to --root as data.val is")
    parser.add_argument("--root", metavar="DIR", help="folder of the videos (default: the checkpoint's data.root)")
    parser.add_argument("--limit", type=int, metavar="N", help="N videos, spread over the list")
    parser.add_argument("--num-clips", type=int, metavar="N", help="clips of each video (default 1)")
    arguments = parser.parse_intermixed_args()
    try:
        check_arguments(arguments)
        measure(arguments) if arguments.statistics else show(arguments)
    except (*REPORTED_ERRORS, DecodeError, SlowVideo) as error:
        sys.exit(f"error: {error}")


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together or are out of range."""
    given = len(arguments.inputs)
    if arguments.statistics is None and given != 2:
        raise UserError(f"{given} paths given: CHECKPOINT VIDEO are wanted, or checkpoints and --statistics LIST.")
    idle = ("query", "block", "start", "top", "fps") if arguments.statistics else ("root", "limit", "num_clips")
    for name in idle:
        if getattr(arguments, name) is not None:
            with_it = "with" if arguments.statistics else "without"
            raise UserError(f"--{name.replace('_', '-')} has no effect {with_it} --statistics.")
    for name in ("top", "fps", "limit", "num_clips"):
        value = getattr(arguments, name)
        if value is not None and value < (0 if name == "top" else 1):
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {0 if name == 'top' else 1}.")


def load(path: str) -> Trained:
    """Returns the network of a checkpoint, in eval mode.

    Raises:
        UserError: it is none, or its network has no context blocks.
    """
    checkpoint = load_checkpoint(path)
    config = from_container(TrainConfig, checkpoint["config"])
    network = build_model(config.model, config.block, config.data, len(checkpoint["classes"]))
    network.load_state_dict(evaluation_weights(checkpoint))
    if not network.places:
        raise UserError(f"{path} has no context blocks, so there is no attention (block.kind=none).")
    load_decoder(config.data.decoder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Trained(path, network.eval().to(device), config.data, list(checkpoint["classes"]), device)


def read_clips(path: str, data: DataConfig, num_clips: int = 1, start: int | None = None) -> tuple[Tensor, np.ndarray]:
    """Returns clips (num_clips, T, H, W, 3) uint8 spread over a video, their centre crops, and the frames' numbers in
    it (num_clips, T). One clip is the centre one, or the one from `start` on; both loop over a short video.

    Raises:
        DecodeError, SlowVideo: the video cannot be decoded, or not in time.
        UserError: it ends before `start`.
    """
    with open_video(path, data.decoder, data.time_limit_seconds) as video:
        if start is None:
            wanted = view_indices("uniform", num_clips, video.num_frames, data.num_frames, data.frame_stride)
        elif 0 <= start < video.num_frames:
            wanted = clip_indices(start, video.num_frames, data.num_frames, data.frame_stride)[None]
        else:
            raise UserError(f"--start {start}: {path} has frames 0 to {video.num_frames - 1}.")
        unique, position = np.unique(wanted, return_inverse=True)
        size = resized_size(video.height, video.width, data.test.short_side)
        (offset,) = crop_offsets(1, *size, data.crop_size)
        frames = video.read(unique, size, (*offset, data.crop_size, data.crop_size))
    return frames[torch.from_numpy(position.reshape(wanted.shape))], wanted


def show(arguments: argparse.Namespace) -> None:
    """Writes the picture and the video, and prints what they show."""
    checkpoint, path = arguments.inputs
    trained = load(checkpoint)
    clips, wanted = read_clips(path, trained.data, start=arguments.start)
    found: list[Attention] = []
    logits = look(trained.network, trained.normalized(clips), found.append)
    top = 20 if arguments.top is None else arguments.top
    rows, what, how = chosen_rows(found, arguments.query, arguments.block, top)
    scores = logits[0].sigmoid() if trained.data.multi_label else logits[0].softmax(0)
    score, best = scores.max(0)
    loops = ", starting again at its end" if (np.diff(wanted[0]) <= 0).any() else ""
    title = (
        f"{Path(path).name}: {len(clips[0])} frames from {wanted[0, 0]} on, stride {trained.data.frame_stride}{loops}\n"
        f"predicted: {trained.classes[best]}, score {score:.2f}"
    )
    prefix = arguments.output or Path(f"attention_{Path(path).stem}")
    prefix.parent.mkdir(parents=True, exist_ok=True)
    picture, video = Path(f"{prefix}.png"), Path(f"{prefix}.mp4")
    write_picture(picture, rows, clips[0].numpy(), title, f"{what} {how}")
    write_video(video, rows, clips[0].numpy(), f"{title}\n{what}", arguments.fps or 8)
    print(title)
    print(what)
    for row in rows:
        for target in row.found.strongest(row.weights, 1):
            print(
                f"{' '.join(row.label.split())}: strongest at frame {target.frame}, x {target.x}, y {target.y}, "
                f"weight x M {target.weight * row.found.num_seen:.3g}"
            )
    print(f"written      {picture}, {video}")


def measure(arguments: argparse.Namespace) -> None:
    """Prints and writes the statistics of every block of every checkpoint over the videos of a list."""
    prefix = arguments.output or Path(f"attention_{Path(arguments.statistics).stem}")
    rows, failures = [], {}
    for path in arguments.inputs:
        trained = load(path)
        # As nlvideo-evaluate reads a list: the checkpoint knows its class names, and nothing is written into the root.
        fixed = {"val": arguments.statistics, "classes": None, "num_classes": None, "synthetic": None}
        data = replace(trained.data, root=arguments.root or trained.data.root, **fixed)
        table = read_val_table(data, trained.classes)
        count = min(arguments.limit or len(table), len(table))
        of_clips: dict[str, list[Statistics]] = {place: [] for place in trained.network.places}
        blocks: dict[str, dict] = {}

        def see(found: Attention, of_clips=of_clips, blocks=blocks) -> None:
            of_clips[found.place].append(statistics(found))
            blocks[found.place] = {"kind": found.kind, "keys": "x".join(map(str, found.key_grid))}

        pace = {"mininterval": 0.2 if sys.stderr.isatty() else 10}
        for i in tqdm([i * len(table) // count for i in range(count)], f"measuring {path}", unit="video", **pace):
            try:
                clips, _ = read_clips(table.path(i), trained.data, arguments.num_clips or 1)
            except (DecodeError, SlowVideo) as error:
                failures[table.name(i)] = error.reason
                continue
            for clip in clips:
                look(trained.network, trained.normalized(clip[None]), see)
        for place, numbers in of_clips.items():
            if not numbers:
                name, reason = next(iter(failures.items()))
                raise UserError(f"None of {count} videos of {table.source} can be decoded; {name}: {reason}")
            counts = {"videos": len(numbers) // (arguments.num_clips or 1), "clips": len(numbers)}
            row = {"checkpoint": path, "block": place} | blocks[place] | counts
            rows.append(row | mean_statistics(numbers)._asdict())
    prefix.parent.mkdir(parents=True, exist_ok=True)
    file = Path(f"{prefix}.csv")
    with open(file, "w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{value:.6g}" if isinstance(value, float) else value for k, value in row.items()})
    print_statistics(rows, arguments.inputs)
    for name, reason in list(failures.items())[:10]:
        print(f"undecodable, left out: {name}: {reason}")
    if failures:
        print(f"{len(failures)} videos could not be decoded and are left out")
    print(f"written      {file}")


def print_statistics(rows: Sequence[dict], checkpoints: Sequence[str]) -> None:
    """Prints a line for each block of each checkpoint, which stand below with their numbers."""
    table = Table("", "block", "kind", "keys", "clips", *(heading for heading, _ in COLUMNS.values()))
    for row in rows:
        numbers = ["-" if np.isnan(row[key]) else f"{row[key]:{form}}" for key, (_, form) in COLUMNS.items()]
        number = str(1 + checkpoints.index(row["checkpoint"]))
        table.add_row(number, row["block"], row["kind"], row["keys"], str(row["clips"]), *numbers)
    console = Console()
    Console(width=None if console.is_terminal else 140).print(table)
    for i, path in enumerate(checkpoints, 1):
        print(f"checkpoint {i} {path}")


if __name__ == "__main__":
    main()
