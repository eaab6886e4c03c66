"""The times of a stream's frames, and which frames are taken by time."""

import pytest

from nlvideo.data.streams.stream_times import FrameRate, StreamTimes, TimedFrame


def test_stated_times_count_where_they_rise():
    times = StreamTimes()
    assert times.seconds(1000.0, 50.0) == 0
    assert times.seconds(1000.04, 50.0) == pytest.approx(0.04)  # a burst: they arrive together
    assert times.seconds(1000.08, 50.0) == pytest.approx(0.08)


@pytest.mark.parametrize("stated", [None, 900.0, 1000.0, 99999.0])
def test_otherwise_arrival_counts(stated):
    times = StreamTimes()
    times.seconds(1000.0, 50.0)
    assert times.seconds(stated, 53.0) == 3
    following = None if stated is None else stated + 0.5
    assert times.seconds(following, 53.1) == pytest.approx(3.1 if stated is None else 3.5)


def test_times_never_fall_and_go_on_over_a_cut():
    times = StreamTimes()
    times.seconds(0.0, 50.0)
    assert times.seconds(9.0, 50.1) == 9
    assert times.seconds(None, 51.0) == 9
    times.restart()
    assert times.seconds(3.0, 70.0) == 20
    assert times.seconds(3.5, 70.1) == 20.5


def taken(clip_fps, times):
    rate, found = FrameRate(clip_fps), []
    for number, seconds in enumerate(times):
        found += [(frame.frame, round(frame.seconds, 6)) for frame in rate.taken(TimedFrame(number, seconds, 0.0))]
    return found


def test_frames_by_time():
    quarter = [i / 4 for i in range(9)]
    assert taken(None, quarter) == list(enumerate(quarter))
    assert taken(2, quarter) == [(0, 0), (2, 0.5), (4, 1), (6, 1.5)]  # frame 8 is not known to be shown at 2 yet
    assert taken(8, quarter[:3]) == [(0, 0), (0, 0.125), (1, 0.25), (1, 0.375)]
    assert taken(0.05, [15.0 * i for i in range(5)]) == [(0, 0), (1, 20), (2, 40)]
    assert taken(4 / 3, quarter) == [(0, 0), (3, 0.75), (6, 1.5)]


def test_a_pause_is_not_filled():
    found = taken(2, [0.0, 0.5, 3600.2, 3600.7, 3601.2])
    assert found[:2] == [(0, 0), (1, 0.5)] and found[-2:] == [(2, 3600.2), (3, 3600.7)]
    assert len(found) == 1 + 20 + 2  # the frame before the pause is shown for LARGEST_STEP, 10 seconds
