"""Draws predictions: scores over time as a plot, and a video with its classes written on it.

n windows, K classes, F frames, H height, W width.
"""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from nlvideo.data.decoding.video import Video
from nlvideo.prediction.timeline import runs_of_equal
from nlvideo.runtime.files import replacing
from nlvideo.runtime.names import in_picture
from nlvideo.runtime.video_writer import VideoWriter

MAX_ROWS = 12  # classes of a plot
MIN_VISIBLE_SCORE = 0.03
MAX_TICKS = 12
TICK_STEPS = (0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)  # seconds
SMALLEST_FONT, LARGEST_FONT = 9, 48  # pixels
MAX_LINES = 3  # of a label

Label = Sequence[tuple[str, float]]  # names and scores, best first


def clock(seconds: float) -> str:
    """Returns a time as 0:07.5 or 1:02:03.0."""
    tenths = round(10 * seconds)
    minutes, tenths = divmod(tenths, 600)
    text = f"{minutes % 60}:{tenths / 10:04.1f}"
    return text if minutes < 60 else f"{minutes // 60}:{text.zfill(7)}"


def write_timeline(path: Path, edges: np.ndarray, scores: np.ndarray, classes: Sequence[str], title: str) -> None:
    """Plots the scores of the best classes over time as a PNG: a row per class, a column per window, and a frame
    around the best class of each moment.

    Args:
        path: the file to write.
        edges: (n + 1,) seconds, at which the video is divided between the windows.
        scores: (n, K).
        classes: all names.
        title: of the plot.
    """
    shown = chosen_classes(scores, edges)
    inches = 0.34 * len(shown) + 1.35
    figure = Figure(figsize=(11, inches), layout="constrained")
    axes = figure.subplots()
    mesh = axes.pcolormesh(
        edges,
        np.arange(len(shown) + 1) - 0.5,
        scores[:, shown].T,
        cmap="Blues",
        vmin=0,
        vmax=max(1.0, float(scores.max())),
    )
    _frame_best(axes, edges, scores.argmax(1), shown)
    _label_axes(axes, edges, [in_picture(classes[k]) for k in shown])
    axes.set_title(f"{title}   (framed: the best class)", fontsize=11, loc="left")
    figure.colorbar(mesh, ax=axes, label="score", pad=0.01, aspect=max(8, 5 * inches))
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _frame_best(axes: Axes, edges: np.ndarray, best: np.ndarray, shown: Sequence[int]) -> None:
    """Draws one frame around consecutive windows with the same best class."""
    for first, stop in runs_of_equal(best):
        if best[first] in shown:
            corner = edges[first], shown.index(best[first]) - 0.46
            width, height = edges[stop] - edges[first], 0.92
            frame = Rectangle(corner, width, height, fill=False, edgecolor="#e4572e", linewidth=1.8, zorder=3)
            axes.add_patch(frame)


def _label_axes(axes: Axes, edges: np.ndarray, names: Sequence[str]) -> None:
    seconds = edges[-1]
    axes.set_yticks(range(len(names)), names, fontsize=10)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(edges[0], seconds))
    ticks = _ticks(seconds)
    axes.set_xticks(ticks, [_tick_label(t, seconds) for t in ticks])
    axes.set_xlabel("seconds" if seconds < 60 else "min:s" if seconds < 3600 else "h:min:s")
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", axis="y", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)


def _ticks(seconds: float) -> np.ndarray:
    step = next((step for step in TICK_STEPS if seconds / step <= MAX_TICKS), TICK_STEPS[-1])
    return np.arange(0, seconds + 1e-6, step)


def _tick_label(seconds: float, longest: float) -> str:
    if longest < 60:
        return f"{round(seconds, 2):g}"
    whole = round(seconds)
    text = f"{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{whole // 3600}:{text}" if longest >= 3600 else text.removeprefix("0")


