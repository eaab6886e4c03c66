"""The reliability picture of an evaluation: what became of predictions, against the probability that they had."""

from typing import TYPE_CHECKING, Any

import numpy as np

from nlvideo.evaluation.calibration import NUM_BINS, Calibration

if TYPE_CHECKING:  # imported on use: not every evaluation writes a report
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRUE_COLOR, GAP_COLOR, COUNT_COLOR = "#4c78a8", "#e0803a", "#8c8c8c"


def reliability_figure(found: Calibration, multi_label: bool) -> "Figure":
    """Returns the accuracy of each bin with its gap to the mean score and, beneath, how many predictions it has."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 5.6), layout="constrained")
    reliability, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw_reliability(reliability, found)
    reliability.set_ylabel("classes that the video has (%)" if multi_label else "right (%)")
    reliability.set_title(f"expected calibration error {100 * found.error:.2f} %", fontsize=11)
    histogram.bar(100 * _centres(), found.counts, 90 / NUM_BINS, color=COUNT_COLOR)
    histogram.set_ylabel("scores" if multi_label else "videos")
    if multi_label:  # nearly all scores lie in the first bin
        histogram.set_yscale("log")
    histogram.set(xlim=(0, 100), xlabel="score (%)" if multi_label else "score of the best class (%)")
    figure.legend(loc="outside lower left", ncols=3, frameon=False, columnspacing=1.2, handlelength=1.6)
    for axes in (reliability, histogram):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure


def _draw_reliability(axes: "Axes", found: Calibration) -> None:
    filled = found.counts > 0
    places = 100 * _centres()[filled]
    true, said = 100 * found.accuracies[filled], 100 * found.confidences[filled]
    axes.bar(places, true, 90 / NUM_BINS, color=TRUE_COLOR, label="came true")
    # no face: an SVG's hatch would have its colour
    gap: dict[str, Any] = {"facecolor": "none", "edgecolor": GAP_COLOR, "hatch": "///", "linewidth": 1}
    axes.bar(places, said - true, 90 / NUM_BINS, bottom=true, label="gap to the mean score", **gap)
    axes.plot([0, 100], [0, 100], color="k", linestyle="--", linewidth=1, label="calibrated")
    axes.set(ylim=(0, 100))


def _centres() -> np.ndarray:
    return (np.arange(NUM_BINS) + 0.5) / NUM_BINS
