"""Plots of an ablation: accuracy over cost, and writing a figure in the format that the file's name asks for."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from nlvideo.experiments.tables import TableLine
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.files import replacing

SIZE = (5.4, 4.1)  # inches: labels stay readable where a page shows it 370 pixels wide
LINE_COLORS = ("#3b78b5", "#d9722b", "#3f9a5b", "#c2455a", "#8a66b8", "#8c6d5a")  # for light and dark backgrounds
LABEL_COLUMN = 0.4  # of the picture's width


def accuracy_over_cost(lines: Sequence[TableLine], title: str, metric: str) -> Figure:
    """Returns a plot of each trained row's accuracy over the multiply-adds of a clip: each seed, and their mean.

    Each seed, since a deviation hides that some learn and others do not, and reaches past 100 %. Baselines are squares;
    the rows below one share its colour. Labels stand in a column at the right, in the order of the accuracies, so that
    rows of equal cost and accuracy do not cover each other's.
    """
    figure = Figure(figsize=SIZE)
    axes = figure.add_axes((0.11, 0.13, 0.89 - LABEL_COLUMN, 0.79 if title else 0.85))
    labels = figure.add_axes((1 - LABEL_COLUMN, 0, LABEL_COLUMN, 1))
    several = sum(line.row.baseline for line in lines) > 1  # whose rows have the same labels
    points, color, suffix = [], -1, ""
    for line in lines:
        if line.row.baseline:
            color, suffix = color + 1, f" ({line.row.label.split()[-1]})" if several else ""
        if not line.runs:
            continue
        values = [run.main_metric for run in line.runs]
        x, y = line.runs[0].multiply_adds / 1e9, statistics.mean(values)
        marker, paint = "s" if line.row.baseline else "o", LINE_COLORS[color % len(LINE_COLORS)]
        axes.plot([x, x], [min(values), max(values)], color=paint, linewidth=1, alpha=0.5)
        axes.plot([x] * len(values), values, marker, color=paint, markersize=3.5, alpha=0.6, markeredgewidth=0)
        axes.plot(x, y, marker, color=paint, markersize=7)
        points.append((y, x, line.row.label + ("" if line.row.baseline else suffix), paint))
    axes.set(xlabel="G multiply-adds of a clip", ylabel=f"{metric} in %")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.margins(0.12)
    plain_axes(axes)
    figure.suptitle(title, fontsize=11)
    _label_column(axes, labels, sorted(points))
    return figure


def _label_column(axes: Axes, labels: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes the labels of points (y, x, label, colour), from the lowest, beside the plot, with a line to each."""
    low, high = axes.get_ylim()
    gap = (high - low) / 15  # a line of text
    places: list[float] = []
    for y, *_ in points:
        places.append(max(y, places[-1] + gap) if places else y)
    excess = max(0.0, places[-1] - high)
    places = [place - excess for place in places]
    for i in range(len(places) - 2, -1, -1):  # what was pushed above the top pushes those below it down
        places[i] = min(max(points[i][0], places[i]), places[i + 1] - gap)
    labels.set_axis_off()
    for place, (y, x, label, color) in zip(places, points, strict=True):
        line: dict[str, Any] = {"arrowstyle": "-", "color": color, "linewidth": 0.7, "alpha": 0.6, "shrinkB": 5}
        labels.annotate(
            label, (x, y), (0.04, place), xycoords=axes.transData, va="center",
            textcoords=blended_transform_factory(labels.transAxes, axes.transData),
            fontsize=10, arrowprops=line | {"relpos": (0, 0.5), "shrinkA": 1},
        )  # fmt: skip


def plain_axes(axes: Axes) -> None:
    """Leaves two of the frame's lines, and a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure whole.

    Raises:
        UserError: matplotlib does not know the format that the file's suffix names.
    """
    kind, known = path.suffix.removeprefix(".").lower(), figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise UserError(f"{path}: no picture format has this suffix; use one of {', '.join(sorted(known))}.")
    with replacing(path) as partial:
        figure.savefig(partial, format=kind, dpi=150)
