"""Simulates how often the intervals cover the truth, and how often the tests find what is and what is not there.

    python tools/simulate_coverage.py                  # both tables of docs/protocols.md, in Markdown; six minutes
    python tools/simulate_coverage.py --repeats 200    # a first look

Each line draws that many evaluations from a population whose metric is known, and computes the interval of each as
nlvideo-evaluate, tools/compare_runs.py and tools/collect_results.py do. A share near 95 % is what a 95 % interval
promises. V videos, K classes, S seeds.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from nlvideo.evaluation import metrics
from nlvideo.evaluation.class_metrics import f1_interval
from nlvideo.evaluation.intervals import (
    Interval,
    accuracy_difference_interval,
    accuracy_interval,
    bootstrap,
    class_accuracy_difference_interval,
    class_accuracy_interval,
    map_difference_interval,
    map_interval,
)
from nlvideo.evaluation.significance import detectable_errors, holm, interval_and_p, mcnemar_p, mean_and_interval

QUICK = 20  # times as many repetitions of what takes no bootstrap
NUM_ROWS = 4  # of a table, besides its baseline
EVEN, UNEVEN = (40, 40, 40, 40), (100, 40, 15, 5)  # videos of each class
SINGLE = (1,) * 100
SEEDS_AND_VIDEOS = (3, 160, (0.02, 0.2, 0.5)), (3, 160, (0.1, 0.2, 0.5)), (5, 432, (0.05, 0.2, 0.5))  # deviations


class Case(NamedTuple):
    """A population, and how an interval is drawn from it."""

    what: str
    population: str
    truth: float
    draw: Callable[[np.random.Generator], Interval]


def accuracies() -> Iterator[Case]:
    for num_videos in (20, 160, 1000):
        for share in (0.5, 0.9, 0.99):
            yield _of_proportion("top-1: Wilson", num_videos, share, accuracy_interval)


def bootstraps_of_accuracies() -> Iterator[Case]:
    for share in (0.9, 0.99):
        yield _of_proportion("top-1: bootstrap, for comparison", 160, share, _plain_bootstrap)


def _of_proportion(what: str, videos: int, share: float, interval: Callable[[np.ndarray], Interval]) -> Case:
    return Case(what, f"{videos} videos, {100 * share:g} %", share, lambda g: interval(g.random(videos) < share))


def means_of_classes() -> Iterator[Case]:
    for name, of_classes in (("mean of classes", _of_accuracies), ("macro F1", _of_f1)):
        for counts in (EVEN, UNEVEN):
            for share in (0.5, 0.9, 0.99, 1.0):
                where = f"{'even' if counts == EVEN else 'uneven'} classes, {100 * share:g} %"
                yield of_classes(f"{name}: bootstrap or Wilson", where, counts, share)
    single = "100 classes of one video, 90 %"
    yield _of_accuracies("mean of classes: bootstrap or Wilson", single, SINGLE, 0.9)
    plain = "mean of classes: bootstrap, for comparison"
    for share in (0.9, 0.99):
        yield _of_accuracies(plain, f"uneven classes, {100 * share:g} %", UNEVEN, share, _plain_class_bootstrap)
    yield _of_accuracies(plain, single, SINGLE, 0.9, _plain_class_bootstrap)


def _of_accuracies(
    what: str,
    where: str,
    counts: tuple[int, ...],
    share: float,
    interval: Callable[[np.ndarray, np.ndarray], Interval] = class_accuracy_interval,
) -> Case:
    targets = np.repeat(np.arange(len(counts)), counts)
    return Case(what, where, share, lambda g: interval(g.random(len(targets)) < share, targets))


def _of_f1(what: str, where: str, counts: tuple[int, ...], share: float) -> Case:
    targets, truth = np.repeat(np.arange(4), counts), population_f1(np.array(counts), share)
    return Case(what, where, truth, lambda g: f1_interval(guessed(g, targets, share), targets))


def precisions() -> Iterator[Case]:
    """The mAP of short lists is higher than that of long ones, so each is held against lists of its own length too."""
    for videos, classes, positive, gap in ((160, 4, 0.2, 1.0), (160, 4, 0.2, 3.0), (100, 20, 0.05, 1.5)):
        shape = (videos, classes, positive, gap)
        rng = np.random.default_rng(1)
        alike = float(np.mean([metrics.mean_average_precision(*multi_label(rng, *shape)) for _ in range(1000)]))
        endless = metrics.mean_average_precision(*multi_label(rng, 100_000, *shape[1:]))
        for length, truth in (("as many", alike), ("endlessly many", endless)):
            where = f"{videos} videos, {classes} classes of {100 * positive:g} %; {100 * truth:.1f} % of {length}"
            yield Case("mAP: bootstrap", where, truth, partial(_of_labels, shape))


def _of_labels(shape: tuple[int, int, float, float], g: np.random.Generator) -> Interval:
    return map_interval(*multi_label(g, *shape))


def differences() -> Iterator[Case]:
    shares = ((0.05, 0.05), (0.15, 0.05), (0.01, 0.0), (0.02, 0.0), (0.5, 0.05))
    for num_videos in (160, 432):
        for gained, lost in shares:
            yield _of_change("difference in top-1: Tango", num_videos, gained, lost, accuracy_difference_interval)
    yield _of_change("difference in top-1: bootstrap, for comparison", 160, 0.02, 0.0, _plain_bootstrap)
    targets = np.repeat(np.arange(4), UNEVEN)
    for gained, lost in shares:
        yield _of_change(
            *("difference in mean of classes: bootstrap or Tango", 160, gained, lost),
            *(lambda one: class_accuracy_difference_interval(one, targets), "in uneven classes, "),
        )
    yield _of_precisions()
    for seeds, videos, deviations in SEEDS_AND_VIDEOS:
        draw = partial(seeds_and_videos, seeds=seeds, videos=videos, deviations=deviations)
        yield _of_means(_described(seeds, videos, deviations), draw)


def _of_means(where: str, draw: Callable[[np.random.Generator], np.ndarray]) -> Case:
    return Case("difference over seeds and videos: t", where, 0.1, lambda g: _of_mean(0.1 + draw(g)))


def _of_change(
    what: str, videos: int, gained: float, lost: float, interval: Callable[[np.ndarray], Interval], where: str = ""
) -> Case:
    where = f"{videos} videos, {where}gained {100 * gained:g} %, lost {100 * lost:g} %"
    return Case(what, where, gained - lost, lambda g: interval(changes(g, videos, gained, lost)))


def _of_precisions() -> Case:
    """Two runs whose scores share half their variance; the truth is of lists of their length."""

    def drawn(rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
        shared, targets = multi_label(rng, 160, 4, 0.2, 0.0)
        gaps = (1.0, 1.5)
        return [(shared + rng.normal(size=shared.shape)) / 2**0.5 + gap * targets for gap in gaps], targets

    def difference(pair: Sequence[np.ndarray], targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
        before, after = (metrics.map_of_draws(one, targets, weights) for one in pair)
        return after - before

    def interval(rng: np.random.Generator) -> Interval:
        pair, targets = drawn(rng)
        return map_difference_interval(lambda weights: difference(pair, targets, weights), targets)

    rng = np.random.default_rng(1)
    truth = float(np.mean([difference(*drawn(rng), np.ones((1, 160))) for _ in range(1000)]))
    where = f"160 videos, 4 classes of 20 %; {100 * truth:.1f} points of as many"
    return Case("difference in mAP: bootstrap", where, truth, interval)


def _described(seeds: int, videos: int, deviations: tuple[float, ...]) -> str:
    return f"{seeds} seeds, {videos} videos, deviations {deviations[0]} of seeds, {deviations[1]} of videos"


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
        drawn = (seeds_and_videos(rng, num_seeds, 160, (0.05 * (num_seeds > 1), 0.2, 0.4)) for _ in range(1 + NUM_ROWS))
        base, *rows = ((one > 0).astype(float) for one in drawn)  # half the videos are right
        p = [interval_and_p(row - base)[2] for row in rows]
        found.append((p[0] < 0.05, min(p) < 0.05, min(holm(p)) < 0.05))
    of_row, of_some, by_holm = np.mean(found, axis=0).tolist()
    return of_row, of_some, by_holm


def power_at_detectable(
    repeats: int, num_seeds: int, num_videos: int = 1, deviations: tuple[float, ...] = (1, 0, 0), seed: int = 0
) -> float:
    """Returns how often the paired test over seeds and videos finds a true difference of the detectable size."""
    of_seeds, of_videos, residual = deviations
    parts = [(num_videos * of_seeds**2 + residual**2, num_seeds - 1),
             (num_seeds * of_videos**2 + residual**2, num_videos - 1),
             (residual**2, (num_seeds - 1) * (num_videos - 1))]  # fmt: skip
    total = parts[0][0] + parts[1][0] - parts[2][0]
    degrees = total**2 / sum(square**2 / freedom for square, freedom in parts if freedom)
    truth = (total / num_seeds / num_videos) ** 0.5 * detectable_errors(degrees)
    rng = np.random.default_rng(seed)
    drawn = (seeds_and_videos(rng, num_seeds, num_videos, deviations) for _ in range(repeats))
    return float(np.mean([mean_and_interval(truth + one)[2] < 0.05 for one in drawn]))


def mcnemar_finds(repeats: int, num_videos: int, changed: float, detectable: bool, seed: int = 0) -> float:
    """Returns how often McNemar's exact p is below 0.05, where as many videos are gained as lost or, if `detectable`,
    where the difference has the detectable size.
    """
    truth = 0.0
    for _ in range(50 * detectable):  # the spread depends on the difference
        truth = ((changed - truth**2) / num_videos) ** 0.5 * detectable_errors(num_videos - 1)
    rng, found = np.random.default_rng(seed), 0
    for _ in range(repeats):
        outcomes = changes(rng, num_videos, (changed + truth) / 2, (changed - truth) / 2)
        found += mcnemar_p((int((outcomes < 0).sum()), int((outcomes > 0).sum()))) < 0.05
    return found / repeats


def tests(repeats: int) -> Iterator[tuple[str, str]]:
    """Returns the lines of the second table: what is asked, and the percentage."""
    for num_seeds in (1, 3, 5):
        names = "a row has", f"some of {NUM_ROWS} rows have", f"some of {NUM_ROWS} rows have, by Holm,"
        for name, share in zip(names, false_alarms(repeats, num_seeds), strict=True):
            yield f"{name} p < 0.05 without a difference, {num_seeds} seed{'s' * (num_seeds > 1)}", f"{100 * share:.1f}"
    for detectable in (False, True):
        for num_videos in (160, 432):
            for changed in (0.05, 0.3):
                share = mcnemar_finds(repeats, num_videos, changed, detectable)
                what = "at the detectable difference" if detectable else "without a difference"
                yield (
                    f"McNemar's p < 0.05 {what}, {num_videos} videos, {100 * changed:g} % changed",
                    f"{100 * share:.1f}",
                )
    for num_seeds in (3, 5, 20):
        share = power_at_detectable(repeats, num_seeds)
        yield f"a row has p < 0.05 at the detectable difference, {num_seeds} seeds without videos", f"{100 * share:.1f}"
    for seeds, videos, deviations in SEEDS_AND_VIDEOS:
        share = power_at_detectable(repeats, seeds, videos, deviations)
        yield f"the same, {_described(seeds, videos, deviations)}", f"{100 * share:.1f}"


def guessed(rng: np.random.Generator, targets: np.ndarray, share: float) -> np.ndarray:
    """Returns scores (V, 4) whose best class is the target with this probability, else any other."""
    others = (targets + rng.integers(1, 4, len(targets))) % 4
    return np.eye(4)[np.where(rng.random(len(targets)) < share, targets, others)]


def population_f1(counts: np.ndarray, share: float) -> float:
    """Returns the macro F1 of what `guessed` draws, for infinitely many videos in the proportions of (K,) counts."""
    hits = counts * share
    guesses = hits + (counts.sum() - counts) * (1 - share) / (len(counts) - 1)
    return float(np.mean(2 * hits / (guesses + counts)))


def multi_label(
    rng: np.random.Generator, num_videos: int, num_classes: int, positive: float, gap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores (V, K), normal and `gap` higher where the video has the class, and targets (V, K).

    Args:
        positive: share of the videos that have a class.
    """
    targets = rng.random((num_videos, num_classes)) < positive
    return rng.normal(size=targets.shape) + gap * targets, targets


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


