"""Intervals of one evaluation and of the difference of two."""

import numpy as np
import pytest

from nlvideo.evaluation import metrics
from nlvideo.evaluation.class_metrics import f1_interval
from nlvideo.evaluation.intervals import (
    AGREEING,
    BOOTSTRAP,
    WILSON,
    accuracy_difference_interval,
    accuracy_interval,
    bootstrap,
    class_accuracy_difference_interval,
    class_accuracy_interval,
    describe,
    even_videos,
    map_interval,
    wilson,
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
    assert low < np.mean([right[targets == k].mean() for k in range(4)]) < high and kind == BOOTSTRAP
    many = generator.random((60, 5)) < 0.3
    scores = generator.random((60, 5)) + 0.3 * many
    low, high, kind = map_interval(scores, many)
    assert low < metrics.mean_average_precision(scores, many) < high and kind == BOOTSTRAP


def test_where_all_resamples_agree_wilsons_on_the_pooled_videos_says_so():
    targets = np.arange(160) % 4
    scores = np.eye(4)[targets]
    expected = wilson(160, 160)._replace(kind=AGREEING)
    assert expected.ends == pytest.approx((0.97655, 1), abs=1e-5)
    assert class_accuracy_interval(np.full(160, True), targets) == expected
    assert f1_interval(scores, targets) == expected == map_interval(scores, scores > 0)
    assert class_accuracy_interval(np.full(160, False), targets).ends == wilson(0, 160).ends
    # one of two classes always right, the other never: every resample has 50 %
    assert class_accuracy_interval(targets < 1, np.minimum(targets, 1)).kind == AGREEING
    # a class of two videos weighs as much as one of 158, so the pooled videos are worth fewer
    assert class_accuracy_interval(np.full(160, True), (np.arange(160) < 2).astype(int)).ends == wilson(7, 7).ends


def test_uneven_classes_are_worth_the_even_ones_with_the_same_variance():
    assert even_videos(np.array([40, 40, 0, 40])) == 120
    assert even_videos(np.array([3] * 49)) == 147  # whose float sum is below it
    assert even_videos(np.array([1000, 1])) == 3


def test_differences_without_a_changed_video_have_a_width():
    none = np.zeros(160)
    upper = wilson(0, 160).high
    assert accuracy_difference_interval(none) == (-upper, upper, AGREEING)
    targets = np.arange(160) % 4
    assert class_accuracy_difference_interval(none, targets) == (-upper, upper, AGREEING)
    gained = accuracy_difference_interval(none + 1)
    assert gained == (pytest.approx(1 - 2 * upper), 1, AGREEING)
    assert accuracy_difference_interval(none - 1).ends == (-1, -gained.low)
    one = none.copy()
    one[0] = 1
    assert accuracy_difference_interval(one).kind == BOOTSTRAP


def test_a_sentence_says_what_the_kinds_are():
    assert describe({BOOTSTRAP, WILSON}) == (
        "95 %; Wilson: score interval of a proportion of videos; "
        "bootstrap: percentiles over 2000 resamples of the videos"
    )
