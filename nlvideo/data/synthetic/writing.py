"""Writes small labelled H.264 clips, for first steps and for questions that real videos do not answer."""

import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from nlvideo.data.synthetic.motions import write_actions, write_motions
from nlvideo.data.synthetic.relations import write_long_range, write_short_range, write_stills
from nlvideo.data.synthetic.video_spec import FRAME_RATE, Picture
from nlvideo.runtime.errors import UserError

SETS = {
    "motions": write_motions,
    "actions": write_actions,
    "long_range": write_long_range,
    "short_range": write_short_range,
    "stills": write_stills,
}


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

    Files that are there already are kept, so an interrupted call goes on where it stopped.

    Args:
        kind: one of SETS: "actions" has several actions or none a video, at their times, with lists as Charades has
            them; the others have one class a video and `path label` lists.
        root: folder; made if missing.
        num_train, num_val: videos of each split; classes take turns.
        num_frames: frames in each video, at 25 a second.
        height: of a frame; the width is 4/3 of it, both even, or, but for motions and actions, the same.
        seed: everything drawn follows from it.
        options: of long_range alone, see draw_long_range in relations.py.

    Raises:
        UserError: `root` holds a set written with other settings, or other files.
    """
    root = Path(root)
    settings = {"num_train": num_train, "num_val": num_val, "num_frames": num_frames, "height": height, "seed": seed}
    settings |= ({} if kind == "motions" else {"kind": kind}) | options
    card = root / "synthetic.json"
    if card.exists():
        held = json.loads(card.read_text())
        if held["settings"] != settings:
            raise UserError(
                f"{root} holds a synthetic set with other settings ({held['settings']}, wanted {settings}); give "
                "another data.root, or delete that folder."
            )
        if held["complete"]:
            return
    elif root.exists() and any(root.iterdir()):
        raise UserError(f"data.root={root} is not empty and holds no synthetic set; give another folder.")
    root.mkdir(parents=True, exist_ok=True)
    _write_card(card, settings, complete=False)
    pictures = [
        picture
        for split, count in (("train", num_train), ("val", num_val))
        for picture in SETS[kind](root, split, count, num_frames, height, seed, **options)
        if not (root / picture.name).exists()
    ]
    interval = 0.2 if sys.stderr.isatty() else 10
    with ProcessPoolExecutor(max_workers=min(8, len(os.sched_getaffinity(0)))) as pool:
        for _ in tqdm(
            pool.map(partial(_write_video, root), pictures, chunksize=8),
            total=len(pictures),
            desc=f"writing {root}",
            unit="video",
            mininterval=interval,
        ):
            pass
    _write_card(card, settings, complete=True)


def _write_video(root: Path, picture: Picture) -> None:
    frames = picture.draw(np.random.default_rng(picture.seed))
    path = root / picture.name
    path.parent.mkdir(exist_ok=True)
    partial_path = path.with_name(f".{os.getpid()}.{path.name}")
    with av.open(str(partial_path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        # One thread, so that the file does not depend on the machine's cores, and no macroblock tree, with which
        # x264 gave small frames other bits from time to time.
        stream.options = {"crf": "18", "preset": "veryfast", "g": "24", "threads": "1", "x264-params": "mbtree=0"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    partial_path.rename(path)


def _write_card(card: Path, settings: dict, complete: bool) -> None:
    partial_path = card.with_suffix(f".{os.getpid()}.part")
    partial_path.write_text(json.dumps({"settings": settings, "complete": complete}, indent=1))
    partial_path.rename(card)
