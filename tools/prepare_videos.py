"""Re-encodes a collection for training: small, with many keyframes, so that a clip costs little to decode.

    python tools/prepare_videos.py SRC DST                           # every video file below SRC
    python tools/prepare_videos.py SRC DST --list train.csv val.csv  # those of lists whose paths start from SRC
    python tools/prepare_videos.py SRC DST --list train.csv val.csv --shards 1GB  # packed into tar files

Each video becomes DST/SAME/PATH.mp4: H.264, its short side at most 256 pixels (never enlarged), upright, without
sound, every frame kept with its time. DST gets the lists with the new paths, prepared.csv with one line a video and
failed.csv with the reasons. The same command, also after a kill, makes what is missing. On several machines:
--shard 1/4 ... 4/4 with the same DST, then once without --shard, which joins them.

With --shards the videos end in tar files of at most that size, DST/shard_00000.tar and so on, and the lists name them
as shard_00000.tar/SAME/PATH.mp4, which is how they are read, without unpacking. What DST holds as files is packed too.
"""

import argparse
import os
import sys
import time
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.filter
import numpy as np
from av.video.reformatter import ColorRange
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from nlvideo.data.collections.job_lock import job_lock
from nlvideo.data.collections.packer import Packer, remove_partial, size_in_bytes
from nlvideo.data.collections.records import Records, open_records, read_records, resumable
from nlvideo.data.collections.worker_pool import each, items_of_part, part_of_job
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.lists.folder_tree import left_out, videos_below
from nlvideo.data.lists.list_writing import write_list
from nlvideo.data.lists.path_list import read_table
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.data.shards.video_file import Listing, file_status, split_member
from nlvideo.runtime.cores import usable_cores
from nlvideo.runtime.errors import UserError, UserFileNotFoundError, reporting_errors
from nlvideo.runtime.files import make_folder, replacing
from nlvideo.runtime.progress import progress_bar

COLUMNS = ("video", "prepared", "reason", "frames", "height", "width", "source_bytes", "bytes", "seconds")
GAP, CRF = 24, 22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", type=Path, metavar="SRC", help="folder of the collection")
    parser.add_argument("dst", type=Path, metavar="DST", help="folder for the prepared one")
    parser.add_argument("--list", nargs="+", default=[], metavar="FILE", help="lists, relative to SRC")
    parser.add_argument("--short-side", type=int, default=256, help="pixels; 320 for crops of 256 and more")
    parser.add_argument(
        "--keyframe-every", type=int, default=GAP, metavar="FRAMES", help="24 to 96 (default %(default)s)"
    )
    parser.add_argument(
        "--crf", type=int, default=CRF, help="x264's quality: lower is better and larger (default %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--time-limit", type=float, default=3600, metavar="SECONDS", help="for one video")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="this machine's part of the job, such as 2/4")
    parser.add_argument("--shards", metavar="SIZE", help="pack the videos into tar files of this size, such as 1GB")
    arguments = parser.parse_args()
    with reporting_errors():
        sys.exit(prepare(arguments))


def prepare(arguments: argparse.Namespace) -> int:
    """Prepares the videos that no earlier call has, writes the lists, and returns 1 if any failed."""
    src, dst, part = arguments.src, arguments.dst, part_of_job(arguments.shard)
    if src.is_file():
        raise UserError(f"SRC {src} is a file; give the folder that it is in and, for members of tar files, --list.")
    if not src.is_dir():
        raise UserFileNotFoundError(f"The folder {src} does not exist.")
    if dst.resolve() == src.resolve() or src.resolve() in dst.resolve().parents:
        raise UserError(f"DST {dst} must not be SRC or lie in it.")
    tables = {name: read_table(str(src), name, None, multi_label=True) for name in arguments.list}
    names = list(dict.fromkeys(name for table in tables.values() for name in table.names()))
    names = names or sorted(str(path.relative_to(src)) for path in videos_below(src) if path.is_file())
    size = size_in_bytes(arguments.shards) if arguments.shards else None
    if not names:
        raise UserError(f"{src} holds no videos.")
    if not tables and (rest := left_out(src)):
        print(rest)
    targets = _targets(src, names)
    mine = items_of_part(names, part)
    make_folder(dst, f"DST {dst}")
    started = time.monotonic()
    with job_lock(dst, "prepared", part) as alone:
        records = open_records(dst, "prepared", part, COLUMNS)
        if alone:
            own_files = records.file.name, f"failed{records.file.name.removeprefix('prepared')}"
            remove_partial(dst, part, [*own_files, *(targets[name] for name in mine)])
        done = done_before(records, dst, mine)
        folders = {Path(target).parts[0] for target in targets.values()}
        packer = Packer(dst, part, size, mine, partial(note_shard, records), folders) if size else None
        encode_missing(arguments, mine, done, records, packer)
        rows = [records.last[name] for name in mine]
        write_lists(dst, part, rows, tables)
    print_summary(rows, time.monotonic() - started, dst)
    return 1 if any(not row["prepared"] for row in rows) else 0


