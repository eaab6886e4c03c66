import json

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from nlvideo.evaluation.calibration import NUM_BINS, binned, calibration
from nlvideo.evaluation.calibration_picture import reliability_figure


def test_an_error_by_hand():
    scores = np.array([[0.9, 0.1, 0], [0.92, 0.08, 0], [0.1, 0.52, 0.38], [np.nan] * 3, [1.0000001, 0, 0]])
    found = calibration(scores, np.array([0, 1, 1, 0, 0]), "mean")
    # 0.9 and 0.92 (one of two right) are in (13/15, 14/15], 0.52 (right) in (7/15, 8/15], 1 (right) in the last
    assert found.counts.tolist() == [0] * 7 + [1] + [0] * 5 + [2, 1]
    assert found.error == pytest.approx((2 * (0.91 - 0.5) + (1 - 0.52) + 0) / 4, abs=1e-6)
    rows = found.rows()
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows and len(rows) == NUM_BINS
    assert rows[13]["count"] == 2 and rows[13]["accuracy"] == 0.5 and rows[13]["confidence"] == pytest.approx(0.91)
    assert rows[0] == {"above": 0, "up_to": 1 / 15, "count": 0, "confidence": None, "accuracy": None}


def test_bins_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    probabilities = np.concatenate([generator.random(500), np.arange(16) / 15])  # edges belong to the bin below
    came_true = generator.random(516) < probabilities
    found = binned(probabilities, came_true)
    true, said = calibration_curve(came_true, probabilities, n_bins=NUM_BINS)
    np.testing.assert_allclose(found.accuracies, true, atol=1e-12)
    np.testing.assert_allclose(found.confidences, said, atol=1e-12)
    assert found.error < 0.1 and binned(probabilities, ~came_true).error > 0.3


def test_multi_label_data_bin_every_score_of_decoded_videos():
    scores = np.array([[0.1, 0.7], [0.1, 0.3], [np.nan, np.nan]], np.float32)
    found = calibration(scores, np.array([[False, True], [False, False], [True, True]]), "mean")
    assert found.counts.sum() == 4 and found.error == pytest.approx((2 * 0.1 + 0.3 + 0.3) / 4, abs=1e-6)


@pytest.mark.parametrize("pooling", ["sum", "max"])
def test_sums_and_maxima_over_views_are_no_probabilities(pooling):
    assert calibration(np.eye(3), np.arange(3), pooling) is None


def test_nothing_is_measured_without_scores_or_actions():
    assert calibration(np.full((2, 3), np.nan), np.array([0, 1]), "mean") is None
    assert calibration(np.ones((2, 3)), np.zeros((2, 3), bool), "mean") is None


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_picture_has_a_bar_and_a_gap_for_each_filled_bin(multi_label):
    found = binned(np.array([0.5, 0.5, 0.9]), np.array([True, False, True]))
    reliability, histogram = reliability_figure(found, multi_label).axes
    accuracy, gap = reliability.containers
    assert [bar.get_height() for bar in accuracy] == [50, 100]
    assert [bar.get_height() for bar in gap] == pytest.approx([0, -10])  # underconfident: it lies on the bar
    assert [bar.get_height() for bar in histogram.patches if bar.get_height()] == [2, 1]
    assert "expected calibration error 3.33 %" in reliability.get_title()
