"""Writes small labelled H.264 clips, for first steps and for questions that real videos do not answer."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from nlvideo.data.synthetic.motions import write_actions, write_motions
from nlvideo.data.synthetic.relations import write_long_range, write_short_range, write_stills
from nlvideo.data.synthetic.video_spec import FRAME_RATE, VideoSpec
from nlvideo.runtime.cores import usable_cores
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.files import replacing, write_text
from nlvideo.runtime.folder_lock import lock_file, open_lock
from nlvideo.runtime.progress import progress_bar
from nlvideo.runtime.video_writer import VideoWriter

SETS: dict[str, Callable[..., Iterator[VideoSpec]]] = {
    "motions": write_motions,
    "actions": write_actions,
    "long_range": write_long_range,
    "short_range": write_short_range,
    "stills": write_stills,
}
LOCK_FILE = ".lock"
# One thread, so that the file does not depend on the machine's cores, and no macroblock tree, with which x264
# occasionally encoded the same small frames to other bits.
ENCODING = {"crf": "18", "preset": "veryfast", "g": "24", "threads": "1", "x264-params": "mbtree=0"}


def write_set(
    kind: str,
    root: str | Path,
    *,
    num_train: int,
    num_val: int,
    num_frames: int,
    height: int,
    seed: int,
    **options: float,
) -> None:
    """Writes train.csv, val.csv, classes.txt and their mp4 files under `root`, once.

    Files that exist are kept, so an interrupted call resumes. Of several processes at a time one writes, and the others
    wait for it.

    Args:
        kind: one of SETS: "actions" has several actions or none per video, at their times, with lists as Charades
            has them; the others have one class per video and `path label` lists.
        root: folder; made if missing.
        num_train, num_val: videos of each split; classes take turns.
        num_frames: frames in each video, at 25 per second.
        height: of a frame; the width is 4/3 of it in motions and actions, and the same in the others; both even.
        seed: of everything that is drawn.
        options: of long_range alone, see draw_long_range in relations.py.

    Raises:
        UserError: `root` holds a set written with other settings, or other files.
    """
    root = Path(root)
    settings = {"num_train": num_train, "num_val": num_val, "num_frames": num_frames, "height": height, "seed": seed}
    settings |= ({} if kind == "motions" else {"kind": kind}) | options  # type: ignore[arg-type]
    card = root / "synthetic.json"
    if _is_complete(root, card, settings):
        return
    root.mkdir(parents=True, exist_ok=True)
    with _alone_in(root):
        if not _is_complete(root, card, settings):  # by now
            _write_card(card, settings, complete=False)
            splits = (("train", num_train), ("val", num_val))
            specs = (SETS[kind](root, *split, num_frames, height, seed, **options) for split in splits)
            _write_videos(root, chain.from_iterable(specs))
            _write_card(card, settings, complete=True)


@contextmanager
def _alone_in(root: Path) -> Iterator[None]:
    """Waits until no other process writes the set; on file systems without locks it does not."""
    lock = open_lock(root / LOCK_FILE)
    try:
        with suppress(OSError):
            lock_file(lock, wait=True)
        yield
    finally:
        os.close(lock)


def _write_videos(root: Path, specs: Iterable[VideoSpec]) -> None:
    missing = [spec for spec in specs if not (root / spec.name).exists()]
    with ProcessPoolExecutor(max_workers=min(8, usable_cores())) as pool:
        written = pool.map(partial(_write_video, root), missing, chunksize=8)
        for _ in progress_bar(written, total=len(missing), desc=f"writing {root}", unit="video"):
            pass


def _is_complete(root: Path, card: Path, settings: dict[str, Any]) -> bool:
    """Returns whether the set is there already; refuses a folder that holds something else."""
    if card.exists():
        held = json.loads(card.read_text())
        if held["settings"] != settings:
            raise UserError(
                f"{root} holds a synthetic set with other settings ({held['settings']}, wanted {settings}); use "
                "another data.root, or delete that folder."
            )
        return held["complete"]
    if root.exists() and any(path.name != LOCK_FILE for path in root.iterdir()):
        raise UserError(f"data.root={root} is not empty and holds no synthetic set; use another folder.")
    return False


def _write_video(root: Path, spec: VideoSpec) -> None:
    frames = spec.draw(np.random.default_rng(spec.seed))
    path = root / spec.name
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as partial_file, VideoWriter(partial_file, FRAME_RATE, ENCODING) as writer:
        for pixels in frames:
            writer.write(pixels)


def _write_card(card: Path, settings: dict[str, Any], complete: bool) -> None:
    write_text(card, json.dumps({"settings": settings, "complete": complete}, indent=1))