def done_before(records: Records, dst: Path, mine: list[str]) -> set[str]:
    """Returns the videos that need no work, after a look into the records of the whole and of all parts.

    A row of these counts where its video is there and that of our own row is not, or is not in a shard yet: another
    part of the job may have made it or moved it.
    """
    listing, is_file = Listing(), cache(os.path.isfile)

    def rank(row: dict[str, str] | None) -> int:
        path = str(dst / row["prepared"]) if row is not None and row["prepared"] else ""
        if not path or not listing.has(path):
            return 0
        return 2 if split_member(path, is_file) is not None else 1

    ranks = {name: rank(records.last.get(name)) for name in mine}
    for file in sorted(dst.glob("prepared*.csv")):
        for row in read_records(file, COLUMNS) if file != records.file else ():
            if ranks.get(row["video"], 2) < rank(row):
                ranks[row["video"]] = rank(row)
                records.add(row)
    return {name for name, found in ranks.items() if found}


def encode_missing(
    arguments: argparse.Namespace, mine: list[str], done: set[str], records: Records, packer: Packer | None
) -> None:
    """Encodes the videos that are not there yet, and packs all that is not in a shard."""
    src, dst, last = arguments.src, arguments.dst, records.last
    todo = [name for name in mine if name not in done]
    encoding = h264(arguments.keyframe_every, arguments.crf)
    encode = partial(encode_video, src=src, dst=dst, short_side=arguments.short_side, encoding=encoding)
    begun = len(mine) - len(todo)
    with progress_bar(total=len(mine), initial=begun, desc=f"preparing {dst}", unit="video") as bar:
        if packer is not None:
            for name in filter(done.__contains__, mine):
                packer.finish(name, last[name]["prepared"])
        for outcome in each(encode, todo, arguments.workers, arguments.time_limit):
            made = {"video": outcome.item, "prepared": "", "reason": outcome.failure or ""} | (outcome.result or {})
            row = {column: made.get(column, "") for column in COLUMNS}
            records.add(row)
            if packer is not None:
                packer.finish(outcome.item, row["prepared"])
            bar.update()
        if packer is not None:
            packer.close()


def note_shard(records: Records, moved: dict[str, str]) -> None:
    """Records the new places of videos that are in a shard now, before they are removed as files."""
    for video, prepared in moved.items():
        records.add(records.last[video] | {"prepared": prepared})
    records.sync()


class Encoding(NamedTuple):
    """How frames are compressed: FFmpeg's names of the encoder and its options, and of the pixels that it takes."""

    codec: str
    options: dict[str, str]
    pixels: str = "yuv420p"


def h264(gap: int = GAP, crf: int = CRF, preset: str = "medium", bframes: int = 7, more: str = "b-bias=50") -> Encoding:
    """Returns what costs least to decode of what tools/benchmark_preparing.py has tried, at its size and quality.

    What costs the decoder most is left out, the arithmetic coding and the loop filter. No frame refers to a B-frame (no
    pyramid), so that those that a clip does not want are not decoded, and `b-bias` makes more frames B-frames than
    x264 would: of seven in a row, those of a stride of two are three.

    Args:
        gap: frames from one keyframe to the next.
        crf: quality, lower is better and larger.
        bframes: at most so many in a row.
        more: of x264's own parameters.
    """
    parameters = ":".join(["b-pyramid=none", "scenecut=0", "open-gop=0", *filter(None, [more])])
    shape = {"g": str(gap), "bf": str(bframes), "threads": "1", "x264-params": parameters}
    return Encoding("libx264", {"crf": str(crf), "preset": preset, "tune": "fastdecode", **shape})


