"""A small network whose scores differ, its exports and a video, each made once for all tests of a process."""

import functools
import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from in_process import TOOLS
from PIL import Image
from runs import config_of

from nlvideo.build.model import build_model
from nlvideo.config.compose import to_container
from nlvideo.models.resnet import DEPTHS
from nlvideo.runtime.video_writer import VideoWriter
from nlvideo.weights.checkpoint_file import save_checkpoint

DEPTH, BLOCKS = 23, (1, 2, 2, 1)  # with every kind of residual block of every layout
CLASSES = ["up", "down", "still"]


@contextmanager
def shallow_depth() -> Iterator[None]:
    """Makes model.depth=23 known, of which an export takes a third of the time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(DEPTHS, DEPTH, BLOCKS)
        yield


@functools.cache
def export_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("export_tool", TOOLS / "export.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="exports_")


@functools.cache
def checkpoint() -> Path:
    """A checkpoint with precise batch-norm statistics, which exports have to use."""
    folder = Path(_folder().name)
    views = "data.test={num_clips: 3, num_crops: 3, short_side: 50, crop_size: 50}"
    size = ["data.crop_size=40", "data.scale_range=[40,50]", views, "data.mean=[0.3,0.4,0.5]"]
    blocks = [f"model.depth={DEPTH}", f"+block.places.r{DEPTH}=[res4.1]", "block.norm=false"]
    config = config_of(folder, folder, *size, *blocks)
    torch.manual_seed(2)
    network = build_model(config.model, config.block, config.data, 3).train()
    untrained = {name: value.clone() for name, value in network.named_buffers()}
    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.momentum = None
                module.weight.fill_(0.3 if name.endswith("bn3") else 0.8)
        network(torch.randn(8, 3, 4, 40, 40))
        network.fc.weight.mul_(20)
    state = network.state_dict()
    content = {"model": state | untrained, "precise_bn": {key: state[key] for key in state if ".running_" in key}}
    save_checkpoint(folder / "checkpoint.pt", content | {"step": 2, "config": to_container(config), "classes": CLASSES})
    return folder / "checkpoint.pt"


@functools.cache
def exported(name: str, with_normalization: bool) -> Path:
    """An export of checkpoint()."""
    with redirect_stdout(StringIO()) as said:
        export_tool().export(checkpoint(), checkpoint().with_name(name), with_normalization)
    assert "of the largest logit" in said.getvalue() and len(said.getvalue().splitlines()) == 2
    return checkpoint().with_name(name)


def write_noisy_video(path: Path, height: int, width: int) -> Path:
    """Writes 60 noisy, moving frames."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)).resize((160, 96), 3)
    with VideoWriter(path, 25, {"crf": "10"}) as writer:
        for i in range(60):
            writer.write(np.roll(np.asarray(picture), 2 * i, (0, 1)[i % 2 :][:1])[:height, :width])
    return path
