"""Compares evaluations of the same videos: which is better, by how much, and where?

    python tools/compare_runs.py A B [C ...]                    # each other run against A, the baseline
    python tools/compare_runs.py A B --output comparison        # plots, and csv files of all classes and videos
    python tools/compare_runs.py A B --ensemble both.npz --weights 2 1

A, B: folders written by nlvideo-evaluate. Each difference comes with a paired interval: how much it varies with the
choice of videos. Training the same network again with another seed may change it by more. McNemar's exact test
asks whether the videos that only one of the two gets right could be a coin's throws. With several runs, the last table
has Holm's p too, which holds for all of them together, and the smallest difference that these videos can show. A video
that a run could not decode counts as wrong. Nothing is written without --output (comparison.png, classes.csv,
changed.csv) or --ensemble (scores.npz). These files are overwritten, those of an evaluation never.
"""

import argparse
import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import ascii_uppercase

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from nlvideo.evaluation.alignment import align_runs
from nlvideo.evaluation.comparison import (
    ENSEMBLE,
    Comparison,
    average_scores,
    compare_to_baseline,
    differing_settings,
    main_metrics,
    undecodable_notes,
)
from nlvideo.evaluation.intervals import AGREES, LEVEL, describe
from nlvideo.evaluation.result_files import METRIC_NAMES, RESULT_FILE, SCORES_FILE, Evaluation, read_results
from nlvideo.evaluation.significance import holm, mcnemar_p
from nlvideo.experiments.tables import DETECTABLE, p_cell, points_cell
from nlvideo.runtime.errors import UserError, reporting_errors
from nlvideo.runtime.files import make_folder, replacing
from nlvideo.runtime.names import in_picture, shortened

