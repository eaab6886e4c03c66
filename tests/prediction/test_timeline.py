import numpy as np
import pytest

from nlvideo.prediction.timeline import Stretch, Timeline, blocks_of, window_starts


def test_the_last_window_ends_with_the_video():
    assert window_starts(30, 8, 10).tolist() == [0, 10, 20, 22]
    assert window_starts(5, 8, 4).tolist() == window_starts(8, 8, 4).tolist() == [0]


def test_blocks_hold_all_windows_within_the_limit():
    starts = window_starts(100, 8, 4)
    blocks = [block.tolist() for block in blocks_of(starts, 8, 20)]
    assert sum(blocks, []) == starts.tolist() and max(b[-1] + 8 - b[0] for b in blocks) == 20
    assert [len(block) for block in blocks_of(starts, 8, 3)] == [1] * len(starts)


def test_windows_with_the_same_best_class_form_one_stretch():
    scores = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]], np.float32)
    timeline = Timeline(np.array([0, 10, 20]), 10, 30, 10.0, scores)
    assert timeline.edges().tolist() == [0, 10, 20, 30]
    first, second = timeline.stretches()
    assert first == Stretch(0, 2, 0, pytest.approx(0.8)) and second == Stretch(2, 3, 1, pytest.approx(0.8))
