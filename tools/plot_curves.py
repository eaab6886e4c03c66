"""Draws training and validation error over the steps, as the paper's Figure 4: the baseline beside other rows.

    python tools/plot_curves.py curves.png outputs/ablation --rows c2d_r50 c2d_r50_nl5

A run belongs to the row of its `name`. Lines are means over seeds, with a band from the lowest to the highest; dashed
is training (each clip as it was drawn, before the step), solid is validation on one centre clip.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from nlvideo.experiments.run_folders import read_runs
from nlvideo.runtime.errors import UserError
from nlvideo.training.run_log import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="the .png, .jpg, .svg or .pdf to write")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--rows", nargs="+", required=True, metavar="NAME", help="in the order of the legend")
    arguments = parser.parse_args()
    try:
        draw(read_errors(arguments.folders, arguments.rows), arguments.picture)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(arguments.picture)


def read_errors(folders: list[Path], rows: list[str]) -> dict[str, dict[str, list[dict[int, float]]]]:
    """Returns {row: {split: [{step: error in percent} of each run]}}.

    Raises:
        UserError: a row that no run has, or that has no accuracy.
    """
    found = {row: defaultdict(list) for row in rows}
    for run in [run for folder in folders for run in read_runs(folder)]:
        name = run.settings.get("name")
        if name in found:
            metrics = read_metrics(run.path)
            for split in ("train", "val"):
                errors = {
                    row["step"]: 100 * (1 - row["top1"]) for row in metrics if row["split"] == split and "top1" in row
                }
                if errors:
                    found[name][split].append(errors)
    for row, splits in found.items():
        if not splits:
            raise UserError(f"No run named {row} with a top-1 accuracy in {', '.join(map(str, folders))}.")
    return found


def draw(errors: dict[str, dict[str, list[dict[int, float]]]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, (row, splits) in enumerate(errors.items()):
        for split, runs in sorted(splits.items()):
            steps = sorted(set.intersection(*(set(run) for run in runs)))
            values = np.array([[run[step] for step in steps] for run in runs])
            style = {"train": ("--", 1.0, "training"), "val": ("-", 2.0, "validation")}[split]
            label = f"{row}, {style[2]} ({len(runs)} seed{'s' if len(runs) > 1 else ''})"
            axes.plot(steps, values.mean(0), style[0], linewidth=style[1], color=f"C{i}", label=label)
            axes.fill_between(steps, values.min(0), values.max(0), color=f"C{i}", alpha=0.12, linewidth=0)
    axes.set(xlabel="step", ylabel="error in %", ylim=(0, None))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
