"""Shows what the context blocks of a network attend to in a video, or measures it over a list of videos.

    python tools/show_attention.py CHECKPOINT VIDEO                          # the most attended position as the query
    python tools/show_attention.py CHECKPOINT VIDEO --query 5,40,31          # frame 5 of the clip, x 40, y 31
    python tools/show_attention.py CHECKPOINT VIDEO --query 5,40,31 9,10,12 --block res4.5
    python tools/show_attention.py CHECKPOINT [CHECKPOINT ...] --statistics val.csv [--root DIR] [--limit 200]

The clip is the centre clip of the video, its centre crop of data.crop_size pixels. PREFIX.png has a row for each block,
with arrows to the keys that the query attends to most (non-local paper, Figure 3). With several queries it has a row
for each query of one block (GCNet, Figure 1). PREFIX.mp4 has all frames. Blocks whose queries share one map
(simplified_non_local, global_context) are drawn without a query.

--statistics prints GCNet's statistics of each block (nlvideo/attention/map_statistics.py) and writes PREFIX.csv.
Existing files are overwritten. The network computes in float32.
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nlvideo.attention.map_statistics import MapStatistics, attention_statistics, mean_statistics
from nlvideo.attention.maps import Attention, visit_attention
from nlvideo.attention.pictures import write_picture, write_video
from nlvideo.attention.rows import MapRow, chosen_rows
from nlvideo.build.tables import read_val_table
from nlvideo.config.schema import DataConfig
from nlvideo.data.clips.batch import normalize
from nlvideo.data.clips.sampling import clip_indices, resized_size
from nlvideo.data.clips.view_sampling import crop_offsets, view_indices
from nlvideo.data.decoding.opening import load_decoder, open_video
from nlvideo.data.decoding.video import DecodeError, SlowVideo
from nlvideo.evaluation.settings import refuse_stored_addresses
from nlvideo.models.resnet import VideoResNet
from nlvideo.runtime.errors import UserError, reporting_errors
from nlvideo.runtime.files import make_folder, replacing
from nlvideo.runtime.progress import progress_bar
from nlvideo.weights.trained_network import read_trained

USAGE = "\n       ".join(
    (
        "%(prog)s CHECKPOINT VIDEO [--query FRAME,X,Y ...] [--block PLACE] [--top N] [--start FRAME]",
        "%(prog)s CHECKPOINT [CHECKPOINT ...] --statistics LIST [--root DIR] [--limit N] [--num-clips N]",
    )
)
COLUMNS = {  # heading and format of each number
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
class LoadedNetwork:
    """The network of a checkpoint in eval mode, with the data settings and classes that it was trained with."""

    network: VideoResNet
    data: DataConfig
    classes: list[str]
    device: torch.device

    def normalized(self, clips: Tensor) -> Tensor:
        """Returns clips (N, T, H, W, 3) uint8 as the network takes them: (N, 3, T, H, W) float32, on its device."""
        mean, std = torch.tensor(self.data.mean), torch.tensor(self.data.std)
        return normalize(clips.permute(0, 4, 1, 2, 3).to(self.device), mean, std, torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, usage=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", metavar="CHECKPOINT VIDEO", help="with --statistics: checkpoints only")
    parser.add_argument("--query", nargs="+", action="extend", metavar="FRAME,X,Y", help="frame of the clip, pixel")
    parser.add_argument("--block", metavar="PLACE", help="this block only, such as res4.5")
    parser.add_argument("--top", type=int, metavar="N", help="number of strongest keys to mark (default 20)")
    parser.add_argument("--start", type=int, metavar="FRAME", help="first frame of the clip in the video")
    parser.add_argument("--fps", type=int, help="frames per second of PREFIX.mp4 (default 8)")
    parser.add_argument("--output", type=Path, metavar="PREFIX", help="default: attention_ and the video's name")
    parser.add_argument("--statistics", metavar="LIST", help="list of videos, relative to --root as data.val is")
    parser.add_argument("--root", metavar="DIR", help="folder of the videos (default: the checkpoint's data.root)")
    parser.add_argument("--limit", type=int, metavar="N", help="use N videos, spread evenly over the list")
    parser.add_argument("--num-clips", type=int, metavar="N", help="clips per video (default 1)")
    arguments = parser.parse_intermixed_args()
    with reporting_errors():
        check_arguments(arguments)
        if arguments.statistics:
            measure(arguments)
        else:
            show(arguments)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that exclude each other or are out of range."""
    given = len(arguments.inputs)
    if arguments.statistics is None and given != 2:
        raise UserError(f"{given} paths given; expected CHECKPOINT VIDEO, or checkpoints and --statistics LIST.")
    idle = ("query", "block", "start", "top", "fps") if arguments.statistics else ("root", "limit", "num_clips")
    for name in idle:
        if getattr(arguments, name) is not None:
            condition = "with" if arguments.statistics else "without"
            raise UserError(f"--{name.replace('_', '-')} has no effect {condition} --statistics.")
    for name in ("top", "fps", "limit", "num_clips"):
        value = getattr(arguments, name)
        if value is not None and value < (0 if name == "top" else 1):
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {0 if name == 'top' else 1}.")


