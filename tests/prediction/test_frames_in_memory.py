"""Frames, bytes and file objects give the scores of the file that they come from, bit for bit."""

import io
import os
import weakref

import numpy as np
import pytest
import torch
from conftest import write_grey_video

import nlvideo
from nlvideo.data.decoding import array_video
from nlvideo.data.decoding.opening import open_video
from nlvideo.data.decoding.sources import open_source
from nlvideo.data.decoding.video import DecodeError
from nlvideo.prediction.predictor import Predictor
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.video_writer import VideoWriter


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """A video of 45 frames of noise that moves, of a size that is resized."""
    path = tmp_path_factory.mktemp("coloured") / "coloured.mp4"
    return write_noise(path)


def write_noise(path, num_frames=45, fps=25):
    noise = np.random.default_rng(0).integers(0, 256, (90, 122 + 2 * num_frames, 3), np.uint8)
    with VideoWriter(path, fps, {"g": "10"}) as writer:
        for i in range(num_frames):
            writer.write(np.ascontiguousarray(noise[:, 2 * i : 2 * i + 122]))
    return path


def decoded(path) -> np.ndarray:
    with open_video(path) as video:
        return video.read(np.arange(video.num_frames), (video.height, video.width)).numpy()


def given_as(path):
    """Yields what holds the frames of a file, anew for each use."""
    frames = decoded(path)
    yield lambda: nlvideo.Frames(frames, 25)
    yield lambda: nlvideo.Frames(torch.from_numpy(frames), fps=25)
    yield lambda: nlvideo.Frames(frames[..., ::-1].copy()[..., ::-1], 25)  # as of a BGR array: strides below 0
    planes = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))  # as torchvision has it
    yield lambda: nlvideo.Frames(torch.from_numpy(planes).permute(0, 2, 3, 1), 25)
    yield lambda: nlvideo.Frames(planes.transpose(0, 2, 3, 1), 25)
    yield lambda: nlvideo.Frames((frame.transpose(1, 2, 0) for frame in planes), 25)
    yield lambda: nlvideo.Frames(np.asfortranarray(frames), 25)
    yield lambda: nlvideo.Frames((frame for frame in frames), 25)
    yield lambda: nlvideo.Frames(list(frames), 25)
    yield lambda: path.read_bytes()
    yield lambda: memoryview(path.read_bytes())
    yield lambda: memoryview(np.repeat(np.frombuffer(path.read_bytes(), np.uint8), 2))[::2]
    yield lambda: io.BytesIO(path.read_bytes())
    yield lambda: path
    yield lambda: BytesPath(path)


class BytesPath:
    def __init__(self, path):
        self._path = path

    def __fspath__(self):
        return os.fsencode(self._path)


def closed(file):
    file.close()
    return file


@pytest.mark.parametrize("settings", [{}, {"data.clip_fps": 10.0}, {"data.clip_fps": 40.0, "data.test.num_crops": 3}])
def test_scores_are_those_of_the_file(checkpoint, coloured, settings):
    predictor = Predictor(checkpoint, settings=settings)
    scores, timeline = predictor.scores(str(coloured)), predictor.slide(str(coloured), num_crops=3)
    assert len(np.unique(timeline.scores)) > 3
    for given in given_as(coloured):
        assert np.array_equal(predictor.scores(given()), scores)
        found = predictor.slide(given(), num_crops=3)
        assert found[1:4] == timeline[1:4]
        assert np.array_equal(found.starts, timeline.starts) and np.array_equal(found.scores, timeline.scores)


@pytest.mark.parametrize("num_frames", [1, 7, 8, 9, 12, 13, 16, 17])
@pytest.mark.parametrize("every", [None, 0.04, 0.32, 0.8])
def test_an_iterator_slides_as_a_video_of_its_length(predictor, num_frames, every):
    frames = np.random.default_rng(1).integers(0, 256, (num_frames, 40, 48, 3), np.uint8)
    known = predictor.slide(nlvideo.Frames(frames, 25), every)
    grown = predictor.slide(nlvideo.Frames(iter(frames), 25), every)
    assert known.starts.tolist() == grown.starts.tolist() and np.array_equal(known.scores, grown.scores)


def test_sliding_over_an_iterator_holds_a_few_windows(predictor, monkeypatch):
    alive, most = set(), 0
    resize = array_video.resize_frame

    def counted(frame, size):
        nonlocal most
        resized = resize(frame, size)
        alive.add(id(resized))
        weakref.finalize(resized, alive.discard, id(resized))
        most = max(most, len(alive))
        return resized

    monkeypatch.setattr("nlvideo.prediction.predictor.resize_frame", counted)
    frame = np.zeros((40, 48, 3), np.uint8)
    timeline = predictor.slide(nlvideo.Frames((frame for _ in range(300)), 25))
    assert timeline.num_frames == 300 and most <= 2 * predictor.window + 2


def test_one_buffer_may_hold_every_frame(predictor, coloured):
    frames = decoded(coloured)

    def one_buffer():
        buffer = np.empty_like(frames[0])
        for frame in frames:
            buffer[:] = frame
            yield buffer

    assert np.array_equal(predictor.scores(nlvideo.Frames(one_buffer(), 25)), predictor.scores(coloured))


