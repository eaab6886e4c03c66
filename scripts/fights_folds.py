"""Writes five folds of fight-detection-surv-dataset without a recording in common, as far as the clips tell.

    python scripts/fights_folds.py VIDEOS FOLDS

VIDEOS is a checkout of github.com/seymanurakti/fight-detection-surv-dataset (fight/, noFight/). Its clips are cut from
fewer recordings, which it does not name, and a network that knows a place by heart would be right about the rest of the
recording. So clips count as one recording if they have the same size and either look alike (their medians over time
correlate), or are neighbours in the list, or are of a size that few have. The bounds were set by looking at the groups:
they rather join two recordings than part one, but a recording in two sizes is parted. FOLDS/recordings.csv has a line
`video group` for each.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from nlvideo.data.decoding.opening import open_video

FOLDS, SEED = 5, 0
ALIKE, NEIGHBOURS, RARE = 0.65, 2, 12  # correlation; places in the list; clips
SMALL, STEP = (24, 32), 4  # pixels that are compared, of every fourth frame


def main() -> None:
    root, out = map(Path, sys.argv[1:])
    videos = sorted(path.relative_to(root) for path in root.glob("*ight/*.mp4"))
    labels = np.array([video.parts[0] == "fight" for video in videos]).astype(int)
    pictures, sizes = zip(*(look(root / video) for video in videos), strict=True)
    groups = recordings(np.stack(pictures), sizes, labels, np.arange(len(videos)))
    print(f"{len(videos)} videos, {labels.sum()} of fights, in {groups.max() + 1} groups")
    out.mkdir(parents=True, exist_ok=True)
    lines = (f"{video.as_posix()} {group}\n" for video, group in zip(videos, groups, strict=True))
    (out / "recordings.csv").write_text("".join(lines))
    split = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED).split(labels, labels, groups)
    for fold, parts in enumerate(split):
        for name, part in zip(("train", "val"), parts, strict=True):
            (out / f"{name}{fold}.csv").write_text("".join(f"{videos[v].as_posix()} {labels[v]}\n" for v in part))


def look(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the median over time of a video, grey, small and standardised, and its size."""
    with open_video(path) as video:
        frames = video.read(range(0, video.num_frames, STEP), SMALL)  # (T, height, width, 3) uint8
        grey = np.median(frames.numpy().mean(-1), 0).ravel()
        return (grey - grey.mean()) / (grey.std() or 1), (video.height, video.width)


def recordings(pictures: np.ndarray, sizes: Sequence, labels: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Returns the number of the recording of each video (V,).

    Args:
        pictures: (V, pixels), standardised.
        sizes: of the frames.
        labels: (V,).
        place: (V,) in the list of all videos.
    """
    kinds = {size: number for number, size in enumerate(dict.fromkeys(sizes))}
    size = np.array([kinds[one] for one in sizes])
    rare = np.array([Counter(sizes)[one] <= RARE for one in sizes])
    alike = pictures @ pictures.T / pictures.shape[1] > ALIKE
    near = (abs(place[:, None] - place) <= NEIGHBOURS) & (labels[:, None] == labels)
    return connected_components((size[:, None] == size) & (alike | near | rare[:, None]))[1]


if __name__ == "__main__":
    main()