def load_network(path: str) -> LoadedNetwork:
    """Returns the network of a checkpoint.

    Raises:
        UserError: it cannot be read, or its network has no context blocks.
    """
    checkpoint = read_trained(path)
    network = checkpoint.build_network()
    if not network.places:
        raise UserError(f"{path} has no context blocks (block.kind=none), so there is no attention to show.")
    data = checkpoint.config.data
    load_decoder(data.decoder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return LoadedNetwork(network.eval().to(device), data, checkpoint.classes, device)


def read_clips(
    path: str,
    data: DataConfig,
    num_clips: int = 1,
    start: int | None = None,
    part: tuple[float, float] | None = None,
) -> tuple[Tensor, np.ndarray]:
    """Returns the centre crops of clips spread evenly over a video, and their frame indices.

    The clips are (num_clips, T, H, W, 3) uint8, the indices (num_clips, T). A single clip is the centre clip, or starts
    at frame `start`. Clips loop over a short video.

    Raises:
        DecodeError, SlowVideo: the video cannot be decoded, or not in time.
        UserError: `start` is beyond its end.
    """
    settings = data.decoder, data.time_limit_seconds, data.frame_rate
    with open_video(path, *settings, part=part, clip_fps=data.clip_fps) as video:
        if start is None:
            wanted = view_indices("uniform", num_clips, video.num_frames, data.num_frames, data.frame_stride)
        elif 0 <= start < video.num_frames:
            wanted = clip_indices(start, video.num_frames, data.num_frames, data.frame_stride)[None]
        else:
            raise UserError(f"--start {start}: {path} has frames 0 to {video.num_frames - 1}.")
        unique, position = np.unique(wanted, return_inverse=True)
        size = resized_size(video.height, video.width, data.test.short_side)
        ((top, left),) = crop_offsets(1, *size, data.crop_size)
        frames = video.read(unique, size, (top, left, data.crop_size, data.crop_size))
    return frames[torch.from_numpy(position.reshape(wanted.shape))], wanted


def show(arguments: argparse.Namespace) -> None:
    """Writes the picture and the video, and prints what they show."""
    checkpoint, path = arguments.inputs
    loaded = load_network(checkpoint)
    try:
        clips, indices = read_clips(path, loaded.data, start=arguments.start)
    except (DecodeError, SlowVideo) as error:
        raise UserError(str(error)) from error
    attentions: list[Attention] = []
    logits = visit_attention(loaded.network, loaded.normalized(clips), attentions.append)[0]
    top = 20 if arguments.top is None else arguments.top
    chosen = chosen_rows(attentions, arguments.query, arguments.block, top)
    title = f"{describe_clip(path, indices[0], loaded.data)}\n{describe_prediction(logits, loaded)}"

    prefix = arguments.output or Path(f"attention_{Path(path).stem}")
    make_folder(prefix.parent, f"--output {prefix}")
    picture, video = Path(f"{prefix}.png"), Path(f"{prefix}.mp4")
    write_picture(picture, chosen.rows, clips[0].numpy(), title, f"{chosen.subject} {chosen.legend}")
    write_video(video, chosen.rows, clips[0].numpy(), f"{title}\n{chosen.subject}", arguments.fps or 8)
    print(title)
    print(chosen.subject)
    for row in chosen.rows:
        print_strongest(row)
    print(f"written      {picture}, {video}")


def describe_clip(path: str, indices: np.ndarray, data: DataConfig) -> str:
    loops = ", looping over the video" if (np.diff(indices) <= 0).any() else ""
    return f"{Path(path).name}: {len(indices)} frames from frame {indices[0]}, stride {data.frame_stride}{loops}"


def describe_prediction(logits: Tensor, loaded: LoadedNetwork) -> str:
    scores = logits.sigmoid() if loaded.data.is_multi_label else logits.softmax(0)
    score, best = scores.max(0)
    return f"predicted: {loaded.classes[int(best)]}, score {score:.2f}"


def print_strongest(row: MapRow) -> None:
    for target in row.attention.strongest(row.weights, 1):
        print(
            f"{' '.join(row.label.split())}: strongest at frame {target.frame}, x {target.x}, y {target.y}, "
            f"weight x M {target.weight * row.attention.num_seen:.3g}"
        )


def measure(arguments: argparse.Namespace) -> None:
    """Prints and writes the statistics of every block of every checkpoint over the videos of a list."""
    prefix = arguments.output or Path(f"attention_{Path(arguments.statistics).stem}")
    failures: dict[str, str] = {}
    rows = [row for path in arguments.inputs for row in checkpoint_rows(path, arguments, failures)]
    make_folder(prefix.parent, f"--output {prefix}")
    file = Path(f"{prefix}.csv")
    write_csv(file, rows)
    print_statistics(rows, arguments.inputs)
    for name, reason in list(failures.items())[:10]:
        print(f"undecodable, left out: {name}: {reason}")
    if failures:
        print(f"{len(failures)} videos could not be decoded and are left out")
    print(f"written      {file}")


def checkpoint_rows(path: str, arguments: argparse.Namespace, failures: dict[str, str]) -> list[dict[str, Any]]:
    """Returns a row of statistics for each block of a checkpoint; adds undecodable videos to `failures`.

    Raises:
        UserError: none of the videos can be decoded.
    """
    loaded, num_clips = load_network(path), arguments.num_clips or 1
    replaced = ["data.val", "data.classes"] + ["data.root"] * bool(arguments.root)
    refuse_stored_addresses(loaded.data, replaced)
    # The list is read as nlvideo-evaluate reads it; the class names are the checkpoint's, and no set is written.
    fixed = {"val": arguments.statistics, "classes": None, "num_classes": None, "synthetic": None}
    table = read_val_table(replace(loaded.data, root=arguments.root or loaded.data.root, **fixed), loaded.classes)
    count = min(arguments.limit or len(table), len(table))
    of_clips: dict[str, list[MapStatistics]] = {place: [] for place in loaded.network.places}
    blocks: dict[str, dict[str, str]] = {}

    def visit(attention: Attention) -> None:
        of_clips[attention.place].append(attention_statistics(attention))
        blocks[attention.place] = {"kind": attention.kind, "keys": "x".join(map(str, attention.key_grid))}

    videos = [i * len(table) // count for i in range(count)]
    for i in progress_bar(videos, desc=f"measuring {path}", unit="video"):
        try:
            clips, _ = read_clips(table.path(i), loaded.data, num_clips, part=table.part(i))
        except (DecodeError, SlowVideo) as error:
            failures[table.name(i)] = error.reason
            continue
        for clip in clips:
            visit_attention(loaded.network, loaded.normalized(clip[None]), visit)
    if not blocks:
        name, reason = next(iter(failures.items()))
        raise UserError(f"None of the {count} videos of {table.source} can be decoded; {name}: {reason}")
    return [
        {
            "checkpoint": path,
            "block": place,
            **blocks[place],
            "videos": len(numbers) // num_clips,
            "clips": len(numbers),
        }
        | mean_statistics(numbers)._asdict()
        for place, numbers in of_clips.items()
    ]


def write_csv(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    with replacing(file) as partial, open(partial, "w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{value:.6g}" if isinstance(value, float) else value for k, value in row.items()})


def print_statistics(rows: Sequence[dict[str, Any]], checkpoints: Sequence[str]) -> None:
    """Prints a line for each block of each checkpoint, then the numbers of the checkpoints."""
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