def chosen_classes(scores: np.ndarray, edges: np.ndarray) -> list[int]:
    """Returns at most MAX_ROWS classes to plot, by rows from the top.

    First those that are the best of some window, in temporal order, then others that are visible somewhere, by mean
    score. If there are too many, those that are the best for longest are kept.

    Args:
        scores: (n, K).
        edges: (n + 1,), see write_timeline.
    """
    durations = np.bincount(scores.argmax(1), np.diff(edges), scores.shape[1])
    order = np.lexsort((-scores.mean(0), -durations))[:MAX_ROWS]
    winners = [k for k in order if durations[k]]
    others = [k for k in order if not durations[k] and scores[:, k].max() >= MIN_VISIBLE_SCORE]
    winners.sort(key=lambda k: np.argmax(scores.argmax(1) == k))
    return [int(k) for k in winners + others]


def write_labelled(
    path: Path,
    video: Video,
    labels: Sequence[Label],
    firsts: np.ndarray,
    progress: Callable[[int], object],
) -> None:
    """Writes a video with classes and scores on it: H.264 without sound, at the video's average frame rate and size,
    rounded down to even numbers.

    Args:
        path: the file to write.
        video: the source.
        labels: (n).
        firsts: (n,) the first frame of each label.
        progress: called with the number of frames written since the last call.
    """
    height, width = video.height // 2 * 2, video.width // 2 * 2
    box, current = LabelBox(labels, height, width), -1
    rate = Fraction(video.fps).limit_denominator(1001)
    with replacing(path) as partial, VideoWriter(partial, rate, {"crf": "18"}) as writer:
        for i, frame in enumerate(_frames(video)):
            now = int(np.searchsorted(firsts, i, "right")) - 1
            if now != current:
                patch, current = box.draw(labels[now]), now
            frame = np.ascontiguousarray(frame[:height, :width])
            paste(frame, patch)
            writer.write(frame)
            progress(1)


class LabelBox:
    """Draws labels in a box of the same size for all labels of a video.

    Args:
        labels: all labels; the first one or MAX_LINES classes of each are shown.
        height, width: of a frame, in pixels.
    """

    def __init__(self, labels: Sequence[Label], height: int, width: int):
        self.size = min(max(height // 18, 11), LARGEST_FONT)
        self.num_lines = MAX_LINES if height >= 12 * self.size else 1
        names = {name for label in labels for name, _ in label[: self.num_lines]}
        scores = {f"{score:.2f}" for label in labels for _, score in label[: self.num_lines]}
        while True:  # until the widest line fits
            self.font = ImageFont.load_default(self.size)
            self.indent = self.size + round(max(map(self.font.getlength, scores)))
            widest = self.indent + self.size // 2 + round(max(map(self.font.getlength, names)))
            if widest <= width or self.size <= SMALLEST_FONT:
                break
            self.size -= 1
        self.width = min(widest, width)

    def draw(self, label: Label) -> np.ndarray:
        """Returns the box (h, w, 4) uint8, RGBA, with a label."""
        rows, margin, line = label[: self.num_lines], self.size // 2, round(1.3 * self.size)
        box = Image.new("RGBA", (self.width, len(rows) * line + margin), (0, 0, 0, 170))
        draw = ImageDraw.Draw(box)
        for i, (name, score) in enumerate(rows):
            grey = 255 if i == 0 else 190
            colour, y = (grey, grey, grey, 255), margin // 2 + (i + 0.5) * line
            draw.text((margin, y), f"{score:.2f}", colour, self.font, anchor="lm")
            draw.text((self.indent, y), self._cut(name), colour, self.font, anchor="lm")
        return np.asarray(box)

    def _cut(self, name: str) -> str:
        """Returns the name, cut if it is wider than the box."""
        cut, kept = name, len(name)
        while kept and self.indent + self.font.getlength(cut) > self.width:
            kept -= 1
            cut = f"{name[:kept]}..."
        return cut


def paste(frame: np.ndarray, patch: np.ndarray) -> None:
    """Blends an RGBA patch (h, w, 4) over the upper left corner of a frame (H, W, 3) uint8, in place."""
    part = frame[: patch.shape[0], : patch.shape[1]]
    patch = patch[: part.shape[0]].astype(np.float32)
    share = patch[..., 3:] / 255
    part[:] = (share * patch[..., :3] + (1 - share) * part).round()


def _frames(video: Video) -> Iterator[np.ndarray]:
    """Yields all frames (H, W, 3) uint8 of a video."""
    for frames in video.stream(np.arange(video.num_frames), (video.height, video.width)):
        yield from frames.numpy()
