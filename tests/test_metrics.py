import numpy as np
import pytest

from nlvideo.metrics import mean_class_accuracy, target_ranks, topk_accuracy

SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2]])
TARGETS = np.array([1, 2, 1, 1])


def test_ranks_count_the_classes_before_the_target():
    assert target_ranks(SCORES, TARGETS).tolist() == [0, 2, 1, 1]


def test_equal_scores_stand_in_the_order_of_the_classes():
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
    import torch

    generator = np.random.default_rng(0)
    scores, targets = generator.random((200, 30)), generator.integers(0, 30, 200)
    best = torch.from_numpy(scores).topk(5).indices.numpy()
    assert topk_accuracy(target_ranks(scores, targets), 5) == np.mean((best == targets[:, None]).any(1))