PICTURE_FILE, CLASSES_FILE, CHANGED_FILE = "comparison.png", "classes.csv", "changed.csv"
MAX_NAMED_CLASSES = 60  # more are plotted without names
MAX_PRINTED_VIDEOS = 5  # of each kind of change
TEXT_COLUMNS = ("", "evaluation", "score", "kind", "class", "video", "target")
GAIN_COLOR, LOSS_COLOR, UNCLEAR_COLOR = "#4c78a8", "#e0803a", "#8c8c8c"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline", type=Path, metavar="A", help="folder of the baseline's evaluation")
    parser.add_argument("others", type=Path, nargs="+", metavar="B", help="folders of the other evaluations")
    parser.add_argument("--common", action="store_true", help="if the lists differ, compare the videos that all have")
    parser.add_argument("--classes", type=int, default=10, metavar="N", help="gains and losses printed, each (10)")
    parser.add_argument("--output", type=Path, metavar="OUT", help="folder for the plots and csv files")
    parser.add_argument("--ensemble", type=Path, metavar="NAME.npz", help="file or folder for the mean of all scores")
    parser.add_argument("--weights", type=float, nargs="+", metavar="W", help="of A, B, ... in the mean (equal)")
    arguments = parser.parse_args()
    with reporting_errors():
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Reads, compares, prints and writes what the arguments ask for."""
    folders = [arguments.baseline, *arguments.others]
    check_arguments(arguments, folders)
    runs, notes = align_runs(dict(zip(ascii_uppercase, map(read_results, folders), strict=False)), arguments.common)
    if arguments.ensemble:
        runs[ENSEMBLE], found = average_scores(runs, arguments.weights, ensemble_file(arguments.ensemble))
        notes += found
    notes += undecodable_notes(runs)
    print_runs(runs)
    for note in notes:
        print(f"note: {note}")
    (first, baseline), *others = runs.items()
    comparisons = [compare_to_baseline(name, run, baseline) for name, run in others]
    for comparison in comparisons:
        print_comparison(comparison, first, baseline, arguments.classes)
    if len(comparisons) > 1:
        print_all(comparisons, first)
    if arguments.ensemble:
        write_ensemble(runs[ENSEMBLE], f"--ensemble {arguments.ensemble}")
    if arguments.output:
        make_folder(arguments.output, f"--output {arguments.output}")
        write_classes(arguments.output / CLASSES_FILE, comparisons)
        write_changed(arguments.output / CHANGED_FILE, comparisons)
        write_picture(arguments.output / PICTURE_FILE, comparisons, baseline)
        print(f"\nresults      {arguments.output}/{PICTURE_FILE}, {CLASSES_FILE}, {CHANGED_FILE}")


def check_arguments(arguments: argparse.Namespace, folders: Sequence[Path]) -> None:
    if len(folders) > len(ascii_uppercase):
        raise UserError(f"{len(folders)} folders; at most {len(ascii_uppercase)} can be compared at a time.")
    seen: dict[Path, Path] = {}
    for folder in folders:
        if folder.resolve() in seen:
            raise UserError(f"{seen[folder.resolve()]} and {folder} are the same folder; give two evaluations.")
        seen[folder.resolve()] = folder
    if arguments.classes < 0:
        raise UserError(f"--classes {arguments.classes}: must not be negative.")
    weights = arguments.weights
    if weights and not arguments.ensemble:
        raise UserError("--weights has no effect without --ensemble.")
    if weights and (len(weights) != len(folders) or not all(0 < weight < np.inf for weight in weights)):
        given = " ".join(f"{weight:g}" for weight in weights)
        raise UserError(f"--weights {given}: give a positive number for each of the {len(folders)} folders.")
    # The evaluation has a classes.csv and a scores.npz of its own.
    if arguments.output and (arguments.output / RESULT_FILE).exists():
        raise UserError(f"--output {arguments.output}: holds an evaluation, which would be overwritten.")
    if arguments.ensemble and (ensemble_file(arguments.ensemble).parent / RESULT_FILE).exists():
        raise UserError(f"--ensemble {arguments.ensemble}: its folder holds an evaluation; give another one.")


def ensemble_file(path: Path) -> Path:
    return path if path.suffix == ".npz" else path / SCORES_FILE


def print_runs(runs: dict[str, Evaluation]) -> None:
    rows = [
        {"": name, "evaluation": str(run.folder), "videos": f"{len(run.ids):,}"}
        | {METRIC_NAMES[key]: f"{100 * value:.2f}" for key, value in main_metrics(run).items()}
        for name, run in runs.items()
    ]
    print_rows("metrics in %", rows)


def print_comparison(comparison: Comparison, first: str, baseline: Evaluation, num_classes: int) -> None:
    name = comparison.name
    print(f"\n{name} against {first}: {comparison.run.folder} against {baseline.folder}")
    if name != ENSEMBLE:
        for note in differing_settings(baseline, comparison.run):
            print(f"note: {note}")
    rows = [
        {
            "score": METRIC_NAMES[key],
            f"{name} - {first}": points(found.value),
            "interval": joined(found.interval.ends, " to "),
            "kind": found.interval.kind,
        }
        for key, found in comparison.differences.items()
    ]
    print_rows("difference in percentage points", rows)
    kinds = {found.interval.kind for found in comparison.differences.values()}
    print(f"paired interval, {describe(kinds)}")
    print(significance(comparison, first))
    rows = class_rows(comparison, first, num_classes)
    print_rows(f"classes with the largest gains and losses, {value_name(baseline)} in %", rows)
    print_changes(comparison, first)
    print(verdict(comparison, first))
    if not np.isnan(comparison.detectable):
        key = METRIC_NAMES[next(iter(comparison.differences))]
        print(f"detectable in {key}: {points_cell(100 * comparison.detectable)} points ({DETECTABLE})")


def print_all(comparisons: Sequence[Comparison], first: str) -> None:
    """Prints a line for each run, with a p that holds for all of them together."""
    key = next(iter(comparisons[0].differences))
    adjusted = holm([comparison.p for comparison in comparisons])
    rows = [
        {
            "": comparison.name,
            f"minus {first}": points(comparison.differences[key].value),
            "interval": joined(comparison.differences[key].interval.ends, " to "),
            "p": p_cell(comparison.p),
            "p (Holm)": p_cell(p),
            "detectable": points_cell(100 * comparison.detectable),
        }
        for comparison, p in zip(comparisons, adjusted, strict=True)
    ]
    print()
    print_rows(f"all against {first}: {METRIC_NAMES[key]}, in percentage points", rows)
    tested = f"McNemar's exact test; Holm's: adjusted for {len(rows)} comparisons"
    print(f"p: {tested if comparisons[0].discordant else 'none for multi-label data'}; detectable: {DETECTABLE}")


def significance(comparison: Comparison, first: str) -> str:
    """Returns the line on McNemar's test or, for multi-label data, on the resamples below zero."""
    name = comparison.name
    if comparison.discordant is None:
        below = comparison.differences["map"].below
        assert below is not None
        return f"no McNemar test for multi-label data; {name} is below {first} in {100 * below:.1f} % of the resamples"
    b, c = comparison.discordant
    return (
        f"McNemar's exact test: only {first} right b = {b:,}, only {name} right c = {c:,}, p = {mcnemar_p((b, c)):.3g}"
    )


