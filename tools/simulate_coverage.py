"""Simulates how often the intervals cover the truth, and how often the tests find what is and what is not there.

    python tools/simulate_coverage.py                  # both tables of docs/protocols.md, in Markdown; ten minutes
    python tools/simulate_coverage.py --repeats 200    # a first look

Each line draws that many evaluations from a population whose metric is known, and computes the interval of each as
nlvideo-evaluate, tools/compare_runs.py and tools/collect_results.py do. A share near 95 % is what a 95 % interval
promises. V videos, K classes, S seeds.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from nlvideo.evaluation import metrics
from nlvideo.evaluation.class_metrics import f1_interval
from nlvideo.evaluation.comparison import mcnemar_p
from nlvideo.evaluation.intervals import (
    Interval,
    accuracy_difference_interval,
    accuracy_interval,
    bootstrap,
    class_accuracy_interval,
    map_interval,
)
from nlvideo.evaluation.significance import detectable_errors, holm, mean_and_interval

QUICK = 20  # times as many repetitions of what takes no bootstrap
NUM_ROWS = 4  # of a table, besides its baseline
EVEN, UNEVEN = (40, 40, 40, 40), (100, 40, 15, 5)  # videos of each class


class Case(NamedTuple):
    """A population, and how an interval is drawn from it."""

    what: str
    population: str
    truth: float
    draw: Callable[[np.random.Generator], Interval]


def accuracies() -> Iterator[Case]:
    for num_videos in (20, 160, 1000):
        for share in (0.5, 0.9, 0.99):
            where = f"{num_videos} videos, {100 * share:g} %"
            yield Case("top-1: Wilson", where, share, partial(_of_accuracy, n=num_videos, share=share))


def _of_accuracy(g: np.random.Generator, n: int, share: float) -> Interval:
    return accuracy_interval(g.random(n) < share)


def bootstraps_of_accuracies() -> Iterator[Case]:
    for share in (0.9, 0.99):
        yield Case("top-1: bootstrap, for comparison", f"160 videos, {100 * share:g} %", share,
                   partial(_of_bootstrap, share=share))  # fmt: skip


def _of_bootstrap(g: np.random.Generator, share: float) -> Interval:
    return _plain_bootstrap(g.random(160) < share)


def means_of_classes() -> Iterator[Case]:
    for what in ("mean of classes: bootstrap", "macro F1: bootstrap"):
        for counts in (EVEN, UNEVEN):
            for share in (0.5, 0.9, 0.99, 1.0):
                where = f"{'even' if counts == EVEN else 'uneven'} classes, {100 * share:g} %"
                yield _of_classes(what, where, np.array(counts), share)


def _of_classes(what: str, where: str, counts: np.ndarray, share: float) -> Case:
    targets = np.repeat(np.arange(4), counts)
    if what.startswith("macro F1"):
        truth = population_f1(counts, share)
        return Case(what, where, truth, lambda g: f1_interval(guessed(g, targets, share), targets))
    return Case(what, where, share, lambda g: class_accuracy_interval(g.random(160) < share, targets))


def precisions() -> Iterator[Case]:
    for gap in (1.0, 3.0):
        large = multi_label(np.random.default_rng(1), 200_000, gap)
        truth = metrics.mean_average_precision(*large)
        yield Case("mAP: bootstrap", f"160 videos, 4 classes of 20 %, {100 * truth:.1f} %", truth,
                   partial(_of_labels, gap=gap))  # fmt: skip


def _of_labels(g: np.random.Generator, gap: float) -> Interval:
    return map_interval(*multi_label(g, 160, gap))


def differences() -> Iterator[Case]:
    for num_videos in (160, 432):
        for gained, lost in ((0.05, 0.05), (0.15, 0.05), (0.01, 0.0), (0.5, 0.05)):
            where = f"{num_videos} videos, gained {100 * gained:g} %, lost {100 * lost:g} %"
            yield Case("difference in top-1: paired bootstrap", where, gained - lost,
                       partial(_of_changes, n=num_videos, gained=gained, lost=lost))  # fmt: skip
    settings = (3, 160, (0.02, 0.2, 0.5)), (3, 160, (0.1, 0.2, 0.5)), (5, 432, (0.05, 0.2, 0.5))
    for seeds, videos, deviations in settings:
        where = f"{seeds} seeds, {videos} videos, deviations {deviations[0]} of seeds, {deviations[1]} of videos"
        yield Case("difference over seeds and videos: t", where, 0.1,
                   partial(_of_seeds, seeds=seeds, videos=videos, deviations=deviations))  # fmt: skip


def _of_changes(g: np.random.Generator, n: int, gained: float, lost: float) -> Interval:
    return accuracy_difference_interval(changes(g, n, gained, lost))


def _of_seeds(g: np.random.Generator, seeds: int, videos: int, deviations: tuple[float, float, float]) -> Interval:
    return _of_mean(0.1 + seeds_and_videos(g, seeds, videos, deviations))


def coverage(case: Case, repeats: int, seed: int = 0) -> tuple[float, float]:
    """Returns the share of drawn intervals that hold the truth, and their mean width."""
    rng = np.random.default_rng(seed)
    drawn = [case.draw(rng) for _ in range(repeats)]
    # the population's own value may be an end, which rounding moves
    held = [one.low - 1e-9 <= case.truth <= one.high + 1e-9 for one in drawn]
    return float(np.mean(held)), float(np.mean([one.high - one.low for one in drawn]))


def false_alarms(repeats: int, num_seeds: int, seed: int = 0) -> tuple[float, float, float]:
    """Returns how often p < 0.05 without any difference: of a row, of some row of four, and of some row by Holm."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(repeats):
        # with one seed, other seeds are not what the test is about
        base, *rows = (
            seeds_and_videos(rng, num_seeds, 160, (0.05 * (num_seeds > 1), 0.2, 0.4)) for _ in range(1 + NUM_ROWS)
        )
        p = [mean_and_interval(row - base)[2] for row in rows]
        found.append((p[0] < 0.05, min(p) < 0.05, min(holm(p)) < 0.05))
    of_row, of_some, by_holm = np.mean(found, axis=0).tolist()
    return of_row, of_some, by_holm


