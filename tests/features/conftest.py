"""A thin checkpoint, a few videos, and the command in this process."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from feature_cases import SETTINGS, write_checkpoint, write_moving
from in_process import run_main

import nlvideo
from nlvideo.features.command import main


@pytest.fixture(scope="session")
def thin(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("thin") / "thin.pt", 1)


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """A folder of four videos in two folders: 40, 22, 17 and 3 frames."""
    folder = tmp_path_factory.mktemp("clips")
    for name, count in (("a/one", 40), ("a/two", 22), ("b/three", 17), ("b/short", 3)):
        write_moving(folder / f"{name}.mp4", count)
    return folder


@pytest.fixture(scope="session")
def alone(thin, clips) -> dict[str, np.ndarray]:
    """Features of the three videos that are long enough, one by one."""
    extract = nlvideo.FeatureExtractor(thin, settings=SETTINGS | {"num_threads": 1})
    return {f"{name}.npy": extract(clips / f"{name}.mp4") for name in ("a/one", "a/two", "b/three")}


@pytest.fixture
def whole_videos(clips, tmp_path) -> Path:
    (tmp_path / "list.txt").write_text("a/one.mp4\na/two.mp4\nb/three.mp4\n")
    return tmp_path / "list.txt"


@pytest.fixture
def extract_command(monkeypatch, capsys):
    """Returns a function that runs nlvideo-extract in this process."""
    call = partial(run_main, main, name="nlvideo-extract", monkeypatch=monkeypatch, capsys=capsys)

    def run(*arguments, **options):
        threads = [] if any(str(argument).startswith("num_threads=") for argument in arguments) else ["num_threads=1"]
        return call(*arguments, *threads, **options)

    return run
