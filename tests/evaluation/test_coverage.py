"""Intervals hold the truth as often as they say: small runs of tools/simulate_coverage.py, whose tables are in docs."""

import functools
import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from nlvideo.evaluation import intervals
from nlvideo.evaluation.intervals import wilson


@pytest.fixture(scope="module")
def simulated():
    return runpy.run_path(str(Path(__file__).parents[2] / "tools/simulate_coverage.py"))


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 400)


@pytest.fixture(scope="module")
def cases_of(simulated):
    return functools.cache(lambda cases: tuple(simulated[cases]()))  # whose truths take seconds


def found(simulated, cases_of, cases, what, population, repeats) -> float:
    """Returns the share of intervals that hold the truth, of the case whose names begin so."""
    (case,) = (c for c in cases_of(cases) if c.what.startswith(what) and c.population.startswith(population))
    return simulated["coverage"](case, repeats)[0]


def test_wilsons_coverage_is_the_exact_sum_and_near_its_level(simulated, cases_of):
    right = np.arange(161)
    ends = np.array([wilson(int(k), 160).ends for k in right])

    def exact(share: float) -> float:
        return float(stats.binom.pmf(right, 160, share)[(ends[:, 0] <= share) & (share <= ends[:, 1])].sum())

    assert 0.945 < np.mean([exact(share) for share in np.linspace(0.005, 0.995, 199)]) < 0.96
    for share in (0.5, 0.9, 0.99):
        share_held = found(simulated, cases_of, "accuracies", "top-1: Wilson", f"160 videos, {100 * share:g} %", 500)
        assert abs(share_held - exact(share)) < 4 * (exact(share) * (1 - exact(share)) / 500) ** 0.5


@pytest.mark.usefixtures("few_resamples")
def test_near_a_perfect_score_wilsons_holds_the_truth_where_a_bootstrap_does_not(simulated, cases_of):
    # 160 of 160 come in a fifth of the draws
    assert found(simulated, cases_of, "bootstraps_of_accuracies", "top-1: bootstrap", "160 videos, 99 %", 200) < 0.85
    assert found(simulated, cases_of, "accuracies", "top-1: Wilson", "160 videos, 99 %", 200) > 0.92


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize(
    ("cases", "what", "population", "low", "high"),
    [
        ("means_of_classes", "mean of classes: bootstrap or", "even classes, 90 %", 0.90, 1),
        ("means_of_classes", "mean of classes: bootstrap or", "uneven classes, 90 %", 0.92, 1),
        ("means_of_classes", "mean of classes: bootstrap or", "uneven classes, 99 %", 0.92, 1),
        ("means_of_classes", "mean of classes: bootstrap or", "100 classes of one video", 0.88, 1),
        ("means_of_classes", "mean of classes: bootstrap, for", "uneven classes, 90 %", 0.7, 0.91),
        ("means_of_classes", "mean of classes: bootstrap or", "uneven classes, 100 %", 1, 1),
        ("means_of_classes", "macro F1", "uneven classes, 99 %", 0.92, 1),
        ("precisions", "mAP", "160 videos, 4 classes of 20 %; 48", 0.88, 0.99),
        ("precisions", "mAP", "100 videos, 20 classes of 5 %; 33", 0, 0.7),  # of endlessly many: a bias, not a spread
        ("differences", "difference in top-1: Tango", "160 videos, gained 15 %", 0.90, 0.99),
        ("differences", "difference in top-1: Tango", "160 videos, gained 2 %", 0.92, 1),
        ("differences", "difference in top-1: bootstrap", "160 videos, gained 2 %", 0.7, 0.9),
        ("differences", "difference in mean of classes", "160 videos, in uneven classes, gained 2 %", 0.92, 1),
        ("differences", "difference in mAP", "160 videos", 0.88, 0.99),
        ("differences", "difference over seeds", "3 seeds, 160 videos, deviations 0.1", 0.90, 1),
    ],
)
def test_intervals_hold_the_truth(simulated, cases_of, cases, what, population, low, high):
    assert low <= found(simulated, cases_of, cases, what, population, 150) <= high


def test_holm_keeps_the_false_alarms_of_a_table_at_their_level(simulated):
    of_row, of_some, by_holm = simulated["false_alarms"](600, num_seeds=1)
    assert 0.03 < of_row < 0.07 < of_some and 0.02 < by_holm < 0.07


def test_mcnemars_false_alarms_are_below_their_level_and_its_power_nearly_as_said(simulated):
    assert 0 < simulated["mcnemar_finds"](400, 432, 0.3, False) < 0.07
    assert 0.7 < simulated["mcnemar_finds"](400, 432, 0.3, True) < 0.83


@pytest.mark.parametrize("place", [(3,), (3, 160, (0.1, 0.2, 0.5)), (5, 432, (0.05, 0.2, 0.5))])
def test_a_difference_of_the_detectable_size_is_found_four_times_of_five(simulated, place):
    assert abs(simulated["power_at_detectable"](600, *place) - 0.79) < 3 * (0.16 / 600) ** 0.5
