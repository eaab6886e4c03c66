"""A video that is opened with facts is the same as without them, and only what is needed is read."""

import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import write_grey_video
from videos import facts_of, remux, write_video

from nlvideo.data.decoding.packets import Packets
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.decoding.video import DecodeError
from nlvideo.data.index.facts import HEADER, packed, unpacked
from nlvideo.data.synthetic.motions import Action, render

SHARED = Path(__file__).parents[4] / "shared"
REAL = [path for folder in ("data", "cases/videos") for path in sorted((SHARED / folder).rglob("*")) if path.is_file()]


@pytest.mark.parametrize(
    ("times", "size"),
    [
        ([], 20),
        ([-5], 20),
        ([7, 7], None),
        (range(-2000, 90_000 * 512, 512), 20),
        (np.round(np.arange(300) * 1000 / 29.97), 60),
        (np.cumsum(np.random.default_rng(0).integers(1, 2**40, 50)), None),
        ([0, 2**62], 20),
    ],
)
def test_times_are_packed_without_loss(times, size):
    times = np.array(times, np.int64)
    found = unpacked(packed(times), len(times))
    assert np.array_equal(found, times) and found.dtype == np.int64
    assert size is None or len(packed(times)) <= size


@pytest.mark.parametrize(
    "data",
    [
        HEADER.pack(0, 1, 2**32 - 1),  # 34 GB
        HEADER.pack(0, 0, 100) + zlib.compress(bytes(98)),
        HEADER.pack(0, 0, 100) + zlib.compress(bytes(3 * 99)),
        HEADER.pack(0, -1, 100),
        HEADER.pack(0, 0, 100) + b"no zlib",
        b"short",
    ],
)
def test_what_are_no_packed_times_is_refused(data):
    with pytest.raises((ValueError, TypeError, struct.error, zlib.error)):
        unpacked(data, 100)


def test_times_take_no_more_memory_than_frames_need():
    data = HEADER.pack(0, 0, 100) + zlib.compress(bytes(10**8))
    tracemalloc.start()
    try:
        assert len(unpacked(data, 100)) == 100
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def read(video, indices):
    """The frames, or why there are none."""
    try:
        return video.read(indices, (32, 40)).numpy().tobytes()
    except DecodeError as error:
        return error.reason


def check(path, seed=0):
    facts, rng = facts_of(path), np.random.default_rng(seed)
    with PyavVideo(path) as plain, PyavVideo(path, facts=facts) as kept:
        for _ in range(4):
            start = int(rng.integers(plain.num_frames))
            wanted = np.arange(start, min(start + 9, plain.num_frames), 2)
            frames = read(plain, wanted)
            assert read(kept, wanted) == frames
            with PyavVideo(path, facts=facts) as fresh:
                assert read(fresh, wanted) == frames


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="the real videos are not on this machine")
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.nightly] * (i % 4 > 0), id=path.name) for i, path in enumerate(REAL)],
)
def test_real_videos_are_the_same_with_and_without(path):
    try:
        PyavVideo(path).close()
    except DecodeError:
        return
    check(path)


@pytest.fixture(scope="module")
def moving():
    return render([Action(0, 0, 120)] * 3, 120, 96, np.random.default_rng(0))


def test_damaged_videos_are_the_same_with_and_without(tmp_path, moving):
    data = write_video(tmp_path / "good.mp4", moving, bf="2", g="12").read_bytes()
    rng, opened = np.random.default_rng(0), 0
    for i in range(25):
        copy = bytearray(data)
        place = int(rng.integers(len(data)))
        copy[place : place + 40] = rng.bytes(len(copy[place : place + 40]))
        path = tmp_path / f"bad{i}.mp4"
        path.write_bytes(copy)
        try:
            PyavVideo(path).close()
        except DecodeError:
            continue
        check(path, i)
        opened += 1
    assert opened > 10


def bytes_read(function) -> int:
    def count():
        return int(Path("/proc/self/io").read_text().split()[1])

    before = count()
    function()
    return count() - before


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="needs Linux")
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_clip_of_a_long_video_reads_a_part_of_it(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (120, 96, 128, 3), np.uint8)
    path = write_video(tmp_path / f"long.{suffix}", noise, g="12", crf="1")
    facts, size = facts_of(path), path.stat().st_size

    def clip(known):
        with PyavVideo(path, facts=known) as video:
            video.read([60, 62], (96, 128))

    assert size > 1.5e6
    assert bytes_read(lambda: clip(None)) > size
    assert bytes_read(lambda: clip(facts)) < size / 3


class Lost:
    """A container that knows one keyframe, the first."""

    def __init__(self, container):
        self.container = container

    def seek(self, _time, stream):
        self.container.seek(0, stream=stream)

    def __getattr__(self, name):
        return getattr(self.container, name)


def test_a_header_that_does_not_know_its_keyframes_is_noticed(tmp_path, moving):
    path = write_video(tmp_path / "a.mp4", moving, g="10")
    with PyavVideo(path, facts=facts_of(path)) as video:
        video._container = Lost(video._container)
        first = next(video._packets_from(int(video._times[95])))
        assert first.pts == video._times[90]
        video._container = Lost(video._container)
        assert next(video._packets_from(int(video._times[95]))).pts == 0  # packets are read once
    with PyavVideo(path) as plain, PyavVideo(path, facts=facts_of(path)) as video:
        video._container = Lost(video._container)
        assert read(video, [95, 97]) == read(plain, [95, 97])


@pytest.mark.parametrize(
    ("name", "options"),
    [("fragments.mp4", {"movflags": "frag_keyframe+empty_moov+skip_trailer"}), ("live.mkv", {"live": "1"})],
)
def test_live_recordings_have_no_index_of_keyframes(tmp_path, moving, name, options):
    path = tmp_path / name
    check(remux(write_video(tmp_path / "whole.mp4", moving, g="10"), path, options=options))


def test_facts_of_another_file_are_noticed_where_its_times_differ(tmp_path):
    facts = facts_of(write_grey_video(tmp_path / "a.mp4", 40))
    other = write_grey_video(tmp_path / "b.mp4", 20)
    with PyavVideo(other, facts=facts) as video, pytest.raises(DecodeError, match="gives 20 frames"):
        video.read([30], (48, 64))


def test_without_facts_packets_are_read(tmp_path, monkeypatch):
    path = write_grey_video(tmp_path / "a.mp4", 40)
    facts = facts_of(path)
    monkeypatch.setattr("nlvideo.data.decoding.pyav_video.scan_packets", lambda *_: Packets())
    with PyavVideo(path, facts=facts) as video:
        assert video.num_frames == 40
    with pytest.raises(DecodeError, match="holds no frames"):
        PyavVideo(path)
