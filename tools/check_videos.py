"""Opens and decodes every video of a collection, and reports which are corrupt and why.

    python tools/check_videos.py SRC OUT                          # every video file below SRC
    python tools/check_videos.py SRC OUT --list train.csv val.csv # those of lists whose paths start from SRC

OUT gets videos.csv, one line a video: codec, frames, rate, size, keyframes, what is wrong. A list comes out as
OUT/NAME without the rows of corrupt videos: path and label, and start and end where it has them. The same command
resumes. On several machines: --shard 1/4 ... 4/4 with the same OUT, then once without --shard, which joins them.

SRC/.nlvideo_index gets what opening each video has told, so that runs with data.root=SRC need not read it all again.
"""

import argparse
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from nlvideo.data.collections.records import open_records
from nlvideo.data.collections.worker_pool import each, items_of_part, part_of_job
from nlvideo.data.decoding.frame_folder import FrameFolder
from nlvideo.data.decoding.orientation import UPRIGHT
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.index.video_index import INDEX_FILE, VideoIndex, chosen_index, index_problem
from nlvideo.data.lists.folder_tree import left_out, videos_below
from nlvideo.data.lists.list_writing import write_list
from nlvideo.data.lists.path_list import read_table
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.data.shards.video_file import file_status
from nlvideo.data.stores.addresses import is_address
from nlvideo.runtime.cores import usable_cores
from nlvideo.runtime.errors import UserError, UserFileNotFoundError, reporting_errors
from nlvideo.runtime.files import make_folder
from nlvideo.runtime.progress import progress_bar

COLUMNS = (
    "video",
    "problem",
    "codec",
    "frames",
    "fps",
    "height",
    "width",
    "keyframes",
    "largest_gap",
    "notes",
    "bytes",
)
WINDOW = 8  # frames that a sample decodes at one place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", metavar="SRC", help="folder of the collection")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for videos.csv and the clean lists")
    parser.add_argument("--list", nargs="+", default=[], metavar="FILE", help="lists, relative to SRC")
    parser.add_argument("--sample", type=int, metavar="N", help="decode 8 frames at N places instead of all")
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--time-limit", type=float, default=600, metavar="SECONDS", help="for one video")
    parser.add_argument("--index", metavar="FILE", help="instead of SRC/.nlvideo_index; none: no such file")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="this machine's part of the job, such as 2/4")
    arguments = parser.parse_args()
    with reporting_errors():
        sys.exit(check(arguments))


def check(arguments: argparse.Namespace) -> int:
    """Checks the videos that no earlier call has, writes the lists, and returns 1 if any is corrupt."""
    src, out = Path(arguments.src), arguments.out
    if is_address(arguments.src):
        raise UserError(f"{arguments.src}: only folders of this machine can be checked; copy the videos first.")
    if not src.is_dir():
        raise UserFileNotFoundError(f"The folder {src} does not exist.")
    tables = {name: read_table(str(src), name, None, multi_label=True) for name in arguments.list}
    names = list(dict.fromkeys(name for table in tables.values() for name in table.names()))
    names = names or sorted(str(path.relative_to(src)) for path in videos_below(src))
    if not names:
        raise UserError(f"{src} holds no videos.")
    if not tables and (rest := left_out(src)):
        print(rest)
    part = part_of_job(arguments.shard)
    mine = items_of_part(names, part)
    make_folder(out, f"OUT {out}")
    records = open_records(out, "videos", part, COLUMNS)
    done = {row["video"] for row in records.rows}
    todo = [name for name in mine if name not in done]
    index = open_index_of(src, arguments.index)
    look = partial(look_at, src=src, sample=arguments.sample, index=index)
    bar = progress_bar(total=len(mine), initial=len(mine) - len(todo), desc=f"checking {src}", unit="video")
    with bar:
        for outcome in each(look, todo, arguments.workers, arguments.time_limit):
            found = outcome.result or {"problem": outcome.failure}
            records.add({column: found.get(column, "") for column in COLUMNS} | {"video": outcome.item})
            bar.update()
    if index is not None:
        index.merge()
    rows = [row for row in records.rows if row["video"] in set(mine)]
    bad = {row["video"] for row in rows if row["problem"]}
    if part == "1/1":
        for name in tables:
            _write_clean(src / name, out / Path(name).name, tables[name], bad)
    print_summary(rows, records.file)
    return 1 if bad else 0