def class_rows(comparison: Comparison, first: str, num_classes: int) -> list[dict[str, str]]:
    order = comparison.sorted_classes()
    gains = comparison.gains
    rising, falling = order[gains[order] > 0][:num_classes], order[gains[order] < 0]
    falling = falling[max(0, len(falling) - num_classes) :]
    return [
        {
            "class": str(comparison.run.classes[k]),
            "videos": f"{comparison.counts[k]:,}",
            first: f"{100 * comparison.values[0, k]:.2f}",
            comparison.name: f"{100 * comparison.values[1, k]:.2f}",
            "gain": points(gains[k]),
        }
        for k in (*rising, *falling)
    ]


def print_changes(comparison: Comparison, first: str) -> None:
    """Prints the number of videos that changed in each way, with a few examples: the largest changes, if ordered."""
    multi_label = comparison.run.multi_label
    ways = ("risen", "fallen", "decoded by one") if multi_label else ("fixed", "broken", "other")
    groups = {way: [change for change in comparison.changes if change.way == way] for way in ways}
    counts = ", ".join(f"{len(group):,} {way}" for way, group in groups.items())
    what = "mean score of their actions" if multi_label else "best class"
    if multi_label:
        groups["fallen"].reverse()
    rows = []
    for change in [change for group in groups.values() for change in group[:MAX_PRINTED_VIDEOS]]:
        cells = [score_cell(best, score) for best, score in zip(change.classes, change.scores, strict=True)]
        row = {"": change.way, "video": change.video, "target": shortened(change.target, 40)}
        rows.append(row | dict(zip((first, comparison.name), cells, strict=True)))
    print_rows(f"videos with a different {what}: {len(comparison.changes):,} ({counts})", rows)


def score_cell(best: str, score: float) -> str:
    return "undecodable" if np.isnan(score) else f"{best} {score:.3f}".strip()


def verdict(comparison: Comparison, first: str) -> str:
    """Returns the conclusion from the main metric in one sentence."""
    (key, found), *_ = comparison.differences.items()
    name, (low, high), videos = comparison.name, found.interval.ends, f"{len(comparison.run.ids):,} videos"
    if comparison.discordant == (0, 0) or (found.value == 0 and found.interval.kind.endswith(AGREES)):
        return (
            f"{name} and {first} have equal {METRIC_NAMES[key]} on these {videos}, and in every resample of them. Over "
            f"all videos, they may differ by {100 * high:.2f} points."
        )
    where = "equal" if found.value == 0 else "better" if found.value > 0 else "worse"
    by = "" if found.value == 0 else f" by {100 * abs(found.value):.2f} points"
    by_choice = low <= 0 <= high or comparison.p >= 1 - LEVEL  # p is NaN for multi-label data
    means = f"inconclusive on these {videos}" if by_choice else f"more than the choice of these {videos} explains"
    return f"{name} is {where}{by} in {METRIC_NAMES[key]}, between {joined(found.interval.ends, ' and ')}: {means}."


def joined(ends: Iterable[float], word: str) -> str:
    return word.join(map(points, ends))


def points(fraction: float) -> str:
    """Returns a difference in percentage points, without a sign if it rounds to zero."""
    text = f"{100 * fraction:+.2f}"
    return text[1:] if float(text) == 0 else text


def value_name(run: Evaluation) -> str:
    return "average precision" if run.multi_label else "top-1"


def print_rows(title: str, rows: list[dict[str, str]]) -> None:
    """Prints a title and a table as wide as its content, whatever the terminal's width."""
    print(title if rows else f"{title}: none")
    if not rows:
        return
    table = Table()
    for name in rows[0]:
        text = name in TEXT_COLUMNS or "target" in rows[0]
        table.add_column(name, justify="left" if text else "right")
    for row in rows:
        table.add_row(*row.values())
    width = sum(max(len(value) for value in (name, *(row[name] for row in rows))) + 3 for name in rows[0]) + 1
    Console(width=max(width, 80), markup=False).print(table)


