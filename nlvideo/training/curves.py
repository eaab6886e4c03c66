"""The picture of a run's curves."""

from pathlib import Path

from nlvideo.training.metrics_file import VALIDATION_METRICS, read_metrics

CURVES_FILE = "curves.png"


def draw_curves(folder: Path) -> None:
    """Draws loss, validation accuracy, learning rate and speed over the steps into the run's folder."""
    from matplotlib.figure import Figure

    rows = read_metrics(folder)
    train = [row for row in rows if row["split"] == "train"]
    val = [row for row in rows if row["split"] == "val"]
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    (loss, accuracy), (rate, speed) = figure.subplots(2, 2)
    for axes, key, title in (
        (loss, "loss", "training loss"),
        (rate, "lr", "learning rate"),
        (speed, "clips_per_second", "clips per second"),
    ):
        axes.plot([row["step"] for row in train], [row[key] for row in train])
        axes.set(title=title, ylim=(0, None))
    for key, name in VALIDATION_METRICS.items():
        measured = [row for row in val if key in row]
        if measured:
            percents = [100 * row[key] for row in measured]
            accuracy.plot([row["step"] for row in measured], percents, marker=".", label=name)
    accuracy.set(title="validation, one centre clip (%)", ylim=(0, 102))
    if val:
        accuracy.legend(loc="lower right")
    for axes in (loss, accuracy, rate, speed):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    figure.savefig(folder / CURVES_FILE, dpi=110)
