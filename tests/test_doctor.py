import subprocess
import sys

import pytest

from nlvideo.data.decoding import opening
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.doctor import decoder_problem, write_test_video


def test_the_command_lists_the_decoders_that_work():
    done = subprocess.run([sys.executable, "-m", "nlvideo.doctor"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "pyav" in done.stdout and "correct frames" in done.stdout and "usable here: pyav" in done.stdout


@pytest.fixture
def file(tmp_path):
    write_test_video(tmp_path / "grey.mp4")
    return tmp_path / "grey.mp4"


def test_a_decoder_without_its_package_is_reported(file, monkeypatch):
    monkeypatch.setitem(opening.DECODERS, "torchcodec", ("torchcodec_video.TorchcodecVideo", "no_such_package", "pip"))
    assert "needs no_such_package" in decoder_problem("torchcodec", file)


def test_a_decoder_that_returns_wrong_frames_is_reported(file, monkeypatch):
    read = PyavVideo.read
    assert decoder_problem("pyav", file) is None
    monkeypatch.setattr(PyavVideo, "read", lambda self, indices, size: read(self, [i + 1 for i in indices], size))
    assert decoder_problem("pyav", file) == "returns frames (6, 19, 20, 41) for (5, 18, 19, 40)"
