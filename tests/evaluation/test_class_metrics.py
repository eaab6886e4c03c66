"""Precision, recall and F1, against scikit-learn's own words for the same decisions."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_recall_fscore_support

from nlvideo.evaluation.class_metrics import class_metrics, decisions, f1_interval, f1_of_draws
from nlvideo.evaluation.metrics import best_classes, mean_class_accuracy, target_ranks
from nlvideo.evaluation.result_files import class_rows, print_table

NAMES = ("precision", "recall", "f1")


def single_label(videos=200, classes=7):
    """Scores with many ties and undecodable videos; class 5 is never predicted, class 6 has no videos."""
    generator = np.random.default_rng(0)
    scores = generator.integers(4, size=(videos, classes)).astype(np.float32)
    scores[:, 5] = -1
    scores[generator.random(videos) < 0.1] = np.nan
    return scores, generator.integers(classes - 1, size=videos)


def multi_label(videos=200, classes=7):
    scores, _ = single_label(videos, classes)
    targets = np.random.default_rng(1).random((videos, classes)) < 0.3
    targets[:20] = targets[:, 6] = False  # videos without actions, a class without videos
    return scores / 4, targets


def test_single_label_metrics_are_scikit_learns():
    scores, targets = single_label()
    undecodable = np.isnan(scores).any(1)
    best = np.where(undecodable, -1, np.nan_to_num(scores).argmax(1))
    assert undecodable.any() and (best == 6).any() and not (best == 5).any()
    found = class_metrics(scores, targets)
    expected = precision_recall_fscore_support(targets, best, labels=range(7), zero_division=np.nan)
    np.testing.assert_array_equal(found.precision, expected[0])
    np.testing.assert_array_equal(found.recall, expected[1])
    np.testing.assert_array_equal(found.f1[:6], expected[2][:6])
    assert np.isnan(found.precision[5]) and found.precision[6] == 0 and found.f1[5] == 0
    assert np.isnan(found.recall[6]) and np.isnan(found.f1[6]) and found.videos.tolist() == expected[3].tolist()
    for kind in ("macro", "weighted"):
        of_kind = precision_recall_fscore_support(targets, best, labels=range(6), average=kind, zero_division=0)
        assert [found.means()[f"{name}_{kind}"] for name in NAMES] == pytest.approx(of_kind[:3], abs=1e-12)


def test_balanced_accuracy_is_the_mean_of_classes_and_the_macro_recall():
    scores, targets = single_label()
    right = ~np.isnan(scores).any(1)
    for kept in (right, np.ones(len(right), bool)):
        s, t = scores[kept], targets[kept]
        mean = mean_class_accuracy(target_ranks(s, t), t)
        with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):  # 6, and -1
            assert balanced_accuracy_score(t, best_classes(s)) == pytest.approx(mean, abs=1e-12)
        assert class_metrics(s, t).means()["recall_macro"] == pytest.approx(mean, abs=1e-12)


def test_an_undecodable_video_lowers_the_recall_of_its_class_alone():
    scores, targets = np.eye(3)[[0, 0, 1, 2]], np.array([0, 0, 1, 2])
    scores[1] = np.nan
    found = class_metrics(scores, targets)
    assert found.precision.tolist() == [1, 1, 1] and found.recall.tolist() == [0.5, 1, 1]


def test_equal_scores_are_decided_by_class_order_as_ranks_are():
    scores, targets = single_label()
    np.testing.assert_array_equal(best_classes(scores) == targets, target_ranks(scores, targets) == 0)


def test_multi_label_metrics_are_scikit_learns_at_the_threshold():
    scores, targets = multi_label()
    assert (scores == 0.5).any()  # not above it
    found = class_metrics(scores, targets)
    predicted = np.nan_to_num(scores) > 0.5
    assert predicted[~targets.any(1)].any()  # false positives of videos without actions
    expected = precision_recall_fscore_support(targets, predicted, zero_division=0)
    for name, values in zip(NAMES, expected, strict=False):
        np.testing.assert_array_equal(np.nan_to_num(getattr(found, name)), values)
    for kind in ("macro", "weighted"):
        of_kind = precision_recall_fscore_support(targets, predicted, labels=range(6), average=kind, zero_division=0)
        assert [found.means()[f"{name}_{kind}"] for name in NAMES] == pytest.approx(of_kind[:3], abs=1e-12)


@pytest.mark.parametrize("made", [single_label, multi_label])
def test_draws_are_scikit_learns_sample_weights(made):
    scores, targets = made()
    weights = np.random.default_rng(2).multinomial(20, np.full(len(scores), 1 / len(scores)), 30).astype(float)
    predicted, true = decisions(scores, targets)
    found = f1_of_draws(predicted, true, weights)
    for value, drawn in zip(found, weights, strict=True):
        labels = np.flatnonzero(drawn @ true)
        of_class = f1_score(true, predicted, average=None, sample_weight=drawn, zero_division=0)
        assert value == pytest.approx(of_class[labels].mean(), abs=1e-12)
    low, high, kind = f1_interval(scores, targets)
    assert low < class_metrics(scores, targets).means()["f1_macro"] < high


def test_one_class_and_no_actions():
    one = class_metrics(np.array([[0.9], [0.2], [0.8]]), np.array([[True], [True], [False]]))
    assert (one.precision.tolist(), one.recall.tolist(), one.f1.tolist()) == ([0.5], [0.5], [0.5])
    assert class_metrics(np.ones((2, 1)), np.array([0, 0])).f1.tolist() == [1]
    nothing = class_metrics(np.array([[0.9, 0.1]]), np.zeros((1, 2), bool))
    assert set(nothing.means().values()) == {None} and nothing.precision[0] == 0


def test_rows_of_classes_have_the_columns_that_they_had_first():
    rows = class_rows("abcdefg", *single_label())
    assert list(rows[0]) == ["class", "videos", "accuracy", *NAMES]
    assert rows[0]["accuracy"] == rows[0]["recall"]
    assert rows[5]["precision"] is None and rows[5]["f1"] == 0
    assert rows[6] == {"class": "g", "videos": 0, "accuracy": None, "precision": 0, "recall": None, "f1": None}
    assert list(class_rows("abcdefg", *multi_label())[0]) == ["class", "videos", "average precision", *NAMES]


def test_the_table_shows_what_a_result_has(tmp_path, capsys):
    result = {"views": {"num_clips": 1, "num_crops": 1}, "num_videos": 5, "num_undecodable": 0, "undecodable": []}
    result |= {"interval": "95 %", "checkpoint": "x", "step": 1, "top1": 0.5, "mean_class_accuracy": 0.4}
    print_table(result, tmp_path)
    old = capsys.readouterr().out
    assert "mean of classes (balanced accuracy)" in old and "F1" not in old and "ECE" not in old
    print_table(result | {"f1_macro": 0.345, "f1_macro_interval": [0.3, 0.4], "ece": 0.0123}, tmp_path)
    new = capsys.readouterr().out
    assert "34.50" in new and "30.00 to 40.00" in new and "1.23" in new
    print_table(result | {"ece": None}, tmp_path)  # pooled by sum or max
    assert "ECE" not in capsys.readouterr().out
