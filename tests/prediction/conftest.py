"""A trained checkpoint, made once for all tests of predictions."""

from pathlib import Path

import numpy as np
import pytest
from runs import config_of

from nlvideo.prediction.predictor import Predictor
from nlvideo.runtime.video_writer import VideoWriter
from nlvideo.train import train


@pytest.fixture(scope="session")
def checkpoint(video_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    # enough steps for scores that differ from video to video
    train(config_of(video_folder, folder / "run", "optim.max_steps=6", "block.norm=false"))
    return folder / "run" / "checkpoint.pt"


@pytest.fixture(scope="session")
def predictor(checkpoint) -> Predictor:
    return Predictor(checkpoint)


@pytest.fixture(scope="session")
def halves(tmp_path_factory) -> Path:
    """A video of 24 dark and then 24 bright frames."""
    path = tmp_path_factory.mktemp("halves") / "halves.mp4"
    with VideoWriter(path, 25, {"crf": "1", "g": "12"}) as writer:
        for i in range(48):
            writer.write(np.full((48, 64, 3), 30 if i < 24 else 220, np.uint8))
    return path
