"""Plots training and validation error over the steps, as the paper's Figure 4: several rows in one picture.

    python tools/plot_curves.py curves.png outputs/ablation --rows c2d_r50 c2d_r50_nl5

The runs of a row are those with its `name`. Each line is the mean over seeds. Dashed: training error, of each clip
before the step that learns from it, averaged over neighbouring steps. Solid: validation error on one centre clip, with
a band from the lowest seed to the highest.
"""

import argparse
from pathlib import Path

from nlvideo.experiments.error_curves import plot_errors, read_errors
from nlvideo.experiments.plots import save_figure
from nlvideo.experiments.run_folders import read_runs
from nlvideo.runtime.errors import reporting_errors
from nlvideo.runtime.files import make_place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="the .png, .jpg, .svg or .pdf to write")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--rows", nargs="+", required=True, metavar="NAME", help="in the order of the legend")
    arguments = parser.parse_args()
    with reporting_errors():
        make_place(arguments.picture, str(arguments.picture))
        runs = [run for folder in arguments.folders for run in read_runs(folder)]
        save_figure(plot_errors(read_errors(runs, arguments.rows)), arguments.picture)
    print(arguments.picture)


if __name__ == "__main__":
    main()
