"""Plots of an ablation: accuracy over cost, and writing a figure in the format that the file's name asks for."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from nlvideo.experiments.tables import TableLine
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.files import replacing


def accuracy_over_cost(lines: Sequence[TableLine], title: str, metric: str) -> Figure:
    """Returns a plot of each trained row's accuracy over the multiply-adds of a clip, with its spread over seeds.

    Baselines are squares; the rows below one share its colour.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    color = -1
    for line in lines:
        color += line.row.baseline
        if not line.runs:
            continue
        values = [run.main_metric for run in line.runs]
        x, y = line.runs[0].multiply_adds / 1e9, statistics.mean(values)
        deviation = statistics.stdev(values) if len(values) > 1 else 0
        marker = "s" if line.row.baseline else "o"
        axes.errorbar(x, y, deviation, fmt=marker, color=f"C{color}", capsize=3, markersize=7)
        axes.annotate(line.row.label, (x, y), (7, 4), textcoords="offset points", fontsize=9)
    axes.set(xlabel="G multiply-adds of a clip", ylabel=f"{metric} in %", title=title)
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    return figure


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
