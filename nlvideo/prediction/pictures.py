"""Draws predictions: scores over time as a picture, and a video with its classes written on it.

n windows, K classes, F frames, H height, W width.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from nlvideo.data.decoding.video import Video
from nlvideo.runtime.names import in_picture

MAX_ROWS, VISIBLE = 12, 0.03
TICKS = (0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)  # seconds between two
SMALLEST_FONT, LARGEST_FONT = 9, 48  # pixels
MAX_LINES = 3


def clock(seconds: float) -> str:
    """Returns a time as 0:07.5 or 1:02:03.0."""
    tenths = round(10 * seconds)
    minutes, tenths = divmod(tenths, 600)
    text = f"{minutes % 60}:{tenths / 10:04.1f}"
    return text if minutes < 60 else f"{minutes // 60}:{text.zfill(7)}"


def write_timeline(path: Path, edges: np.ndarray, scores: np.ndarray, classes: Sequence[str], title: str) -> None:
    """Writes the scores of the best classes over time as a PNG: a row for each class, a column for each window, and a
    frame around the best class of each moment.

    Args:
        edges: (n + 1,) seconds, where the windows' parts of the video begin and end.
        scores: (n, K).
    """
    shown, best = chosen_classes(scores, edges), scores.argmax(1)
    inches = 0.34 * len(shown) + 1.35
    figure = Figure(figsize=(11, inches), layout="constrained")
    axes = figure.subplots()
    largest = max(1.0, float(scores.max()))
    mesh = axes.pcolormesh(
        edges, np.arange(len(shown) + 1) - 0.5, scores[:, shown].T, cmap="Blues", vmin=0, vmax=largest
    )
    # one frame around windows with the same best class
    firsts = np.flatnonzero(np.r_[True, best[1:] != best[:-1]])
    for first, stop in zip(firsts, [*firsts[1:], len(best)], strict=True):
        if best[first] in shown:
            row = shown.index(best[first])
            place = (edges[first], row - 0.46), edges[stop] - edges[first], 0.92
            axes.add_patch(Rectangle(*place, fill=False, edgecolor="#e4572e", linewidth=1.8, zorder=3))
    axes.set_yticks(range(len(shown)), [in_picture(classes[k]) for k in shown], fontsize=10)
    axes.set(ylim=(len(shown) - 0.5, -0.5), xlim=(edges[0], edges[-1]))
    ticks = _ticks(edges[-1])
    axes.set_xticks(ticks, [_tick_label(t, edges[-1]) for t in ticks])
    axes.set_xlabel("seconds" if edges[-1] < 60 else "min:s" if edges[-1] < 3600 else "h:min:s")
    axes.set_yticks(np.arange(len(shown) + 1) - 0.5, minor=True)
    axes.grid(which="minor", axis="y", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    axes.set_title(f"{title}   (framed: the best class)", fontsize=11, loc="left")
    figure.colorbar(mesh, ax=axes, label="score", pad=0.01, aspect=max(8, 5 * inches))
    with _renamed(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def chosen_classes(scores: np.ndarray, edges: np.ndarray) -> list[int]:
    """Returns at most MAX_ROWS classes: those that are the best of some window, in the order of time, then others that
    are visible somewhere, by their mean; of too many, the ones that are the best for longest."""
    long = np.bincount(scores.argmax(1), np.diff(edges), scores.shape[1])
    order = np.lexsort((-scores.mean(0), -long))[:MAX_ROWS]
    winners = [k for k in order if long[k]]
    others = [k for k in order if not long[k] and scores[:, k].max() >= VISIBLE]
    winners.sort(key=lambda k: np.argmax(scores.argmax(1) == k))
    return [int(k) for k in winners + others]


def write_labelled(
    path: Path, video: Video, labels: Sequence[Sequence[tuple[str, float]]], firsts: np.ndarray, block_bytes: int,
    progress: Callable[[int], object],
) -> None:  # fmt: skip
    """Writes a video with classes and their scores on it, as H.264 at its own size, made even, and average rate.

    There is no sound.

    Args:
        labels: (n) lists of a name and a score, the best first.
        firsts: (n,) the frame from which each stands.
        block_bytes: of frames that are in memory together.
        progress: called with the number of frames written.
    """
    height, width = video.height // 2 * 2, video.width // 2 * 2
    box, patch, current = LabelBox(labels, height, width), None, -1
    with _renamed(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(video.fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "18"}
        for i, frame in enumerate(_frames(video, block_bytes)):
            now = int(np.searchsorted(firsts, i, "right")) - 1
            if now != current:
                patch, current = box.draw(labels[now]), now
            frame = np.ascontiguousarray(frame[:height, :width])
            paste(frame, patch)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            progress(1)
        container.mux(stream.encode(None))


class LabelBox:
    """Draws labels in a box of one size, for all labels of a video.

    Args:
        labels: lists of a name and a score, the best first; one or MAX_LINES of them are shown.
        height, width: of a frame, in pixels.
    """

    def __init__(self, labels: Sequence[Sequence[tuple[str, float]]], height: int, width: int):
        self.size = min(max(height // 18, 11), LARGEST_FONT)
        self.num_lines = MAX_LINES if height >= 12 * self.size else 1
        names = {name for label in labels for name, _ in label[: self.num_lines]}
        scores = {f"{score:.2f}" for label in labels for _, score in label[: self.num_lines]}
        while True:
            self.font = ImageFont.load_default(self.size)
            self.indent = self.size + round(max(map(self.font.getlength, scores)))
            widest = self.indent + self.size // 2 + round(max(map(self.font.getlength, names)))
            if widest <= width or self.size <= SMALLEST_FONT:
                break
            self.size -= 1
        self.width = min(widest, width)

    def draw(self, label: Sequence[tuple[str, float]]) -> np.ndarray:
        """Returns the box (h, w, 4) uint8, RGBA, with a label."""
        rows, edge, line = label[: self.num_lines], self.size // 2, round(1.3 * self.size)
        box = Image.new("RGBA", (self.width, len(rows) * line + edge), (0, 0, 0, 170))
        draw = ImageDraw.Draw(box)
        for i, (name, score) in enumerate(rows):
            colour, y = (255 if i == 0 else 190,) * 3 + (255,), edge // 2 + (i + 0.5) * line
            draw.text((edge, y), f"{score:.2f}", colour, self.font, anchor="lm")
            draw.text((self.indent, y), self._cut(name), colour, self.font, anchor="lm")
        return np.asarray(box)

    def _cut(self, name: str) -> str:
        """Returns the name, cut where it is wider than the box."""
        cut, kept = name, len(name)
        while kept and self.indent + self.font.getlength(cut) > self.width:
            kept -= 1
            cut = f"{name[:kept]}..."
        return cut


def paste(frame: np.ndarray, patch: np.ndarray) -> None:
    """Draws a box (h, w, 4) over the upper left corner of a frame (H, W, 3) uint8."""
    part = frame[: patch.shape[0], : patch.shape[1]]
    patch = patch[: part.shape[0]].astype(np.float32)
    share = patch[..., 3:] / 255
    part[:] = (share * patch[..., :3] + (1 - share) * part).round()


def _frames(video: Video, block_bytes: int) -> Iterator[np.ndarray]:
    """Yields all frames (H, W, 3) uint8 of a video."""
    size = (video.height, video.width)
    count = max(1, block_bytes // (3 * video.height * video.width))
    for first in range(0, video.num_frames, count):
        yield from video.read(range(first, min(first + count, video.num_frames)), size).numpy()


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """Yields a name to write to, which becomes `path` when all went well, and is removed otherwise."""
    partial = path.with_name(f".{path.name}.part")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _ticks(seconds: float) -> np.ndarray:
    step = next((step for step in TICKS if seconds / step <= 12), TICKS[-1])
    return np.arange(0, seconds + 1e-6, step)


def _tick_label(seconds: float, longest: float) -> str:
    if longest < 60:
        return f"{round(seconds, 2):g}"
    whole = round(seconds)
    text = f"{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{whole // 3600}:{text}" if longest >= 3600 else text.removeprefix("0")
