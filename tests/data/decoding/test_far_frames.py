"""Frames that lie far apart: what lies between them is not decoded."""

import numpy as np
import pytest
from videos import facts_of, plain_decode, write_video

from nlvideo.data.clips.view_sampling import view_indices
from nlvideo.data.decoding.pyav_video import SEEK_FRAMES, PyavVideo

GAP = 20  # frames from one keyframe to the next


@pytest.fixture(scope="module", params=["mp4", "mkv"])
def long(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / f"long.{request.param}"
    frames = [np.full((32, 32, 3), 7 * i % 256, np.uint8) for i in range(600)]
    return write_video(path, frames, g=str(GAP), bf="2")


def decoded_packets(path, indices, monkeypatch, facts=None):
    """Returns the frames, and how many packets were decoded for them."""
    count, packets_from = [0], PyavVideo._packets_from

    def counting(self, time):
        for packet in packets_from(self, time):
            count[0] += packet.size > 0
            yield packet

    with monkeypatch.context() as patch, PyavVideo(path, facts=facts) as video:
        patch.setattr(PyavVideo, "_packets_from", counting)
        return video.read(indices, (32, 32)).numpy(), count[0]


@pytest.mark.parametrize("known", [False, True])
def test_clips_of_a_long_video_are_decoded_from_the_keyframes_before_them(long, monkeypatch, known):
    indices = np.unique(view_indices("uniform", 5, 600, 8, 2))
    frames, packets = decoded_packets(long, indices, monkeypatch, facts_of(long) if known else None)
    expected = plain_decode(long)
    assert all(np.array_equal(frame, expected[i]) for frame, i in zip(frames, indices, strict=True))
    reordering = 4
    assert packets <= 5 * (16 + GAP + reordering)


def test_a_whole_video_is_decoded_once(long, monkeypatch):
    for every in (1, 2, SEEK_FRAMES):
        _, packets = decoded_packets(long, np.arange(0, 600, every), monkeypatch)
        assert packets <= 600
