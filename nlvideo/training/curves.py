"""The picture of a run's curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlvideo.training.metrics_file import VALIDATION_METRICS, read_metrics

if TYPE_CHECKING:  # imported on use: a run draws when it ends
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES_FILE = "curves.png"


def draw_curves(folder: Path) -> None:
    """Draws losses, validation accuracies, learning rate and speed over the steps into the run's folder."""
    curves_figure(read_metrics(folder)).savefig(folder / CURVES_FILE, dpi=110)


def curves_figure(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Returns the picture of these lines of metrics; each curve is of what they have."""
    from matplotlib.figure import Figure

    train = [row for row in rows if row["split"] == "train"]
    val = [row for row in rows if row["split"] == "val"]
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    (loss, accuracy), (rate, speed) = figure.subplots(2, 2)
    _draw(loss, train, {"loss": "training"})
    _draw(loss, val, {"loss": "validation, one centre clip"}, marker=".")
    _draw(accuracy, val, VALIDATION_METRICS, scale=100, marker=".")
    _draw(rate, train, {"lr": "learning rate"})
    _draw(speed, train, {"clips_per_second": "clips per second"})
    titles = ("loss", "validation, one centre clip (%)", "learning rate", "clips per second")
    for axes, title in zip((loss, accuracy, rate, speed), titles, strict=True):
        axes.set(title=title, ylim=(0, 102 if axes is accuracy else None), xlabel="step")
        axes.grid(alpha=0.3)
    if loss.lines:
        loss.legend(loc="upper right")
    if accuracy.lines:
        accuracy.legend(loc="lower right")
    return figure


def _draw(
    axes: "Axes",
    rows: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    *,
    scale: float = 1,
    marker: str | None = None,
) -> None:
    """Draws a line for each of {key: name} that any of the rows has: not every run measures all."""
    for key, name in names.items():
        measured = [row for row in rows if row.get(key) is not None]
        if measured:
            values = [scale * row[key] for row in measured]
            axes.plot([row["step"] for row in measured], values, marker=marker, label=name)