def write_ensemble(mean: Evaluation, given: str) -> None:
    """Writes the mean scores as a scores.npz to the file that the evaluation is named after."""
    make_folder(mean.folder.parent, given)
    with replacing(mean.folder) as partial, open(partial, "wb") as file:
        np.savez(file, ids=mean.ids, classes=mean.classes, scores=mean.scores, targets=mean.targets)
    print(f"\nensemble     {mean.folder}")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with (
        replacing(path) as partial,
        open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_classes(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Writes a line per run and class, largest gain first."""
    rows = []
    for comparison in comparisons:
        for k in comparison.sorted_classes():
            numbers = (*comparison.values[:, k], comparison.gains[k])
            head = [comparison.run.folder, comparison.run.classes[k], comparison.counts[k]]
            rows.append([*head, *(f"{number:.6f}" for number in numbers)])
    write_csv(path, ["run", "class", "videos", "baseline", "value", "gain"], rows)


def write_changed(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Writes a line per run and changed video."""
    rows = []
    for comparison in comparisons:
        for change in comparison.changes:
            cells = zip(change.classes, change.scores, strict=True)
            pairs = [cell for best, score in cells for cell in (best, "" if np.isnan(score) else f"{score:.6f}")]
            rows.append([comparison.run.folder, change.video, change.target, change.way, *pairs])
    header = ["run", "video", "target", "change", "baseline best", "baseline score", "best", "score"]
    write_csv(path, header, rows)


def write_picture(path: Path, comparisons: Sequence[Comparison], baseline: Evaluation) -> None:
    """Plots the differences with their intervals and, below, the gain of each class, one column per run."""
    num_classes = len(comparisons[0].sorted_classes())
    num_lines = sum(len(comparison.differences) for comparison in comparisons)
    heights = 0.9 + 0.28 * num_lines, 1 + (0.22 * num_classes if num_classes <= MAX_NAMED_CLASSES else 4)
    figure = Figure(figsize=(max(7, 5.5 * len(comparisons)), sum(heights)), layout="constrained")
    grid = figure.add_gridspec(2, len(comparisons), height_ratios=heights)
    top = figure.add_subplot(grid[0, :])
    draw_differences(top, comparisons)
    top.set_title(f"A: {in_picture(str(baseline.folder), 60)}, {len(baseline.ids):,} videos", fontsize=9)
    limit = 105 * max(0.01, *(np.nanmax(np.abs(comparison.gains)) for comparison in comparisons))
    for i, comparison in enumerate(comparisons):
        axes = figure.add_subplot(grid[1, i])
        draw_gains(axes, comparison)
        axes.set(xlim=(-limit, limit), xlabel=f"gain in {value_name(baseline)} (points)")
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def draw_gains(axes: Axes, comparison: Comparison) -> None:
    order = comparison.sorted_classes()
    named = len(order) <= MAX_NAMED_CLASSES
    gains = 100 * comparison.gains[order]
    colors = [GAIN_COLOR if gain > 0 else LOSS_COLOR for gain in gains]
    axes.barh(range(len(order)), gains, height=0.8 if named else 1, color=colors)
    if named:
        names = [f"{in_picture(comparison.run.classes[k])} ({comparison.counts[k]})" for k in order]
        axes.set_yticks(range(len(order)), names, fontsize=8)
    else:
        axes.set(yticks=[], ylabel=f"{len(order)} classes, by gain; names in {CLASSES_FILE}")
    up, down = (gains > 0).sum(), (gains < 0).sum()
    title = f"{comparison.name}: {in_picture(str(comparison.run.folder), 60)}\nclasses: {up} better, {down} worse"
    axes.set_title(title, fontsize=9)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.axvline(0, color="k", linewidth=0.8)
    axes.set_axisbelow(True)  # the grid
    axes.grid(alpha=0.3, axis="x")


def draw_differences(axes: Axes, comparisons: Sequence[Comparison]) -> None:
    lines = [(c.name, key, found) for c in comparisons for key, found in c.differences.items()]
    for place, (_, _, found) in enumerate(lines):
        low, high = (100 * end for end in found.interval.ends)
        color = UNCLEAR_COLOR if low <= 0 <= high else GAIN_COLOR if low > 0 else LOSS_COLOR
        axes.plot([low, high], [place, place], color=color, linewidth=3, solid_capstyle="butt")
        axes.plot(100 * found.value, place, "o", color=color)
        at = (100 * found.value, place)
        axes.annotate(points(found.value), at, (0, 5), textcoords="offset points", ha="center", fontsize=8)
    axes.set_yticks(range(len(lines)), [f"{name} {METRIC_NAMES[key]}" for name, key, _ in lines])
    axes.set(
        ylim=(len(lines) - 0.4, -0.8),
        xlabel=f"difference to A (points) with its {100 * LEVEL:.0f} % interval; grey if it includes zero",
    )
    axes.axvline(0, color="k", linewidth=0.8)
    axes.grid(alpha=0.3, axis="x")


if __name__ == "__main__":
    main()
