import numpy as np
import pytest
import torch
import torch.nn.functional as F
from references import precisions_by_hand

from nlvideo.evaluation.metrics import (
    average_precisions,
    mean_class_accuracy,
    mean_cross_entropy,
    target_ranks,
    topk_accuracy,
    validation_metrics,
    weighted_average_precisions,
    without_actions_last,
)

SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2]])
TARGETS = np.array([1, 2, 1, 1])


def test_rank_is_the_number_of_classes_before_the_target():
    assert target_ranks(SCORES, TARGETS).tolist() == [0, 2, 1, 1]


def test_ties_rank_in_class_order():
    assert target_ranks(np.ones((3, 3)), np.array([0, 1, 2])).tolist() == [0, 1, 2]


def test_videos_without_scores_are_wrong_for_every_k():
    scores = np.array([[np.nan, np.nan, np.nan], [0.9, 0.1, 0.0]])
    ranks = target_ranks(scores, np.array([0, 0]))
    assert ranks.tolist() == [3, 0]
    assert topk_accuracy(ranks, 3) == 0.5


def test_accuracies():
    ranks = target_ranks(SCORES, TARGETS)
    assert topk_accuracy(ranks, 1) == 0.25 and topk_accuracy(ranks, 2) == 0.75 and topk_accuracy(ranks, 3) == 1
    assert mean_class_accuracy(ranks, TARGETS) == pytest.approx((1 / 3 + 0) / 2)  # class 1: 1 of 3, class 2: 0 of 1


def test_topk_agrees_with_torch():
    generator = np.random.default_rng(0)
    scores, targets = generator.random((200, 30)), generator.integers(0, 30, 200)
    best = torch.from_numpy(scores).topk(5).indices.numpy()
    assert topk_accuracy(target_ranks(scores, targets), 5) == np.mean((best == targets[:, None]).any(1))


def random_multi_label(seed=0, videos=60, classes=9, levels=None):
    generator = np.random.default_rng(seed)
    scores = (
        generator.random((videos, classes)) if levels is None else generator.integers(levels, size=(videos, classes))
    )
    targets = generator.random((videos, classes)) < 0.15
    targets[generator.random(videos) < 0.1] = False  # videos without actions
    targets[:, 3] = False  # a class without positives
    return scores.astype(float), targets


@pytest.mark.parametrize("levels", [None, 4], ids=["no ties", "ties"])
def test_average_precision_follows_the_charades_rules(levels):
    scores, targets = random_multi_label(levels=levels)
    found = average_precisions(scores, targets)
    np.testing.assert_allclose(found, precisions_by_hand(scores, targets), atol=1e-12)
    assert np.isnan(found[3]) and np.isfinite(np.delete(found, 3)).all()


def test_average_precision_equals_scikit_learn_without_ties():
    average_precision_score = pytest.importorskip("sklearn.metrics").average_precision_score
    scores, targets = random_multi_label(videos=500)
    for k in (0, 1, 2, 4):
        expected = average_precision_score(targets[:, k], scores[:, k])
        assert average_precisions(scores, targets)[k] == pytest.approx(expected, abs=1e-12)


def test_videos_without_actions_or_scores_rank_last():
    scores, targets = np.array([[0.9], [0.5], [0.4], [np.nan]]), np.array([[False], [True], [False], [True]])
    assert average_precisions(scores, targets)[0] == pytest.approx((1 / 2 + 2 / 4) / 2)
    official = without_actions_last(scores, targets)
    # order: 0.5 (right), then, in list order, the two without actions and the one without scores
    assert average_precisions(official, targets)[0] == pytest.approx((1 / 1 + 2 / 4) / 2)


def test_weights_are_repeated_videos():
    scores, targets = random_multi_label(levels=4)
    weights = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), 5).astype(float)
    found = weighted_average_precisions(scores, targets, weights)
    for row, weight in zip(found, weights, strict=True):
        drawn = np.repeat(np.arange(60), weight.astype(int))
        np.testing.assert_allclose(row, precisions_by_hand(scores[drawn], targets[drawn]), atol=1e-12)


def test_losses_are_torchs_over_the_videos_with_logits():
    generator = np.random.default_rng(0)
    logits = (30 * generator.normal(size=(50, 6))).astype(np.float32)
    logits[:5] = np.nan
    one, several = generator.integers(6, size=50), generator.random((50, 6)) < 0.3
    known = torch.from_numpy(logits[5:]).double()
    expected = F.cross_entropy(known, torch.from_numpy(one[5:])).item()
    assert mean_cross_entropy(logits, one) == pytest.approx(expected, rel=1e-12)
    expected = F.binary_cross_entropy_with_logits(known, torch.from_numpy(several[5:]).double()).item()
    assert mean_cross_entropy(logits, several) == pytest.approx(expected, rel=1e-12)
    assert np.isnan(mean_cross_entropy(logits[:5], one[:5]))


def test_validations_measure_accuracies_or_map_and_the_loss():
    scores = SCORES.astype(np.float32)
    found = validation_metrics(scores, TARGETS)
    assert found == {
        "top1": 0.25,
        "top5": 1,
        "mean_class_accuracy": pytest.approx(1 / 6),
        "loss": mean_cross_entropy(scores, TARGETS),
    }
    many, targets = random_multi_label()
    many[0] = np.nan
    found = validation_metrics(many, targets)
    assert list(found) == ["map", "loss"] and found["loss"] == mean_cross_entropy(many, targets)
    expected = precisions_by_hand(
        np.nan_to_num(without_actions_last(many, targets), nan=-np.inf, neginf=-np.inf), targets
    )
    assert found["map"] == pytest.approx(np.nanmean(expected))
