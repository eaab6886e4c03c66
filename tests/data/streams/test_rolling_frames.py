"""The last frames of a stream: the newest window first, and no more held."""

import threading
import weakref

import pytest
import torch

from nlvideo.data.streams.rolling_frames import RollingFrames, StreamFrame


def frame(number, size=2):
    return StreamFrame(torch.full((size, size, 3), number % 256, dtype=torch.uint8), number, number / 25, 0.0)


def numbers(window):
    return [frame.number for frame in window]


def test_the_newest_window_comes_first():
    frames = RollingFrames(4)
    for i in range(4):
        frames.put(frame(i))
    first = frames.window(None, 2)
    assert numbers(first) == [0, 1, 2, 3]
    for i in range(4, 20):
        frames.put(frame(i))
    assert numbers(frames.window(first[-1], 2)) == [16, 17, 18, 19]


@pytest.mark.parametrize(("every", "after"), [(3, 3), (0.12, 3), (1, 1), (0.001, 1), (0.2, 5)])
def test_a_window_is_waited_for(every, after):
    frames, found = RollingFrames(2), []
    frames.put(frame(0))
    frames.put(frame(1))
    last = frames.window(None, every)[-1]
    thread = threading.Thread(target=lambda: found.append(frames.window(last, every)))
    thread.start()
    for i in range(2, after + 1):
        frames.put(frame(i))
        assert thread.is_alive() and not found
    frames.put(frame(after + 1))
    thread.join(5)
    assert numbers(found[0]) == [after, after + 1]


def test_the_end_gives_what_is_due_and_then_none_or_the_error():
    for error in (None, OSError("gone")):
        frames = RollingFrames(2)
        frames.put(frame(0))
        frames.put(frame(1))
        frames.end(error)
        last = frames.window(None, 1)[-1]
        if error is None:
            assert frames.window(last, 1) is None
        else:
            with pytest.raises(OSError, match="gone"):
                frames.window(last, 1)


def test_frames_that_do_not_follow_are_no_window():
    frames = RollingFrames(3)
    for i in range(3):
        frames.put(frame(i))
    frames.clear()
    frames.put(frame(3))
    frames.put(frame(4))
    frames.put(frame(5, size=4))  # of another size
    frames.end(None)
    assert frames.window(None, 1) is None


def test_an_hour_holds_no_more_than_a_window():
    frames, alive = RollingFrames(8), weakref.WeakSet()
    most = 0
    for i in range(25 * 3600):
        put = frame(i, 1)
        alive.add(put.pixels)
        frames.put(put)
        if i % 100 == 0:
            most = max(most, len(alive))
    assert most <= 9
