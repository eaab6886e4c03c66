"""Draws what context blocks attend to over the frames of a clip: a picture and a video.

T frames, H height, W width of the clip; T' x H' x W' keys of a block.
"""

import textwrap
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch
from matplotlib.patheffects import withStroke

from nlvideo.attention.maps import SIGNED, SOFTMAX, Attention, Target
from nlvideo.attention.rows import Row

MAX_COLUMNS = 8
LOW, HIGH = 0.3, 0.7  # share of the colour in what is shown for weights 0 and 1; the rest is the frame in grey
QUERY_COLOUR, ARROW_COLOUR = "#4dff88", "#4dff88"
DIVERGING = LinearSegmentedColormap.from_list("cold_hot", ["#b3ecff", "#1f8fe0", "#000000", "#d2431f", "#ffe08a"])
INCH = 1.45  # width of a panel


def shown_frames(num_frames: int, queries: Sequence[int] = ()) -> list[int]:
    """Returns at most MAX_COLUMNS frames spread over the clip, and those of the queries instead of the nearest ones."""
    count = min(MAX_COLUMNS, num_frames)
    frames = [(2 * i + 1) * num_frames // (2 * count) for i in range(count)]
    for query in dict.fromkeys(queries):
        free = [i for i, frame in enumerate(frames) if frame not in queries]
        if query not in frames and free:
            frames[min(free, key=lambda i, wanted=query: abs(frames[i] - wanted))] = query
    return sorted(frames)


def heat(row: Row, frame: int) -> np.ndarray:
    """Returns weight / scale (H, W), -1 to 1, for a frame of the clip, bilinear between the centres of the keys.

    NaN where pooling leaves out the last row or column of a map with an odd number of them.
    """
    found = row.found
    _, height, width = found.clip_size
    rows, columns = (
        round(count * found.key_size * length / tiles)
        for count, length, tiles in zip(found.key_grid[1:], (height, width), found.query_grid[1:], strict=True)
    )
    values = (row.weights[found.map_frame(frame)] / (row.scale or 1.0)).float().cpu()
    values = F.interpolate(values[None, None], (rows, columns), mode="bilinear", align_corners=False)[0, 0]
    covered = np.full((height, width), np.nan, np.float32)
    covered[:rows, :columns] = values.numpy()
    return covered


def overlay(row: Row, frames: np.ndarray, frame: int) -> np.ndarray:
    """Returns one of the frames (T, H, W, 3) uint8 in grey under the colours of its weights, (H, W, 3) in 0 .. 1."""
    values = heat(row, frame)
    grey = frames[frame] @ np.array([0.299, 0.587, 0.114]) / 255
    return np.where(np.isnan(values)[..., None], grey[..., None], _painted(row.found, values, grey))


def write_picture(path: Path, rows: Sequence[Row], frames: np.ndarray, title: str, note: str) -> None:
    """Writes a row of frames for each map, arrows from the query to its targets (non-local paper, Figure 3).

    Several rows of one block with different queries are GCNet's Figure 1.

    Args:
        frames: (T, H, W, 3) uint8.
        title: above the picture.
        note: below it; what the colours mean is added.
    """
    shown = shown_frames(len(frames), [row.query[0] for row in rows if row.query is not None])
    high = INCH * frames.shape[1] / frames.shape[2]
    left, right, gap, top, bottom = 1.45, 0.95, 0.06, 0.8, 0.72
    size = (left + len(shown) * (INCH + gap) + right, top + (len(rows) + 1) * (high + gap) + bottom)
    figure = Figure(figsize=size)

    def panel(row: int, column: float, width: float = INCH, height: float = high) -> Axes:
        x, y = left + column * (INCH + gap), size[1] - top - row * (high + gap) - (high + height) / 2
        axes = figure.add_axes((x / size[0], y / size[1], width / size[0], height / size[1]))
        axes.tick_params(length=0, labelsize=7, pad=2)
        axes.set(xticks=[], yticks=[])
        return axes

    for column, frame in enumerate(shown):
        axes = panel(0, column)
        axes.imshow(frames[frame])
        axes.set_title(f"frame {frame}", fontsize=9, pad=3)
        if column == 0:
            _label(axes, "clip")
    for i, row in enumerate(rows, 1):
        panels = {frame: panel(i, column) for column, frame in enumerate(shown)}
        for frame, axes in panels.items():
            axes.imshow(overlay(row, frames, frame))
            if row.query is not None and frame == row.query[0]:
                _frame_query(axes, row.query)
        _label(panels[shown[0]], row.label)
        _colour_bar(panel(i, len(shown) + 0.05, 0.1, 0.8 * high), row)
        _draw_targets(figure, panels, row)
    figure.text(0.12 / size[0], 1 - 0.14 / size[1], title, fontsize=11, va="top", linespacing=1.4)
    note = f"{note}\n{_meaning(rows, shown)}"
    figure.text(0.12 / size[0], 0.1 / size[1], note, fontsize=8, va="bottom", linespacing=1.4)
    figure.savefig(path, dpi=110)


def write_video(path: Path, rows: Sequence[Row], frames: np.ndarray, title: str, fps: int) -> None:
    """Writes every frame of the clip with a panel for each map, as H.264.

    Args:
        frames: (T, H, W, 3) uint8.
        title: above the panels.
        fps: frames a second.
    """
    with av.open(str(path), "w", format="mp4") as container:
        stream = None
        for pixels in _video_frames(rows, frames, title):
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps))
                stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuv420p"
                stream.options = {"crf": "18"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def _video_frames(rows: Sequence[Row], frames: np.ndarray, title: str) -> Iterator[np.ndarray]:
    """Yields pictures (even, even, 3) uint8."""
    count, width = len(rows) + 1, 2.6
    columns = max(2, min(count, round((1.8 * count) ** 0.5)))
    title = "\n".join(textwrap.fill(line, int(columns * width * 13)) for line in title.splitlines())
    height, label, top = width * frames.shape[1] / frames.shape[2], 0.3, 0.12 + 0.17 * (title.count("\n") + 2)
    size = (columns * width, -(-count // columns) * (height + label) + top + 0.06)
    figure = Figure(figsize=size)
    canvas = FigureCanvasAgg(figure)
    heading = figure.text(0.08 / size[0], 1 - 0.08 / size[1], "", fontsize=9, va="top", linespacing=1.3)

    def panel(i: int, text: str, pixels: np.ndarray) -> tuple[Axes, AxesImage]:
        x, y = i % columns * width, size[1] - top - (i // columns + 1) * (height + label)
        axes = figure.add_axes(((x + 0.04) / size[0], y / size[1], (width - 0.08) / size[0], height / size[1]))
        axes.set_axis_off()
        axes.set_title(text, fontsize=9, pad=4)
        return axes, axes.imshow(pixels)

    _, clip = panel(0, "clip", frames[0])
    images, crosses = [], []
    for i, row in enumerate(rows, 1):
        axes, image = panel(i, " ".join(row.label.split()), overlay(row, frames, 0))
        images.append(image)
        if row.query is not None:
            crosses.append((row.query[0], _cross(axes, row.query)))
    for t in range(len(frames)):
        clip.set_data(frames[t])
        for image, row in zip(images, rows, strict=True):
            image.set_data(overlay(row, frames, t))
        for frame, cross in crosses:
            cross.set_color(QUERY_COLOUR if frame == t else "#a0a0a0")
        heading.set_text(f"{title}\nframe {t} of 0 to {len(frames) - 1}")
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        yield np.ascontiguousarray(pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2])


def _painted(found: Attention, values: np.ndarray, grey: np.ndarray | float) -> np.ndarray:
    """Returns values (...) from -1 to 1 as colours (..., 3) over a grey of 0 .. 1."""
    colours, low = _colours(found)
    share = (LOW + (HIGH - LOW) * np.abs(values))[..., None]
    grey = np.broadcast_to(grey, values.shape)[..., None]
    return (1 - share) * grey + share * colours((values - low) / (1 - low))[..., :3]


def _colours(found: Attention) -> tuple[Colormap, int]:
    """Returns the colours of a block's weights and what the first of them stands for."""
    return (DIVERGING, -1) if found.kind in SIGNED else (colormaps["inferno"], 0)


def _label(axes: Axes, text: str) -> None:
    axes.text(-0.06, 0.5, text, transform=axes.transAxes, fontsize=9, ha="right", va="center")


def _cross(axes: Axes, query: tuple[int, int, int]) -> Line2D:
    stroke = [withStroke(linewidth=3.5, foreground="black")]
    (cross,) = axes.plot(*query[1:], "+", color=QUERY_COLOUR, ms=11, mew=2, path_effects=stroke, zorder=5)
    return cross


def _frame_query(axes: Axes, query: tuple[int, int, int]) -> None:
    _cross(axes, query)
    for spine in axes.spines.values():
        spine.set(color=QUERY_COLOUR, linewidth=2.5)


def _colour_bar(axes: Axes, row: Row) -> None:
    """Says what the colours of a row are: weights times M, the keys that a query sees."""
    _, low = _colours(row.found)
    colours = _painted(row.found, np.linspace(1, low, 128)[:, None], 0.35)
    axes.imshow(colours, aspect="auto", extent=(0, 1, low, 1))
    largest = row.scale * row.found.num_seen
    ticks = [low, 0, 1] if low else [0, 1]
    axes.yaxis.tick_right()
    axes.set(yticks=ticks, yticklabels=[f"{tick * largest:.3g}" for tick in ticks])


def _draw_targets(figure: Figure, panels: dict[int, Axes], row: Row) -> None:
    """Draws arrows from the query, or circles where there is none, the thicker the stronger."""
    for target in reversed(row.targets):  # the strongest last, on top
        column = _column_of(row.found, target, list(panels))
        if column is None:
            continue
        strength = abs(target.weight) / abs(row.targets[0].weight)
        style = {"alpha": 0.3 + 0.7 * strength, "linestyle": "-" if target.weight > 0 else ":", "color": ARROW_COLOUR}
        if row.query in (None, (target.frame, target.x, target.y)):  # nothing to come from, or it is the query itself
            style |= {"linestyle": "none", "marker": "o", "mfc": "none", "ms": 4 + 4 * strength}
            panels[column].plot(target.x, target.y, mew=0.5 + strength, **style)
            continue
        arrow = ConnectionPatch(
            row.query[1:], (target.x, target.y), "data", "data", axesA=panels[row.query[0]], axesB=panels[column],
            arrowstyle="->", mutation_scale=5 + 5 * strength, lw=0.4 + 1.4 * strength, shrinkA=3, shrinkB=0, **style,
        )  # fmt: skip
        figure.add_artist(arrow)


def _column_of(found: Attention, target: Target, shown: Sequence[int]) -> int | None:
    """Returns the shown frame nearest to the target's among those of the same frame of the map, None without any."""
    wanted = found.map_frame(target.frame)
    same = [frame for frame in shown if found.map_frame(frame) == wanted]
    return min(same, key=lambda frame: abs(frame - target.frame), default=None)


def _meaning(rows: Sequence[Row], shown: Sequence[int]) -> str:
    """Returns what the colours mean, and how many targets lie in frames of a map that no column stands for."""
    found = rows[-1].found
    even = "1 were it even" if found.kind in SOFTMAX else "the pairwise function f"
    text = f"Numbers at the colours: weight x M, {even}; a query sees M keys, {found.num_seen} in the last row."
    if found.kind in SIGNED:
        text += " Below 0 blue, with dotted arrows."
    if found.clip_size[0] > found.query_grid[0]:
        text += f"\nA frame of the map stands for {found.clip_size[0] / found.query_grid[0]:g} frames of the clip"
        text += "; keys are marked in the middle one shown." if any(row.targets for row in rows) else "."
    hidden = sum(_column_of(row.found, target, shown) is None for row in rows for target in row.targets)
    return f"{text} {hidden} of the strongest keys lie in frames that are not shown." if hidden else text
