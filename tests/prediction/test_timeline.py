import numpy as np
import pytest

from nlvideo.prediction.timeline import Stretch, Timeline, window_starts


def test_the_last_window_ends_with_the_video():
    assert window_starts(30, 8, 10).tolist() == [0, 10, 20, 22]
    assert window_starts(5, 8, 4).tolist() == window_starts(8, 8, 4).tolist() == [0]


def test_windows_with_the_same_best_class_form_one_stretch():
    scores = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]], np.float32)
    timeline = Timeline(np.array([0, 10, 20]), 10, 30, 10.0, scores)
    assert timeline.edges().tolist() == [0, 10, 20, 30]
    first, second = timeline.stretches()
    assert first == Stretch(0, 2, 0, pytest.approx(0.8)) and second == Stretch(2, 3, 1, pytest.approx(0.8))