def _plain_class_bootstrap(right: np.ndarray, targets: np.ndarray) -> Interval:
    num_classes = targets.max() + 1
    return bootstrap(
        lambda w: metrics.mean_of_defined(metrics.weighted_class_accuracies(right, targets, num_classes, w)), len(right)
    )


def _of_mean(values: np.ndarray) -> Interval:
    mean, half, _ = mean_and_interval(values)
    return Interval(mean - half, mean + half, "t")


def row(case: Case, repeats: int) -> tuple[str, str, str, str]:
    share, width = coverage(case, repeats if "bootstrap" in case.what else QUICK * repeats)
    return case.what, case.population, f"{100 * share:.1f}", f"{100 * width:.2f}"


def print_table(columns: list[str], rows: list[tuple[str, ...]]) -> None:
    print(tabulate(rows, columns, "pipe", disable_numparse=True), end="\n\n", flush=True)  # 100.0 stays 100.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats",
        type=int,
        default=400,
        metavar="N",
        help="of each bootstrap's line, of the others 20 times as many (400)",
    )
    repeats = parser.parse_args().repeats
    first = (*accuracies(), *bootstraps_of_accuracies(), *means_of_classes(), *precisions())
    for cases in (first, tuple(differences())):
        rows: list[tuple[str, ...]] = [row(case, repeats) for case in cases]
        print_table(["interval", "population", "covered, %", "mean width, points"], rows)
    print_table(["what", "of the repetitions, %"], list(tests(QUICK * repeats)))


if __name__ == "__main__":
    main()