def test_bytes_give_the_frames_of_all_kinds_of_files(tmp_path):
    for name, codec in (("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "libx264"), ("a.ts", "mpeg2video")):
        path = tmp_path / name
        write_grey_video(path, 30, codec=codec)
        with path.open("rb") as file:
            file.seek(100)
            with open_video(path) as video, open_source(file) as same:
                assert same.path == str(path) and (same.num_frames, same.fps) == (video.num_frames, video.fps)
                for wanted in ([3, 9, 29], [0, 28]):
                    frames = [v.read(np.array(wanted), (48, 64)) for v in (video, same)]
                    assert torch.equal(*frames)
            assert not file.closed


def test_a_cut_file_is_noticed_in_memory_too(tmp_path):
    write_grey_video(tmp_path / "a.avi", 30, codec="mpeg4")
    content, reasons = (tmp_path / "a.avi").read_bytes(), []
    for size in range(len(content) // 4, len(content), len(content) // 8):
        (tmp_path / "cut.avi").write_bytes(content[:size])
        with pytest.raises(DecodeError) as of_file:
            open_source(tmp_path / "cut.avi")
        with pytest.raises(DecodeError) as of_bytes:
            open_source(content[:size])
        assert of_bytes.value.reason == of_file.value.reason
        reasons.append(of_bytes.value.reason)
    assert any("the file ends after" in reason for reason in reasons)
    with pytest.raises(DecodeError, match="0 bytes: "):
        open_source(b"")


GOOD = np.zeros((4, 8, 8, 3), np.uint8)
WRONG = {
    "fps=None": lambda: nlvideo.Frames(GOOD, None),
    "fps=0": lambda: nlvideo.Frames(GOOD, 0),
    r"fps=nan\)": lambda: nlvideo.Frames(GOOD, float("nan")),
    "fps=10+[)]: a number from 1e-06 to 1e[+]09": lambda: nlvideo.Frames(GOOD, 10**400),
    r"fps=1e\+308\)": lambda: nlvideo.Frames(GOOD, 1e308),
    "a tensor that is meta": lambda: nlvideo.Frames(torch.empty(GOOD.shape, dtype=torch.uint8, device="meta"), 25),
    "a tensor that is sparse_coo": lambda: nlvideo.Frames(torch.from_numpy(GOOD).to_sparse(), 25),
    r"an array \(4, 8, 8, 3\) float64, where \(T, H, W, 3\) uint8": lambda: nlvideo.Frames(GOOD / 2, 25),
    r"an array \(4, 3, 8, 8\) uint8, where": lambda: nlvideo.Frames(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), 25),
    r"an array \(0, 8, 8, 3\) uint8": lambda: nlvideo.Frames(GOOD[:0], 25),
    r"an array \(8, 8, 3\) uint8": lambda: nlvideo.Frames(GOOD[0], 25),
    r"Frames\(int\): give an array": lambda: nlvideo.Frames(3, 25),
    r"Frames\(str\): give an array": lambda: nlvideo.Frames("a.mp4", 25),
    "the iterable gives no frames": lambda: nlvideo.Frames(iter(()), 25),
    r"frame 0: an array \(8, 3\) uint8, where \(H, W, 3\)": lambda: nlvideo.Frames(iter(GOOD[0]), 25),
    r"frame 0: a int, where an array": lambda: nlvideo.Frames(iter([1]), 25),
    r"frame 1 is \(4, 8, 3\), the first \(8, 8, 3\)": lambda: nlvideo.Frames(iter([GOOD[0], GOOD[0, :4]]), 25),
    r"an array \(4, 8, 8, 3\) has no rate: give nlvideo.Frames\(array, fps=30\)": lambda: GOOD,
    "a int is no video; give a path": lambda: 3,
    "a list is no video": lambda: [GOOD[0]],
    "must be binary": lambda: io.StringIO("text"),
    "a BytesIO: the file object is closed": lambda: closed(io.BytesIO(b"")),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_no_video_is_one_line(predictor, message):
    for use in (predictor.scores, predictor.slide):
        with pytest.raises(UserError, match=message) as caught:
            use(WRONG[message]())
        assert "\n" not in str(caught.value)


def test_steps_of_any_length(predictor):
    timeline = predictor.slide(nlvideo.Frames(GOOD.repeat(4, 0), 25), 1e308)
    assert timeline.starts.tolist() == [0, 16 - predictor.window]
    for every in (0, -1.0, float("nan")):
        with pytest.raises(UserError, match=f"every_seconds={every}: must be above 0"):
            predictor.slide(nlvideo.Frames(GOOD, 25), every)


def test_too_many_frames_of_an_iterator_are_refused(predictor, monkeypatch):
    monkeypatch.setattr(array_video, "MAX_COLLECTED", 3 * GOOD[0].nbytes)
    with pytest.raises(UserError, match=r"the first 3 frames fill .* slide\(\) needs a window at a time"):
        predictor.scores(nlvideo.Frames(iter(GOOD), 25))
    predictor.scores(nlvideo.Frames(iter(GOOD[:3]), 25))
    predictor.slide(nlvideo.Frames(iter(GOOD), 25))


def test_parts_of_frames_in_memory_are_those_of_the_file(coloured):
    for part in ((0.4, 1.0), (1.5, 9.0)):
        with open_source(coloured, part=part, clip_fps=10) as video:
            wanted = video.read(np.arange(video.num_frames), (30, 40))
        for given in given_as(coloured):
            with open_source(given(), part=part, clip_fps=10) as video:
                assert torch.equal(video.read(np.arange(video.num_frames), (30, 40)), wanted)
    with pytest.raises(DecodeError, match="begins past its end"):
        open_source(coloured.read_bytes(), part=(5.0, 6.0))


def test_other_decoders_read_paths_alone(coloured):
    with pytest.raises(UserError, match="data.decoder=decord reads paths alone"):
        open_source(coloured.read_bytes(), "decord")
