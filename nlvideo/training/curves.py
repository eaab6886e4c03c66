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
    """Returns the picture of these lines of metrics; each curve is of what they have.

    Args:
        rows: of metrics.jsonl. The speed is of the keys that end in "_per_second".
    """
    from matplotlib.figure import Figure

    train = [row for row in rows if row["split"] == "train"]
    val = [row for row in rows if row["split"] == "val"]
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    titles = {"loss": "loss", "accuracy": "validation, one centre clip (%)", "rate": "learning rate", "speed": "speed"}
    panels = figure.subplot_mosaic(
        [["loss", "accuracy"], ["rate", "speed"]] if val else [["loss"] * 2, ["rate", "speed"]]
    )
    loss, accuracy = panels["loss"], panels.get("accuracy")
    _draw(loss, train, {"loss": "training"})
    _draw(panels["rate"], train, {"lr": "learning rate"})
    speeds = {key: key.replace("_", " ") for row in train[-1:] for key in row if key.endswith("_per_second")}
    _draw(panels["speed"], train, speeds)
    if accuracy:
        _draw(loss, val, {"loss": "validation, one centre clip"}, marker=".")
        _draw(accuracy, val, VALIDATION_METRICS, scale=100, marker=".")
    for name, axes in panels.items():
        title = " ".join(speeds.values()) if name == "speed" and speeds else titles[name]
        axes.set(title=title, ylim=(0, 102 if name == "accuracy" else None), xlabel="step")
        axes.grid(alpha=0.3)
    if loss.lines:
        loss.legend(loc="upper right")
    if accuracy and accuracy.lines:
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
