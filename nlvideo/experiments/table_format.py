"""The look of an ablation table: its cells as text, and the picture of accuracy against cost."""

import statistics
from pathlib import Path

from nlvideo.experiments.tables import Line, first


def cells(lines: list[Line]) -> list[dict[str, str]]:
    """Returns a row of text for each line; metrics in percent, costs relative to the baseline as in the paper."""
    names = list(dict.fromkeys(name for line in lines for run in line.runs for name in run.metrics))
    rows = []
    for line in lines:
        row = {"": line.row.label, "seeds": str(len(line.runs)) if line.runs else "-"}
        row |= {name: spread([run.metrics[name] for run in line.runs if name in run.metrics]) for name in names}
        found = line.difference
        row["difference"] = f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})" if found else "-"
        row["p"] = "-" if found is None else "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"
        params, multiply_adds = line.relative or (None, None)
        row |= {"params": times(params), "multiply-adds": times(multiply_adds)}
        row["paper"] = " / ".join(f"{value:g}" for value in line.paper) if line.paper else "-"
        row["paper's difference"] = "-" if line.paper_difference is None else f"{line.paper_difference:+.1f}"
        rows.append(row)
    return rows


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def spread(values: list[float]) -> str:
    """Returns "mean +- sample standard deviation", the mean alone for one value or equal ones."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(set(values)) == 1 else f"{mean} +- {statistics.stdev(values):.2f}"


def draw(lines: list[Line], title: str, metric: str, file: Path) -> None:
    """Writes a picture: the accuracy of each row against the multiply-adds of a clip, with the spread over seeds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    colour = -1
    for line in lines:
        colour += line.row.baseline or colour < 0
        if not line.runs:
            continue
        values = [first(run.metrics) for run in line.runs]
        x, y = line.runs[0].multiply_adds / 1e9, statistics.mean(values)
        deviation = statistics.stdev(values) if len(values) > 1 else 0
        marker = "s" if line.row.baseline else "o"
        axes.errorbar(x, y, deviation, fmt=marker, color=f"C{colour}", capsize=3, markersize=7)
        axes.annotate(line.row.label, (x, y), (7, 4), textcoords="offset points", fontsize=9)
    axes.set(xlabel="G multiply-adds of a clip", ylabel=f"{metric} in %", title=title)
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
