"""Intervals of one evaluation and of the difference of two."""

import numpy as np
import pytest
from scipy import optimize

from nlvideo.evaluation import metrics
from nlvideo.evaluation.class_metrics import f1_interval
from nlvideo.evaluation.intervals import (
    AGREES,
    BOOTSTRAP,
    TANGO,
    WILSON,
    accuracy_difference_interval,
    accuracy_interval,
    bootstrap,
    class_accuracy_difference_interval,
    class_accuracy_interval,
    describe,
    even_videos,
    map_difference_interval,
    map_interval,
    tango,
    wilson,
    wilson_of_share,
)


@pytest.mark.parametrize(
    ("right", "videos", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, Table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_accuracies_have_the_published_intervals_of_wilson(right, videos, low, high):
    found = accuracy_interval(np.arange(videos) < right)
    assert found.ends == pytest.approx((low, high), abs=5e-5) and found.kind == WILSON


def test_bootstraps_match_the_normal_approximation():
    generator = np.random.default_rng(0)
    right = generator.random(400) < 0.7
    low, high, kind = bootstrap(lambda w: w @ right / 400, 400)
    deviation = np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert low == pytest.approx(right.mean() - 1.96 * deviation, abs=0.006)
    assert high == pytest.approx(right.mean() + 1.96 * deviation, abs=0.006)
    assert bootstrap(lambda w: w @ right / 400, 400) == (low, high, kind)  # same draws in every call
    targets = generator.integers(4, size=400)
    low, high, kind = class_accuracy_interval(right, targets)
    assert low < np.mean([right[targets == k].mean() for k in range(4)]) < high and kind.startswith(BOOTSTRAP)
    many = generator.random((60, 5)) < 0.3
    scores = generator.random((60, 5)) + 0.3 * many
    low, high, kind = map_interval(scores, many)
    assert low < metrics.mean_average_precision(scores, many) < high and kind == BOOTSTRAP


def test_where_all_resamples_agree_wilsons_on_the_pooled_videos_says_so():
    targets = np.arange(160) % 4
    scores = np.eye(4)[targets]
    expected = wilson(160, 160)._replace(kind=WILSON + AGREES)
    assert expected.ends == pytest.approx((0.97655, 1), abs=1e-5)
    assert class_accuracy_interval(np.full(160, True), targets) == expected
    assert f1_interval(scores, targets) == expected == map_interval(scores, scores > 0)
    assert class_accuracy_interval(np.full(160, False), targets).ends == wilson(0, 160).ends
    # one of two classes always right, the other never: every resample has 50 %
    assert class_accuracy_interval(targets < 1, np.minimum(targets, 1)).kind == WILSON + AGREES
    # a class of two videos weighs as much as one of 158, so the pooled videos are worth fewer
    assert class_accuracy_interval(np.full(160, True), (np.arange(160) < 2).astype(int)).ends == wilson(7, 7).ends


def test_uneven_classes_are_worth_the_even_ones_with_the_same_variance():
    assert even_videos(np.array([40, 40, 0, 40])) == 120
    assert even_videos(np.array([3] * 49)) == 147  # whose float sum is below it
    assert even_videos(np.array([1000, 1])) == 3


def test_a_class_of_few_videos_widens_what_its_resamples_leave():
    """The bootstrap cannot draw a mistake in a class of five videos that were all right; Wilson's knows how few."""
    targets = np.repeat(np.arange(4), (100, 40, 15, 5))
    right = np.arange(160) > 9
    low, high, kind = class_accuracy_interval(right, targets)
    videos = even_videos(np.bincount(targets))
    drawn = bootstrap(lambda w: (w * right)[:, :100].sum(1) / w[:, :100].sum(1) / 4 + 0.75, 160)
    assert videos == 53 and low == wilson(51, videos).low < drawn.low - 0.05  # 51 is the whole number below 97.5 %
    assert high == wilson(52, videos).high > drawn.high and kind == "bootstrap or Wilson"
    scores = np.eye(4)[np.where(right, targets, (targets + 1) % 4)]
    low, _, kind = f1_interval(scores, targets)
    assert low == wilson(50, videos).low and kind == "bootstrap or Wilson"


def test_shares_between_whole_numbers_reach_as_far_as_both():
    assert wilson_of_share(0.5, 3).ends == (wilson(1, 3).low, wilson(2, 3).high)
    assert wilson_of_share(0.1 + 0.2, 10) == wilson(3, 10)  # but not where rounding set them there


@pytest.mark.parametrize(("gained", "lost", "videos"), [(4, 0, 160), (40, 20, 160), (3, 12, 60)])
def test_tangos_ends_are_where_the_score_test_rejects(gained, lost, videos):
    """At each end, the distance is 1.96 deviations at the likeliest shares that have this difference."""

    def unlikelihood(losing: float, difference: float) -> float:
        shares = losing + difference, losing, 1 - difference - 2 * losing
        counts = gained, lost, videos - gained - lost
        return -sum(count * np.log(share) for count, share in zip(counts, shares, strict=True) if count)

    for end in tango(gained, lost, videos).ends:
        bounds = max(0, -end) + 1e-12, (1 - end) / 2 - 1e-12
        found = optimize.minimize_scalar(
            unlikelihood, bounds, args=(end,), bounds=bounds, method="bounded", options={"xatol": 1e-12}
        )
        deviation = (videos * (2 * found.x + end * (1 - end))) ** 0.5
        assert abs(gained - lost - videos * end) / deviation == pytest.approx(1.959964, abs=1e-4)


def test_differences_without_a_changed_video_have_a_width():
    none = np.zeros(160)
    upper = wilson(0, 160).high
    assert accuracy_difference_interval(none) == (pytest.approx(-upper), pytest.approx(upper), TANGO)
    targets = np.arange(160) % 4
    assert class_accuracy_difference_interval(none, targets) == (
        pytest.approx(-upper),
        pytest.approx(upper),
        TANGO + AGREES,
    )
    gained = accuracy_difference_interval(none + 1)
    assert gained == (pytest.approx(1 - 2 * upper), 1, TANGO)
    assert accuracy_difference_interval(none - 1).ends == (-1, pytest.approx(-gained.low))
    assert accuracy_difference_interval(none[:1]).ends == pytest.approx((-wilson(0, 1).high, wilson(0, 1).high))
    many = np.eye(4, dtype=bool)[targets]
    found = map_difference_interval(lambda weights: 0 * weights[:, 0], many)
    assert found == (pytest.approx(-upper), pytest.approx(upper), TANGO + AGREES)


def test_one_gained_video_does_not_rule_a_loss_out():
    """The bootstrap of one gained video among 160 has no draw below zero."""
    one = np.eye(1, 160)[0]
    low, high, kind = accuracy_difference_interval(one)
    assert bootstrap(lambda w: w @ one / 160, 160).low == 0 > low > -0.02 and 0.03 < high < 0.04 and kind == TANGO
    low, _, kind = class_accuracy_difference_interval(one, np.repeat(np.arange(4), (100, 40, 15, 5)))
    assert low < -0.04 and kind == "bootstrap or Tango"


def test_a_sentence_says_what_the_kinds_are():
    assert describe({BOOTSTRAP, WILSON}) == (
        "95 %; Wilson: score interval of a proportion of videos; "
        "bootstrap: percentiles over 2000 resamples of the videos"
    )
