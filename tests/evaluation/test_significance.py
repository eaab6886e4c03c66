"""Intervals over seeds and videos, Holm's p, and what so many seeds and videos can show."""

import math

import numpy as np
import pytest
from scipy import stats

from nlvideo.evaluation.intervals import accuracy_difference_interval, wilson
from nlvideo.evaluation.significance import (
    detectable_difference,
    detectable_errors,
    holm,
    interval_and_p,
    mean_and_interval,
)


def test_one_seed_or_one_value_per_seed_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    for differences in (rng.normal(0.2, 1, (1, 50)), rng.normal(0.2, 1, (5, 1))):
        mean, half, p = mean_and_interval(differences)
        theirs = stats.ttest_1samp(differences.ravel(), 0)
        assert p == pytest.approx(theirs.pvalue) and mean == pytest.approx(differences.mean())
        assert mean - half == pytest.approx(theirs.confidence_interval(0.95).low)
    assert np.isnan(mean_and_interval(np.array([[0.5]]))[1:]).all()


def test_equal_differences_of_videos_have_a_width_and_of_seeds_no_interval():
    upper = wilson(0, 20).high
    assert mean_and_interval(np.zeros((3, 20))) == (0, upper, 1)
    assert mean_and_interval(np.ones((3, 20))) == (1, 2 * upper, pytest.approx(2 * 0.5**20))  # McNemar's p
    assert np.isnan(mean_and_interval(np.full((3, 1), 0.25))[1:]).all()
    # 0.1 and its mean of three differ in the last digit
    for equal in (np.full((3, 1), 0.1), (np.array([[60.0], [70.1], [65.3]]) - [[50], [60.1], [55.3]]) / 100):
        assert np.isnan(mean_and_interval(equal)[1:]).all() and math.isnan(detectable_difference(equal))


def test_one_seed_is_compared_as_two_evaluations_are():
    outcomes = np.repeat([1.0, 0], [4, 156])
    low, high, p = interval_and_p(outcomes[None])
    assert (low, high) == accuracy_difference_interval(outcomes).ends and p == 0.125  # 2 / 2^4; a t-test says 0.045
    several = np.random.default_rng(0).integers(-1, 2, (3, 40)).astype(float)
    mean, half, p = mean_and_interval(several)
    assert interval_and_p(several) == (mean - half, mean + half, p)
    assert interval_and_p(np.ones((3, 20)))[1] == 1 and np.isnan(interval_and_p(np.full((3, 1), 0.25))).all()
    assert interval_and_p(np.array([[0.5], [0.9]]))[:2] == (-1, 1)  # t reaches past what a difference can be


def test_adjusted_p_are_those_computed_by_hand():
    # in order 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04, which 0.06 before it raises
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1, 1] and holm([0.2]) == [0.2] and holm([]) == []
    found = holm([float("nan"), 0.02, 0.03])  # a row without a test is none of the comparisons
    assert math.isnan(found[0]) and found[1:] == pytest.approx([0.04, 0.04])


@pytest.mark.parametrize(
    ("degrees", "effect", "power"),
    # paired t-tests with n = degrees + 1 and a difference of `effect` deviations; n = 34 is the number that tables give
    # for 0.5 deviations at 80 %, with a power of 0.8078
    [(33, 0.5, 0.8078), (32, 0.5, 0.7953)],
)
def test_the_detectable_difference_is_that_of_published_tables(degrees, effect, power):
    errors = effect * (degrees + 1) ** 0.5
    assert (detectable_errors(degrees) < errors) == (power > 0.8)
    assert detectable_errors(degrees) == pytest.approx(errors, rel=0.01)


@pytest.mark.parametrize("degrees", [0.7, 1.5, 2, 4, 400])
def test_the_power_is_the_noncentral_ts_where_scipy_can_compute_it(degrees):
    critical, errors = stats.t.ppf(0.975, degrees), detectable_errors(degrees)
    power = stats.nct.sf(critical, degrees, errors) + stats.nct.cdf(-critical, degrees, errors)
    assert power == pytest.approx(0.8, abs=1e-4)


def test_what_does_not_vary_has_no_detectable_difference():
    assert math.isnan(detectable_difference(np.zeros((3, 20)))) and math.isnan(detectable_difference(np.ones((1, 1))))
    one_seed = np.random.default_rng(0).integers(-1, 2, (1, 100)).astype(float)
    expected = detectable_errors(99) * one_seed.std(ddof=1) / 10
    assert detectable_difference(one_seed) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("seeds", "videos", "over_seeds", "over_videos", "residual"),
    [(3, 160, 0.02, 0.2, 0.5), (3, 160, 0.1, 0.2, 0.5), (5, 300, 0.0, 0.3, 0.3), (3, 200, 0.3, 0.1, 0.5)],
)
def test_intervals_cover_the_truth_at_their_confidence_level(seeds, videos, over_seeds, over_videos, residual):
    rng, covered, repeats = np.random.default_rng(1), 0, 600
    for _ in range(repeats):
        drawn = rng.normal(0, over_seeds, (seeds, 1)) + rng.normal(0, over_videos, (1, videos))
        mean, half, p = mean_and_interval(0.1 + drawn + rng.normal(0, residual, (seeds, videos)))
        covered += abs(mean - 0.1) <= half
    assert 0.91 < covered / repeats < 0.985
