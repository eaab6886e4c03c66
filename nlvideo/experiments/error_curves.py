"""Training and validation error over the steps, as the non-local paper's Figure 4."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nlvideo.experiments.plots import LINE_COLORS, SIZE, plain_axes
from nlvideo.experiments.run_folders import RunSummary
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.names import in_picture
from nlvideo.training.metrics_file import METRICS_FILE, read_metrics

Curve = dict[int, float]  # step: error in percent
STYLES: dict[str, tuple[Literal["--", "-"], float, str]] = {
    "train": ("--", 1.2, "training"),
    "val": ("-", 2.0, "validation"),
}  # line, width, name
POINTS = 40  # of a training line
LONG = 20  # names for which the legend has one column


def read_errors(runs: Sequence[RunSummary], rows: Sequence[str]) -> dict[str, dict[str, list[Curve]]]:
    """Returns {row: {split: the curve of each run}}, the runs of a row being those with its `name`.

    Raises:
        UserError: a row has no run, or none with an accuracy.
    """
    found: dict[str, dict[str, list[Curve]]] = {row: defaultdict(list) for row in rows}
    for run in runs:
        splits = found.get(run.settings.get("name", ""))
        if splits is not None:
            for split, curve in read_curves(run.path).items():
                splits[split].append(curve)
    for row, splits in found.items():
        if not splits:
            raise UserError(f"No run named {row} with a top-1 accuracy.")
    return found


def read_curves(folder: Path) -> dict[str, Curve]:
    """Returns {split: curve} of a run, without the splits that have no accuracy."""
    curves: dict[str, Curve] = defaultdict(dict)
    if not (folder / METRICS_FILE).exists():  # it has not reached its first step
        return curves
    for row in read_metrics(folder):
        if row["split"] in STYLES and "top1" in row:
            curves[row["split"]][row["step"]] = 100 * (1 - row["top1"])
    return curves


def plot_errors(errors: Mapping[str, Mapping[str, Sequence[Curve]]]) -> Figure:
    """Returns the plot of {row: {split: the curve of each run}}, over the steps that all runs of a row have.

    Colours are rows; training is dashed and thin, validation solid with a band from the lowest seed to the highest.
    """
    columns = 1 if max(map(len, errors)) > LONG else 2
    width, height = SIZE
    figure = Figure(figsize=(width, height + 0.6 * (columns == 1)), layout="constrained")
    axes = figure.subplots()
    handles = []
    for (row, splits), color in zip(errors.items(), cycle(LINE_COLORS), strict=False):
        for split, curves in sorted(splits.items()):
            shared = sorted(set.intersection(*map(set, curves)))
            if not shared:  # runs that were logged at other steps
                continue
            steps = np.array(shared)
            values = np.array([[curve[step] for step in shared] for curve in curves])
            style, width, _ = STYLES[split]
            if split == "train":
                steps, values = _thinned(steps, values)
            else:
                axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
            axes.plot(steps, values.mean(0), style, linewidth=width, color=color)
        count = max(map(len, splits.values()))
        handles.append(
            Line2D(
                [],
                [],
                color=color,
                linewidth=2,
                label=f"{in_picture(row).lstrip('_')} ({count} seed{'s' * (count > 1)})",
            )
        )
    used = {split for splits in errors.values() for split in splits}
    for split in [split for split in STYLES if split in used]:
        style, width, name = STYLES[split]
        handles.append(Line2D([], [], color="0.5", linestyle=style, linewidth=width, label=name))
    axes.set(xlabel="step", ylabel="error in %", ylim=(0, None))
    plain_axes(axes)
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, frameon=False, columnspacing=1.2)
    return figure


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (T,) steps and (S, T) errors as at most POINTS means of neighbours, S seeds.

    Single steps are noise that hides the lines.
    """
    parts = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
    return np.array([steps[part].mean() for part in parts]), np.stack([values[:, part].mean(1) for part in parts], 1)