def open_index_of(src: Path, given: str | None) -> VideoIndex | None:
    """Returns the index to be filled, after a line about what is wrong with it, if anything is."""
    if given == "none":
        return None
    file = src / INDEX_FILE if given is None else chosen_index(given, f"--index {given}")
    if problem := index_problem(file):
        print(problem)
    return VideoIndex(file)


def look_at(name: str, *, src: Path, sample: int | None, index: VideoIndex | None) -> dict:
    """Returns the columns of one video; raises DecodeError if it is corrupt. The index learns of it, unasked."""
    path = src / name
    if path.is_dir():
        with FrameFolder(path) as video:
            for i in range(video.num_frames):
                video.read([i], (16, 16))
            return {"codec": "pictures", "frames": video.num_frames, "height": video.height, "width": video.width}
    state = index.state(path) if index is not None else None
    with PyavVideo(path) as video:
        if index is not None and state is not None and index.state(path) == state:
            index.add(state, video.facts)
        facts = {
            "codec": video.codec,
            "frames": video.num_frames,
            "fps": round(video.fps, 3),
            "height": video.height,
            "width": video.width,
            "keyframes": video.num_keyframes,
            "largest_gap": video.largest_gap,
            "notes": "; ".join(_notes(video)),
            "bytes": file_status(path).size,
        }
        try:
            for indices in _windows(video.num_frames, sample):
                for _ in video.frames(indices):
                    pass
        except Exception as error:
            facts["problem"] = getattr(error, "reason", str(error))
    return facts


def _notes(video: PyavVideo) -> list[str]:
    """Returns what is unusual about a video and is not changed in reading it."""
    aspect = f"pixels are {video.pixel_aspect.numerator}:{video.pixel_aspect.denominator}"
    notes = {
        "interlaced": video.interlaced,
        aspect: video.pixel_aspect != 1,
        "frames are counted from the start": not video.timed,
        "turned or mirrored": video.orientation != UPRIGHT,
    }
    return [note for note, found in notes.items() if found]


def _windows(num_frames: int, sample: int | None) -> list[np.ndarray]:
    """Returns the frames to decode: all at once, or some at `sample` places from the first to the last."""
    if sample is None:
        return [np.arange(num_frames)]
    starts = np.unique(np.linspace(0, max(num_frames - WINDOW, 0), sample).astype(int))
    return [np.arange(start, min(start + WINDOW, num_frames)) for start in starts]


def _write_clean(source: Path, target: Path, table: VideoTable, bad: set[str]) -> None:
    """Writes a list without the videos in `bad`."""
    if target.exists() and target.samefile(source):
        raise UserError(f"{target} is the list itself, which is not overwritten; give another OUT.")
    write_list(target, table, {name: name for name in table.names() if name not in bad})


def print_summary(rows: list[dict[str, str]], file: Path) -> None:
    """Prints how many videos of each codec there are and what is wrong with the damaged ones."""
    table = Table("codec", "videos", "damaged", "frames", "largest keyframe gap")
    for codec in sorted({row["codec"] for row in rows}):
        group = [row for row in rows if row["codec"] == codec]
        table.add_row(
            codec or "not opened",
            str(len(group)),
            str(sum(bool(row["problem"]) for row in group)),
            str(sum(int(row["frames"] or 0) for row in group)),
            str(max((int(row["largest_gap"] or 0) for row in group), default=0)),
        )
    Console().print(table)
    notes = Counter(note for row in rows for note in (row.get("notes") or "").split("; ") if note)
    for note, count in notes.most_common():
        print(f"{count} videos: {note}")
    for row in [row for row in rows if row["problem"]][:20]:
        print(f"{row['video']}: {row['problem']}")
    print(f"{len(rows)} videos, {sum(bool(row['problem']) for row in rows)} damaged; all in {file}")


if __name__ == "__main__":
    main()
