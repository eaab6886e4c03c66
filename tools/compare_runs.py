"""Compares evaluations of the same videos: is one better, by how much, and where?

    python tools/compare_runs.py A B [C ...]                    # each other run with A, the baseline
    python tools/compare_runs.py A B --output comparison        # with pictures and all classes and videos
    python tools/compare_runs.py A B --ensemble both.npz --weights 2 1

A, B: folders that nlvideo-evaluate wrote. A difference has the interval that drawing other videos would give it, the
same ones for both runs; another training of the same network, with another seed, may differ by more than that.
McNemar's exact test asks whether the videos that only one of both has right could be a coin's throws. A video that a
run could not decode counts as wrong there. Nothing is written without --output (comparison.png, classes.csv,
changed.csv) or --ensemble (scores.npz); files of the same names are overwritten, but never an evaluation's.
"""

import argparse
import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from string import ascii_uppercase

import numpy as np
from rich.console import Console
from rich.table import Table

from nlvideo.evaluation import metrics
from nlvideo.evaluation.comparison import (
    ENSEMBLE,
    Comparison,
    aligned,
    compared,
    differing_protocol,
    ensemble,
    mcnemar,
    measured,
    undecodable_notes,
)
from nlvideo.evaluation.result_files import INTERVAL, RESULT_FILE, SCORES_FILE, SHOWN, Evaluation, read_results
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.names import in_picture, shortened