def encode_video(name: str, *, src: Path, dst: Path, short_side: int, encoding: Encoding | None = None) -> dict:
    """Writes one video and returns its columns.

    Raises:
        DecodeError: it is corrupt; nothing is left of what was written.
    """
    started = time.monotonic()
    target = dst / _target(src, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial_file:
        partial_file.touch()  # so that no other part of the job finds the folder empty and removes it
        with PyavVideo(src / name) as video:
            height, width = even_size(video.height, video.width, short_side)
            _encode(video, partial_file, height, width, encoding or h264())
            frames = video.num_frames
        with PyavVideo(partial_file) as made:
            if (made.num_frames, made.height, made.width) != (frames, height, width):
                raise RuntimeError(f"{made.num_frames} frames were written of {frames}")
    return {
        "prepared": _target(src, name),
        "frames": frames,
        "height": height,
        "width": width,
        "source_bytes": file_status(src / name).size,
        "bytes": target.stat().st_size,
        "seconds": round(time.monotonic() - started, 2),
    }


def even_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Returns (height, width) with a short side of at most short_side, both even as H.264 wants them."""
    scale = min(1.0, short_side / min(height, width))
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def _encode(video: PyavVideo, file: Path, height: int, width: int, encoding: Encoding) -> None:
    graph = None
    with av.open(str(file), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(encoding.codec, rate=round(video.fps) or 30)
        stream.height, stream.width, stream.pix_fmt = height, width, encoding.pixels
        if video.pixel_aspect != 1:  # as FFmpeg's scale filter: pixels are taken as stored, what they mean is kept
            stored = 1 / video.pixel_aspect if video.orientation.transposed else video.pixel_aspect
            aspect = stored * Fraction(video.width * height, video.height * width)
            stream.sample_aspect_ratio = stream.codec_context.sample_aspect_ratio = aspect.limit_denominator(255)
        time_base = video.time_base if video.timed else 1 / stream.codec_context.rate
        stream.time_base = stream.codec_context.time_base = time_base
        stream.options = dict(encoding.options)
        first = 0
        for i, frame in enumerate(video.frames(np.arange(video.num_frames))):
            if graph is None:
                graph = _graph(frame, video, height, width)
                context = stream.codec_context
                context.colorspace, context.color_range = frame.colorspace, ColorRange.MPEG
            graph.push(frame)
            made: Any = graph.pull()
            pts = frame.pts or 0  # of timed frames; others are counted
            first = pts if i == 0 else first
            made.pts = pts - first if video.timed else i
            made.time_base = time_base
            made.pict_type = 0  # the encoder chooses
            container.mux(stream.encode(made))
        container.mux(stream.encode(None))


def _graph(frame: av.VideoFrame, video: PyavVideo, height: int, width: int) -> av.filter.Graph:
    """Returns a filter that turns frames upright and makes them small."""
    graph = av.filter.Graph()
    steps = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=video.time_base)]
    for step in video.orientation.filters:
        steps.append(graph.add(*step.split("=")))
    steps.append(graph.add("scale", f"{width}:{height}:flags=area:out_range=tv"))
    steps.append(graph.add("format", "yuv420p"))
    steps.append(graph.add("buffersink"))
    for before, after in zip(steps, steps[1:], strict=False):
        before.link_to(after)
    graph.configure()
    return graph


def _target(src: Path, name: str) -> str:
    """Returns the file that a video becomes; of a member of SRC/a.tar one in the folder a."""
    member = split_member(str(src / name))
    if member is not None:
        name = str(Path(name[: -len(member[1]) - 1]).with_suffix("") / member[1])
    return str(Path(name.lstrip("/")).with_suffix(".mp4"))


def _targets(src: Path, names: list[str]) -> dict[str, str]:
    """Returns the files that videos become, by their names.

    Raises:
        UserError: two videos would become one file, or one would be written somewhere else than in DST.
    """
    made: dict[str, str] = {}
    for name in names:
        if ".." in Path(name).parts:
            raise UserError(f"{name} would be written outside of DST; give a SRC that all videos lie in, and no '..'.")
        target = _target(src, name)
        other = made.setdefault(target, name)
        if other != name:
            raise UserError(f"{other} and {name} would both become {target}; rename one of them.")
    return {name: target for target, name in made.items()}


def write_lists(dst: Path, which: str, rows: list[dict[str, str]], tables: dict[str, VideoTable]) -> None:
    """Writes the lists with the prepared videos alone, and failed.csv."""
    prepared = {row["video"]: row["prepared"] for row in rows if row["prepared"]}
    whole = which == "1/1"
    for name, table in tables.items() if whole else ():
        with resumable(dst / Path(name).name):
            write_list(dst / Path(name).name, table, prepared)
    failed = dst / ("failed.csv" if whole else f"failed.{which.replace('/', '-of-')}.csv")
    failed.unlink(missing_ok=True)
    if len(prepared) < len(rows):
        records = Records(failed, ("video", "reason"))
        for row in rows:
            if not row["prepared"]:
                records.add({"video": row["video"], "reason": row["reason"]})


def print_summary(rows: list[dict[str, str]], seconds: float, dst: Path) -> None:
    whole = [row for row in rows if row["prepared"]]
    before, after = (sum(int(row[key]) for row in whole) for key in ("source_bytes", "bytes"))
    table = Table("videos", "prepared", "failed", "frames", "before", "after", "time")
    table.add_row(
        str(len(rows)),
        str(len(whole)),
        str(len(rows) - len(whole)),
        str(sum(int(row["frames"]) for row in whole)),
        f"{before / 1e6:.1f} MB",
        f"{after / 1e6:.1f} MB",
        tqdm.format_interval(seconds),
    )
    Console().print(table)
    for row in [row for row in rows if not row["prepared"]][:20]:
        print(f"{row['video']}: {row['reason']}")
    print(f"lists and prepared.csv in {dst}")


if __name__ == "__main__":
    main()
