"""Shared fixtures: videos whose frames say which they are."""

from pathlib import Path

import nlvideo.runtime.threads  # noqa: F401, before torch is loaded: tests run beside each other

# isort: split
import av
import numpy as np
import pytest
import torch

from nlvideo.config.compose import compose_train_config
from nlvideo.config.schema import DataConfig, TrainConfig, ViewsConfig

GREY_STEP = 3  # frame i has grey level GREY_STEP * i


def write_grey_video(path: Path, num_frames: int, height: int = 48, width: int = 64, codec: str = "libx264", **options):
    """Writes a video whose frame i is all of grey level GREY_STEP * i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "1", "g": "12", "threads": "1"} | options
        for i in range(num_frames):
            pixels = np.full((height, width, 3), GREY_STEP * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def frame_numbers(frames: torch.Tensor) -> list[int]:
    """Returns which frames these (F, H, W, C) are."""
    return [round(frame.double().mean().item() / GREY_STEP) for frame in frames]


def composed(*overrides: str) -> TrainConfig:
    """Returns the config that nlvideo-train gets with these overrides."""
    return compose_train_config(overrides)


def config_of_data(folder, **changes) -> DataConfig:
    """Returns the data settings for the videos of video_folder."""
    settings = {
        "root": str(folder),
        "num_frames": 4,
        "frame_stride": 3,
        "scale_range": [48, 60],
        "crop_size": 40,
        "num_workers": 0,
        "test": ViewsConfig(num_clips=3, num_crops=3, short_side=48, crop_size=48),
    }
    return DataConfig(**(settings | changes))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Makes all that is nightly slow: -m on the command line replaces that of pyproject.toml."""
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def fixed_random_state():
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of tests that run beside each other wait for each other; an evaluation takes every core by default."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory) -> Path:
    """A folder with train.csv and val.csv, 6 and 5 grey videos of 3 classes; one has 10 frames only."""
    folder = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 6), ("val", 5)):
        rows = []
        for i in range(count):
            write_grey_video(folder / split / f"a video {i}.mp4", 10 if i == 1 else 40)
            rows.append(f"{split}/a video {i}.mp4 {i % 3}\n")
        (folder / f"{split}.csv").write_text("".join(rows))
    return folder
