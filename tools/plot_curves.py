"""Plots training and validation error over the steps, as the paper's Figure 4: several rows in one picture.

    python tools/plot_curves.py curves.png outputs/ablation --rows c2d_r50 c2d_r50_nl5

The runs of a row are those with its `name`. Each line is the mean over seeds, its band spans the lowest to the highest.
Dashed: training error, of each clip before the step that learns from it. Solid: validation error on one centre clip.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nlvideo.experiments.plots import save_figure
from nlvideo.experiments.run_folders import read_runs
from nlvideo.runtime.errors import UserError, reporting_errors
from nlvideo.runtime.files import make_folder
from nlvideo.training.metrics_file import METRICS_FILE, read_metrics

Curve = dict[int, float]  # step: error in percent
STYLES = {"train": ("--", 1.0, "training"), "val": ("-", 2.0, "validation")}  # line style, width, name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="the .png, .jpg, .svg or .pdf to write")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--rows", nargs="+", required=True, metavar="NAME", help="in the order of the legend")
    arguments = parser.parse_args()
    with reporting_errors():
        make_folder(arguments.picture.parent, str(arguments.picture))
        save_figure(plot_errors(read_errors(arguments.folders, arguments.rows)), arguments.picture)
    print(arguments.picture)


def read_errors(folders: Sequence[Path], rows: Sequence[str]) -> dict[str, dict[str, list[Curve]]]:
    """Returns {row: {split: the curve of each run}}.

    Raises:
        UserError: a row has no run, or none with an accuracy.
    """
    found: dict[str, dict[str, list[Curve]]] = {row: defaultdict(list) for row in rows}
    for run in [run for folder in folders for run in read_runs(folder)]:
        splits = found.get(run.settings.get("name", ""))
        if splits is not None:
            for split, curve in read_curves(run.path).items():
                splits[split].append(curve)
    for row, splits in found.items():
        if not splits:
            raise UserError(f"No run named {row} with a top-1 accuracy in {', '.join(map(str, folders))}.")
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
    """Returns the plot of {row: {split: the curve of each run}}, over the steps that all runs of a row have."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, (row, splits) in enumerate(errors.items()):
        for split, curves in sorted(splits.items()):
            steps = sorted(set.intersection(*map(set, curves)))
            values = np.array([[curve[step] for step in steps] for curve in curves])
            style, width, name = STYLES[split]
            label = f"{row}, {name} ({len(curves)} seed{'s' if len(curves) > 1 else ''})"
            axes.plot(steps, values.mean(0), style, linewidth=width, color=f"C{i}", label=label)
            axes.fill_between(steps, values.min(0), values.max(0), color=f"C{i}", alpha=0.12, linewidth=0)
    axes.set(xlabel="step", ylabel="error in %", ylim=(0, None))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
