"""Draws attention maps over the frames of a clip, as a picture and as a video.

T frames, H height, W width of the clip.
"""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
from nlvideo.attention.rows import MapRow, Query
from nlvideo.runtime.files import replacing
from nlvideo.runtime.video_writer import VideoWriter

MAX_COLUMNS = 8
LOW, HIGH = 0.3, 0.7  # opacity of the colours for weights 0 and 1 over the frame in grey
QUERY_COLOUR, ARROW_COLOUR = "#4dff88", "#4dff88"
DIVERGING = LinearSegmentedColormap.from_list("cold_hot", ["#b3ecff", "#1f8fe0", "#000000", "#d2431f", "#ffe08a"])
PANEL = 1.45  # width of a frame in the picture, in inches, as are all sizes below
LEFT, RIGHT, TOP, BOTTOM, GAP = 1.45, 0.95, 0.8, 0.72, 0.06  # margins of the picture, and between its frames
VIDEO_PANEL = 2.6  # width of a panel of the video
VIDEO_LABEL = 0.3  # height of a panel's label


def shown_frames(num_frames: int, queries: Sequence[int] = ()) -> list[int]:
    """Returns at most MAX_COLUMNS frames spread evenly over the clip; frames of queries replace their nearest ones."""
    count = min(MAX_COLUMNS, num_frames)
    frames = [(2 * i + 1) * num_frames // (2 * count) for i in range(count)]
    for query in dict.fromkeys(queries):
        free = [(abs(frame - query), i) for i, frame in enumerate(frames) if frame not in queries]
        if query not in frames and free:
            _, nearest = min(free)
            frames[nearest] = query
    return sorted(frames)


def heat(row: MapRow, frame: int) -> np.ndarray:
    """Returns weight / scale (H, W), -1 to 1, for a frame of the clip, interpolated between the centres of the keys.

    NaN where subsampling drops the last row or column of a feature map of odd size.
    """
    attention = row.attention
    _, height, width = attention.clip_size
    rows, columns = (
        round(count * attention.key_size * length / tiles)
        for count, length, tiles in zip(attention.key_grid[1:], (height, width), attention.query_grid[1:], strict=True)
    )
    values = (row.weights[attention.map_frame(frame)] / (row.scale or 1.0)).float().cpu()
    values = F.interpolate(values[None, None], (rows, columns), mode="bilinear", align_corners=False)[0, 0]
    covered = np.full((height, width), np.nan, np.float32)
    covered[:rows, :columns] = values.numpy()
    return covered


def overlay(row: MapRow, frames: np.ndarray, frame: int) -> np.ndarray:
    """Returns one of the frames (T, H, W, 3) uint8 in grey with the map in colour over it, (H, W, 3) in 0 .. 1."""
    values = heat(row, frame)
    grey = frames[frame] @ np.array([0.299, 0.587, 0.114]) / 255
    return np.where(np.isnan(values)[..., None], grey[..., None], _painted(row.attention, values, grey))


def write_picture(path: Path, rows: Sequence[MapRow], frames: np.ndarray, title: str, note: str) -> None:
    """Writes a PNG with a row of frames for each map, arrows from queries to targets (non-local paper, Figure 3).

    Several rows of one block with different queries make GCNet's Figure 1.

    Args:
        path: the file to write.
        rows: from top to bottom.
        frames: (T, H, W, 3) uint8.
        title: above the picture.
        note: below it; an explanation of the colours is added.
    """
    shown = shown_frames(len(frames), [row.query[0] for row in rows if row.query is not None])
    high = PANEL * frames.shape[1] / frames.shape[2]
    size = (LEFT + len(shown) * (PANEL + GAP) + RIGHT, TOP + (len(rows) + 1) * (high + GAP) + BOTTOM)
    figure = Figure(figsize=size)

    def panel(row: int, column: float, width: float = PANEL, height: float = high) -> Axes:
        return _add_panel(figure, LEFT + column * (PANEL + GAP), TOP + row * (high + GAP) + high / 2, width, height)

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
    note = f"{note}\n{_legend(rows, shown)}"
    figure.text(0.12 / size[0], 0.1 / size[1], note, fontsize=8, va="bottom", linespacing=1.4)
    with replacing(path) as partial:
        # what the picture says, for whoever cannot see it
        figure.savefig(partial, dpi=110, format="png", metadata={"Title": title, "Description": note})


def write_video(path: Path, rows: Sequence[MapRow], frames: np.ndarray, title: str, fps: int) -> None:
    """Writes an H.264 mp4 of all frames of the clip, with a panel for each map.

    Args:
        path: the file to write.
        rows: in the order of the panels.
        frames: (T, H, W, 3) uint8.
        title: above the panels.
        fps: frames per second.
    """
    with replacing(path) as partial, VideoWriter(partial, fps, {"crf": "18"}) as video:
        for pixels in _video_frames(rows, frames, title):
            video.write(pixels)


def _add_panel(figure: Figure, left: float, middle: float, width: float, height: float) -> Axes:
    """Returns axes without ticks; `left` is measured from the left edge, `middle` from the top edge."""
    total_width, total_height = figure.get_size_inches()
    bottom = total_height - middle - height / 2
    axes = figure.add_axes((left / total_width, bottom / total_height, width / total_width, height / total_height))
    axes.tick_params(length=0, labelsize=7, pad=2)
    axes.set(xticks=[], yticks=[])
    return axes


def _video_frames(rows: Sequence[MapRow], frames: np.ndarray, title: str) -> Iterator[np.ndarray]:
    """Yields pictures (height, width, 3) uint8, both sizes even."""
    count, width, label = len(rows) + 1, VIDEO_PANEL, VIDEO_LABEL
    columns = max(2, min(count, round((1.8 * count) ** 0.5)))
    title = "\n".join(textwrap.fill(line, int(columns * width * 13)) for line in title.splitlines())
    height, top = width * frames.shape[1] / frames.shape[2], 0.12 + 0.17 * (title.count("\n") + 2)
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


def _painted(attention: Attention, values: np.ndarray, grey: np.ndarray | float) -> np.ndarray:
    """Returns values (...) from -1 to 1 as colours (..., 3) over grey in 0 .. 1."""
    colours, low = _colours(attention)
    share = (LOW + (HIGH - LOW) * np.abs(values))[..., None]
    grey = np.broadcast_to(grey, values.shape)[..., None]
    return (1 - share) * grey + share * colours((values - low) / (1 - low))[..., :3]


def _colours(attention: Attention) -> tuple[Colormap, int]:
    """Returns the colour map of a block's weights, and the value of weight / scale at its start."""
    return (DIVERGING, -1) if attention.kind in SIGNED else (colormaps["inferno"], 0)


def _label(axes: Axes, text: str) -> None:
    axes.text(-0.06, 0.5, text, transform=axes.transAxes, fontsize=9, ha="right", va="center")


def _cross(axes: Axes, query: Query) -> Line2D:
    stroke = [withStroke(linewidth=3.5, foreground="black")]
    (cross,) = axes.plot(*query[1:], "+", color=QUERY_COLOUR, ms=11, mew=2, path_effects=stroke, zorder=5)
    return cross


def _frame_query(axes: Axes, query: Query) -> None:
    _cross(axes, query)
    for spine in axes.spines.values():
        spine.set(color=QUERY_COLOUR, linewidth=2.5)


def _colour_bar(axes: Axes, row: MapRow) -> None:
    """Draws the colours of a row, labelled with weight x M, where M is the number of keys that a query attends to."""
    _, low = _colours(row.attention)
    colours = _painted(row.attention, np.linspace(1, low, 128)[:, None], 0.35)
    axes.imshow(colours, aspect="auto", extent=(0, 1, low, 1))
    largest = row.scale * row.attention.num_seen
    ticks = [low, 0, 1] if low else [0, 1]
    axes.yaxis.tick_right()
    axes.set(yticks=ticks, yticklabels=[f"{tick * largest:.3g}" for tick in ticks])


def _draw_targets(figure: Figure, panels: dict[int, Axes], row: MapRow) -> None:
    """Draws arrows from the query, or circles without one; stronger targets have thicker lines."""
    for target in reversed(row.targets):  # the strongest last, on top
        column = _column_of(row.attention, target, list(panels))
        if column is None:
            continue
        strength = abs(target.weight) / abs(row.targets[0].weight)
        style: dict[str, Any] = {"alpha": 0.3 + 0.7 * strength, "color": ARROW_COLOUR}
        if row.query is None or row.query == (target.frame, target.x, target.y):  # an arrow to itself has no length
            style |= {"linestyle": "none", "marker": "o", "mfc": "none", "ms": 4 + 4 * strength}
            panels[column].plot(target.x, target.y, mew=0.5 + strength, **style)
            continue
        style["linestyle"] = "-" if target.weight > 0 else ":"
        arrow = ConnectionPatch(
            row.query[1:], (target.x, target.y), "data", "data", axesA=panels[row.query[0]], axesB=panels[column],
            arrowstyle="->", mutation_scale=5 + 5 * strength, lw=0.4 + 1.4 * strength, shrinkA=3, shrinkB=0, **style,
        )  # fmt: skip
        figure.add_artist(arrow)


def _column_of(attention: Attention, target: Target, shown: Sequence[int]) -> int | None:
    """Returns the shown frame nearest to the target within its frame of the map; None if none is shown."""
    wanted = attention.map_frame(target.frame)
    same = [frame for frame in shown if attention.map_frame(frame) == wanted]
    return min(same, key=lambda frame: abs(frame - target.frame), default=None)


def _legend(rows: Sequence[MapRow], shown: Sequence[int]) -> str:
    """Returns what the colours mean, and how many targets lie in frames of the map that are not shown."""
    last = rows[-1].attention
    unit = "1 is even attention" if last.kind in SOFTMAX else "the pairwise function f"
    text = f"Colour bars: weight x M ({unit}); each query attends to M keys, {last.num_seen} in the last row."
    if last.kind in SIGNED:
        text += " Negative weights are blue, their arrows dotted."
    if last.clip_size[0] > last.query_grid[0]:
        text += f"\nA frame of the map covers {last.clip_size[0] / last.query_grid[0]:g} frames of the clip"
        text += "; keys are marked in the middlemost one shown." if any(row.targets for row in rows) else "."
    hidden = sum(_column_of(row.attention, target, shown) is None for row in rows for target in row.targets)
    return f"{text} {hidden} of the strongest keys lie in frames that are not shown." if hidden else text