PICTURE_FILE, CLASSES_FILE, CHANGED_FILE = "comparison.png", "classes.csv", "changed.csv"
NAMED_CLASSES = 60  # more are drawn without names
SHOWN_VIDEOS = 5  # of each way to change
TEXT_COLUMNS = ("", "evaluation", "score", "class", "video", "target")
GAIN_COLOR, LOSS_COLOR, UNCLEAR_COLOR = "#4c78a8", "#e0803a", "#8c8c8c"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline", type=Path, metavar="A", help="folder of the baseline's evaluation")
    parser.add_argument("others", type=Path, nargs="+", metavar="B", help="folders of the others")
    parser.add_argument("--common", action="store_true", help="where lists differ, compare the videos that all have")
    parser.add_argument("--classes", type=int, default=10, metavar="N", help="gains and losses shown, of each (10)")
    parser.add_argument("--output", type=Path, metavar="OUT", help="folder for the picture and the csv files")
    parser.add_argument("--ensemble", type=Path, metavar="NAME.npz", help="file or folder for the mean of all scores")
    parser.add_argument("--weights", type=float, nargs="+", metavar="W", help="of A, B, ... in the mean (equal)")
    arguments = parser.parse_args()
    try:
        compare(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def compare(arguments: argparse.Namespace) -> None:
    """Reads, compares, prints and writes what the arguments ask for."""
    folders = [arguments.baseline, *arguments.others]
    check_arguments(arguments, folders)
    runs, notes = aligned(dict(zip(ascii_uppercase, map(read_results, folders), strict=False)), arguments.common)
    if arguments.ensemble:
        file = ensemble_file(arguments.ensemble)
        runs[ENSEMBLE], found = ensemble(runs, arguments.weights, file)
        notes += found
    notes += undecodable_notes(runs)
    print_runs(runs)
    for note in notes:
        print(f"note: {note}")
    (first, baseline), *others = runs.items()
    comparisons = [compared(name, run, baseline) for name, run in others]
    for comparison in comparisons:
        print_comparison(comparison, first, baseline, arguments.classes)
    if arguments.ensemble:
        file.parent.mkdir(parents=True, exist_ok=True)
        mean = runs[ENSEMBLE]
        np.savez(file, ids=mean.ids, classes=mean.classes, scores=mean.scores, targets=mean.targets)
        print(f"\nensemble     {file}")
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        write_classes(arguments.output / CLASSES_FILE, comparisons)
        write_changed(arguments.output / CHANGED_FILE, comparisons)
        write_picture(arguments.output / PICTURE_FILE, comparisons, baseline)
        print(f"\nresults      {arguments.output}/{PICTURE_FILE}, {CLASSES_FILE}, {CHANGED_FILE}")


def check_arguments(arguments: argparse.Namespace, folders: list[Path]) -> None:
    if len(folders) > len(ascii_uppercase):
        raise UserError(f"{len(folders)} folders; at most {len(ascii_uppercase)} can be compared at a time.")
    seen = {}
    for folder in folders:
        if folder.resolve() in seen:
            raise UserError(f"{seen[folder.resolve()]} and {folder} are the same folder; give two evaluations.")
        seen[folder.resolve()] = folder
    if arguments.classes < 0:
        raise UserError(f"--classes is {arguments.classes}; give 0 or more.")
    weights = arguments.weights
    if weights and not arguments.ensemble:
        raise UserError("--weights are those of an --ensemble; give both.")
    if weights and (len(weights) != len(folders) or not all(0 < weight < np.inf for weight in weights)):
        raise UserError(f"--weights has {weights}; give a positive number for each of the {len(folders)} folders.")
    # classes.csv and scores.npz of an evaluation would be lost
    if arguments.output and (arguments.output / RESULT_FILE).exists():
        raise UserError(f"{arguments.output} holds an evaluation, which is not overwritten; give another --output.")
    if arguments.ensemble and (ensemble_file(arguments.ensemble).parent / RESULT_FILE).exists():
        raise UserError(f"{arguments.ensemble} would lie in an evaluation's folder; give another --ensemble.")


def ensemble_file(path: Path) -> Path:
    return path if path.suffix == ".npz" else path / SCORES_FILE


def print_runs(runs: dict[str, Evaluation]) -> None:
    rows = [
        {"": name, "evaluation": str(run.folder), "videos": f"{len(run.ids):,}"}
        | {SHOWN[key]: f"{100 * value:.2f}" for key, value in measured(run).items()}
        for name, run in runs.items()
    ]
    print_rows("metrics in %", rows)


def print_comparison(comparison: Comparison, first: str, baseline: Evaluation, num_classes: int) -> None:
    name = comparison.name
    print(f"\n{name} against {first}: {comparison.run.folder} against {baseline.folder}")
    if name != ENSEMBLE:
        for note in differing_protocol(baseline, comparison.run):
            print(f"note: {note}")
    rows = [
        {"score": SHOWN[key], f"{name} - {first}": points(found.value), "interval": between(found.ends, " to ")}
        for key, found in comparison.differences.items()
    ]
    print_rows("difference in points", rows)
    print(f"interval: {INTERVAL}, the same videos for both")
    print(chance(comparison, first))
    rows = class_rows(comparison, first, num_classes)
    print_rows(f"classes with the largest gains and losses, {value_name(baseline)} in %", rows)
    print_changes(comparison, first)
    print(verdict(comparison, first))


def chance(comparison: Comparison, first: str) -> str:
    """Returns what the test says, or for multi-label data what stands in its place."""
    name = comparison.name
    if comparison.discordant is None:
        below = 100 * comparison.differences["map"].below
        return f"no McNemar test for several classes a video; {name} is below {first} in {below:.1f} % of the resamples"
    b, c = comparison.discordant
    return f"McNemar's exact test: only {first} right b = {b:,}, only {name} right c = {c:,}, p = {mcnemar((b, c)):.3g}"


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
    """Prints how many videos changed in which way, and some of each: the first ones, or those that changed most."""
    multi_label = comparison.run.multi_label
    ways = ("risen", "fallen", "decoded by one") if multi_label else ("fixed", "broken", "other")
    groups = {way: [change for change in comparison.changes if change.way == way] for way in ways}
    counts = ", ".join(f"{len(group):,} {way}" for way, group in groups.items())
    what = "mean score of their actions" if multi_label else "best class"
    if multi_label:
        groups["fallen"].reverse()
    rows = []
    for change in [change for group in groups.values() for change in group[:SHOWN_VIDEOS]]:
        cells = [shown_score(best, score) for best, score in zip(change.classes, change.scores, strict=True)]
        row = {"": change.way, "video": change.video, "target": shortened(change.target, 40)}
        rows.append(row | dict(zip((first, comparison.name), cells, strict=True)))
    print_rows(f"videos with another {what}: {len(comparison.changes):,} ({counts})", rows)


def shown_score(best: str, score: float) -> str:
    return "undecodable" if np.isnan(score) else f"{best} {score:.3f}".strip()


def verdict(comparison: Comparison, first: str) -> str:
    """Returns in one sentence what the main metric says."""
    (key, found), *_ = comparison.differences.items()
    name, (low, high), videos = comparison.name, found.ends, f"{len(comparison.run.ids):,} videos"
    if found.value == low == high == 0:
        return f"{name} and {first} are equal in {SHOWN[key]} on this list of {videos}, whichever of them are drawn."
    where = "equal" if found.value == 0 else "better" if found.value > 0 else "worse"
    by = "" if found.value == 0 else f" by {100 * abs(found.value):.2f} points"
    means = (
        f"this list of {videos} cannot tell them apart"
        if low <= 0 <= high
        else f"more than the choice of these {videos} explains"
    )
    return f"{name} is {where}{by} in {SHOWN[key]}, between {between(found.ends, ' and ')}: {means}."


def between(ends: Iterable[float], word: str) -> str:
    return word.join(map(points, ends))


def points(fraction: float) -> str:
    """Returns a difference in percentage points, without a sign where it is rounded to zero."""
    text = f"{100 * fraction:+.2f}"
    return text[1:] if float(text) == 0 else text


def value_name(run: Evaluation) -> str:
    return "average precision" if run.multi_label else "top-1"


def print_rows(title: str, rows: list[dict[str, str]]) -> None:
    """Prints a title and a table as wide as its content, which no terminal cuts."""
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


def open_csv(path: Path):
    return open(path, "w", newline="", encoding="utf-8", errors="surrogateescape")


def write_classes(path: Path, comparisons: list[Comparison]) -> None:
    """Writes a line for each run and class, largest gain first."""
    with open_csv(path) as file:
        writer = csv.writer(file)
        writer.writerow(["run", "class", "videos", "baseline", "value", "gain"])
        for comparison in comparisons:
            for k in comparison.sorted_classes():
                numbers = (*comparison.values[:, k], comparison.gains[k])
                head = [comparison.run.folder, comparison.run.classes[k], comparison.counts[k]]
                writer.writerow([*head, *(f"{number:.6f}" for number in numbers)])


def write_changed(path: Path, comparisons: list[Comparison]) -> None:
    """Writes a line for each run and changed video."""
    with open_csv(path) as file:
        writer = csv.writer(file)
        writer.writerow(["run", "video", "target", "change", "baseline best", "baseline score", "best", "score"])
        for comparison in comparisons:
            for change in comparison.changes:
                cells = zip(change.classes, change.scores, strict=True)
                pairs = [cell for best, score in cells for cell in (best, "" if np.isnan(score) else f"{score:.6f}")]
                writer.writerow([comparison.run.folder, change.video, change.target, change.way, *pairs])


def write_picture(path: Path, comparisons: list[Comparison], baseline: Evaluation) -> None:
    """Draws the differences with their intervals above, and below the gain of every class, a column for each run."""
    from matplotlib.figure import Figure

    shown = [comparison.sorted_classes() for comparison in comparisons]
    named = len(shown[0]) <= NAMED_CLASSES
    num_lines = sum(len(comparison.differences) for comparison in comparisons)
    heights = 0.9 + 0.28 * num_lines, 1 + (0.22 * len(shown[0]) if named else 4)
    figure = Figure(figsize=(max(7, 5.5 * len(comparisons)), sum(heights)), layout="constrained")
    grid = figure.add_gridspec(2, len(comparisons), height_ratios=heights)
    top = figure.add_subplot(grid[0, :])
    draw_differences(top, comparisons)
    top.set_title(f"A: {in_picture(str(baseline.folder), 60)}, {len(baseline.ids):,} videos", fontsize=9)
    limit = 105 * max(0.01, *(np.nanmax(np.abs(comparison.gains)) for comparison in comparisons))
    for i, (comparison, order) in enumerate(zip(comparisons, shown, strict=True)):
        axes = figure.add_subplot(grid[1, i])
        gains = 100 * comparison.gains[order]
        axes.barh(range(len(order)), gains, height=0.8 if named else 1,
                  color=np.where(gains > 0, GAIN_COLOR, LOSS_COLOR))  # fmt: skip
        if named:
            names = [f"{in_picture(comparison.run.classes[k])} ({comparison.counts[k]})" for k in order]
            axes.set_yticks(range(len(order)), names, fontsize=8)
        else:
            axes.set(yticks=[], ylabel=f"{len(order)} classes, by gain; names in {CLASSES_FILE}")
        up, down = (gains > 0).sum(), (gains < 0).sum()
        title = f"{comparison.name}: {in_picture(str(comparison.run.folder), 60)}\n{up} classes better, {down} worse"
        axes.set_title(title, fontsize=9)
        axes.set(ylim=(len(order) - 0.4, -0.6), xlim=(-limit, limit), xlabel=f"gain in {value_name(baseline)} (points)")
        axes.axvline(0, color="k", linewidth=0.8)
        axes.set_axisbelow(True)  # the grid
        axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=110)


def draw_differences(axes, comparisons: list[Comparison]) -> None:
    lines = [(c.name, key, found) for c in comparisons for key, found in c.differences.items()]
    for place, (_, _, found) in enumerate(lines):
        low, high = (100 * end for end in found.ends)
        color = UNCLEAR_COLOR if low <= 0 <= high else GAIN_COLOR if low > 0 else LOSS_COLOR
        axes.plot([low, high], [place, place], color=color, linewidth=3, solid_capstyle="butt")
        axes.plot(100 * found.value, place, "o", color=color)
        at = (100 * found.value, place)
        axes.annotate(points(found.value), at, (0, 5), textcoords="offset points", ha="center", fontsize=8)
    axes.set_yticks(range(len(lines)), [f"{name} {SHOWN[key]}" for name, key, _ in lines])
    axes.set(
        ylim=(len(lines) - 0.4, -0.8),
        xlabel=f"difference to A (points) with its {100 * metrics.LEVEL:.0f} % interval; grey where that holds zero",
    )
    axes.axvline(0, color="k", linewidth=0.8)
    axes.grid(alpha=0.3, axis="x")


if __name__ == "__main__":
    main()