def power_at_detectable(repeats: int, num_seeds: int, seed: int = 0) -> float:
    """Returns how often the paired test over seeds finds a true difference of the detectable size."""
    rng = np.random.default_rng(seed)
    truth = detectable_errors(num_seeds - 1) / num_seeds**0.5  # differences of deviation 1
    return float(np.mean([mean_and_interval(rng.normal(truth, 1, (num_seeds, 1)))[2] < 0.05 for _ in range(repeats)]))


def mcnemar_alarms(repeats: int, num_videos: int, changed: float, seed: int = 0) -> float:
    """Returns how often McNemar's exact p is below 0.05 where as many videos are gained as lost."""
    rng, found = np.random.default_rng(seed), 0
    for _ in range(repeats):
        outcomes = changes(rng, num_videos, changed / 2, changed / 2)
        found += mcnemar_p((int((outcomes < 0).sum()), int((outcomes > 0).sum()))) < 0.05
    return found / repeats


def tests(repeats: int) -> Iterator[tuple[str, str]]:
    """Returns the lines of the second table: what is asked, and the percentage."""
    for num_seeds in (1, 3, 5):
        names = "a row has", f"some of {NUM_ROWS} rows have", f"some of {NUM_ROWS} rows have, by Holm,"
        for name, share in zip(names, false_alarms(repeats, num_seeds), strict=True):
            yield f"{name} p < 0.05 without a difference, {num_seeds} seed{'s' * (num_seeds > 1)}", f"{100 * share:.1f}"
    for num_videos in (160, 432):
        for changed in (0.05, 0.3):
            share = mcnemar_alarms(repeats, num_videos, changed)
            yield f"McNemar's p < 0.05 without one, {num_videos} videos, {changed:.0%} changed", f"{100 * share:.1f}"
    for num_seeds in (3, 5, 20):
        share = power_at_detectable(repeats, num_seeds)
        yield f"a difference of the detectable size is found, {num_seeds} seeds", f"{100 * share:.1f}"


def guessed(rng: np.random.Generator, targets: np.ndarray, share: float) -> np.ndarray:
    """Returns scores (V, 4) whose best class is the target with this probability, else any other."""
    others = (targets + rng.integers(1, 4, len(targets))) % 4
    return np.eye(4)[np.where(rng.random(len(targets)) < share, targets, others)]


def population_f1(counts: np.ndarray, share: float) -> float:
    """Returns the macro F1 of what `guessed` draws, for infinitely many videos in the proportions of (K,) counts."""
    hits = counts * share
    guesses = hits + (counts.sum() - counts) * (1 - share) / (len(counts) - 1)
    return float(np.mean(2 * hits / (guesses + counts)))


def multi_label(rng: np.random.Generator, num_videos: int, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores (V, 4), normal and `gap` higher where the video has the class, and targets (V, 4), 20 % true."""
    targets = rng.random((num_videos, 4)) < 0.2
    return rng.normal(size=(num_videos, 4)) + gap * targets, targets


def changes(rng: np.random.Generator, num_videos: int, gained: float, lost: float) -> np.ndarray:
    """Returns outcomes (V,): 1 for a gained video, -1 for a lost one, else 0."""
    drawn = rng.random(num_videos)
    return (drawn < gained).astype(float) - (drawn > 1 - lost)


def seeds_and_videos(rng: np.random.Generator, seeds: int, videos: int, deviations: tuple[float, ...]) -> np.ndarray:
    """Returns (S, V) normal values with these deviations over seeds, over videos, and of each value."""
    of_seeds, of_videos, residual = deviations
    shared = rng.normal(0, of_seeds, (seeds, 1)) + rng.normal(0, of_videos, (1, videos))
    return shared + rng.normal(0, residual, (seeds, videos))


def _plain_bootstrap(right: np.ndarray) -> Interval:
    return bootstrap(lambda w: w @ right / w.sum(1), len(right))


def _of_mean(values: np.ndarray) -> Interval:
    mean, half, _ = mean_and_interval(values)
    return Interval(mean - half, mean + half, "t")


def row(case: Case, repeats: int) -> tuple[str, str, str, str]:
    share, width = coverage(case, repeats if "bootstrap" in case.what else QUICK * repeats)
    return case.what, case.population, f"{100 * share:.1f}", f"{100 * width:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats",
        type=int,
        default=600,
        metavar="N",
        help="of each bootstrap's line, of the others 20 times as many (600)",
    )
    repeats = parser.parse_args().repeats
    first = (*accuracies(), *bootstraps_of_accuracies(), *means_of_classes(), *precisions())
    for cases in (first, tuple(differences())):
        rows = [row(case, repeats) for case in cases]
        print(tabulate(rows, ["interval", "population", "covered, %", "mean width, points"], "pipe"), end="\n\n")
    print(tabulate(list(tests(QUICK * repeats)), ["what", "of the repetitions, %"], "pipe"))


if __name__ == "__main__":
    main()
