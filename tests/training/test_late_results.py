"""Results that are read one step late: what is logged and named stays, and nothing else waits for the device."""

import signal
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from fake_gpus import Calls
from runs import StopAt, assert_equal, config_of, rows_of, weights_of
from torch.utils._pytree import tree_leaves

import nlvideo.train
from nlvideo.build.model import build_model
from nlvideo.data.clips.batch import Batch
from nlvideo.runtime.distributed import World
from nlvideo.runtime.errors import RunFailed
from nlvideo.train import train, train_step
from nlvideo.training.clip_loss import ClipLoss
from nlvideo.training.learner import Learner, build_learner
from nlvideo.training.step_metrics import LateResult

RARE = ["optim.max_steps=7", "log_every_steps=100", "checkpoint_every_steps=100", "validate_every_steps=100"]


def test_a_loss_that_is_not_finite_is_named_with_its_own_step_and_never_saved(video_folder, tmp_path, monkeypatch):
    launched = []

    def break_third(learner, batches):
        launched.append([int(i) for batch in batches for i in batch.videos])
        if len(launched) == 3:
            learner.network.fc.weight.data[0] = float("nan")
        return train_step(learner, batches)

    monkeypatch.setattr(nlvideo.train, "train_step", break_third)
    with pytest.raises(RunFailed, match="loss is nan and .* at step 3, on the videos ") as caught:
        train(config_of(video_folder, tmp_path / "run", *RARE, "checkpoint_every_steps=2"))
    rows = (video_folder / "train.csv").read_text().splitlines()
    named = str(caught.value).split("on the videos ")[1].rstrip(".")
    assert named == ", ".join(rows[i].rsplit(" ", 1)[0] for i in launched[2])
    assert len(launched) == 4  # the fourth step was launched before the third one's result was read
    assert [file.name for file in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000002.pt"]


def test_the_lines_of_metrics_are_those_of_steps_that_are_read_at_once(video_folder, tmp_path, monkeypatch):
    train(config_of(video_folder, tmp_path / "late", *RARE, "log_every_steps=3"))
    at_once = lambda learner, batches: ReadAlready(train_step(learner, batches))  # noqa: E731
    monkeypatch.setattr(nlvideo.train, "train_step", at_once)
    train(config_of(video_folder, tmp_path / "at once", *RARE, "log_every_steps=3"))
    assert rows_of(tmp_path / "late") == rows_of(tmp_path / "at once")
    assert [row["step"] for row in rows_of(tmp_path / "late")] == [3, 6, 7, 7]
    assert_equal(weights_of(tmp_path / "late"), weights_of(tmp_path / "at once"))


class ReadAlready:
    def __init__(self, result: LateResult):
        self.result = result.read()

    def read(self):
        return self.result


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_run_that_is_asked_to_stop_ends_after_that_step(video_folder, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patched:
        StopAt(patched, step, signal.SIGTERM)
        assert train(config_of(video_folder, tmp_path / "run", *RARE)).step == step
    train(config_of(video_folder, tmp_path / "run", *RARE, "resume=auto"))
    train(config_of(video_folder, tmp_path / "whole", *RARE))
    assert_equal(weights_of(tmp_path / "run"), weights_of(tmp_path / "whole"))
    train_rows = [[row for row in rows_of(tmp_path / name) if row["step"] == 7] for name in ("run", "whole")]
    assert train_rows[0] == train_rows[1]


READING = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero")
ALL_AT_ONCE = [
    "optim.accumulate=2",
    "optim.mixup=0.4",
    "optim.cutmix=1",
    "optim.ema_decay=0.9",
]
# The loader's and a counter, which are never on the device.
ON_THE_HOST = {"mixing.py __call__", "weight_average.py update_parameters"}


@pytest.mark.parametrize(("options", "allowed"), [([], set()), (ALL_AT_ONCE, ON_THE_HOST)])
def test_a_step_waits_for_the_device_once(video_folder, tmp_path, monkeypatch, options, allowed):
    """Each read of a tensor's values is counted by the function that asks for it."""
    reads = []  # of each step

    def counted(name):
        plain = getattr(torch.Tensor, name)

        def method(self, *args, **kwargs):
            frame = sys._getframe(1)
            while "/torch/" in frame.f_code.co_filename:
                frame = frame.f_back
            path = Path(frame.f_code.co_filename)
            if reads and "nlvideo" in path.parts and "data" not in path.parts:  # loading is the workers'
                reads[-1][f"{path.name} {frame.f_code.co_name}"] += 1
            return plain(self, *args, **kwargs)

        return method

    def noted(learner, batches):
        reads.append(Counter())
        return train_step(learner, batches)

    with monkeypatch.context() as patched:
        patched.setattr(nlvideo.train, "train_step", noted)
        for name in READING:
            patched.setattr(torch.Tensor, name, counted(name))
        train(config_of(video_folder, tmp_path / "run", *RARE, "optim.batch_size=4", *options))
    first, *others, last = reads
    assert "step_metrics.py read" not in first  # nothing was waited for before the second step was launched
    assert len(others) == 5
    for step in others:
        assert step.keys() - allowed == {"step_metrics.py read"}
        assert step["step_metrics.py read"] == 1


OPTIONS = [[], ALL_AT_ONCE, ["model.frozen_bn=true", "block=gc5"], ["optim.kind=adamw"]]
MODES = ["nl1_gaussian", "nl1_dot_product", "nl1_concatenation"]


@pytest.mark.parametrize(
    ("block", "options"), [*(("nl1", options) for options in OPTIONS), *((mode, ALL_AT_ONCE) for mode in MODES)]
)
def test_launching_a_step_reads_nothing_from_the_device(video_folder, tmp_path, monkeypatch, block, options):
    """The meta device has no memory, so any read of a value raises, also one of C++ that cannot be counted."""
    settings = [*RARE, "optim.batch_size=4", f"block={block}", *options]
    config = config_of(video_folder, tmp_path / "run", *settings)
    world = World(0, 0, 1, torch.device("meta"))
    network = build_model(config.model, config.block, config.data, 3)
    learner = build_learner(config, network, world, torch.float32, loss=ClipLoss(False))
    size = 4 // config.optim.accumulate
    monkeypatch.setattr("nlvideo.train.LateResult", lambda values, _: values)
    monkeypatch.setattr(Learner, "autocast", nullcontext)  # which knows no meta device
    for _ in range(2):
        batches = [host_batch(first, size, config.data) for first in range(0, 4, size)]
        with Calls() as calls:
            values = train_step(learner, batches)
        copies = [name for name, given, output in calls if devices(given) == {"cpu"} and devices(output) == {"meta"}]
        assert copies == 2 * len(batches) * ["_to_copy"]  # clips and targets, by CopyStream
    assert values.is_meta and values.shape == (3,)
    with pytest.raises(RuntimeError, match="meta"):
        values.tolist()


def devices(tensors) -> set[str]:
    """Returns where tensors lie; numbers, which are no dimensions, do not count."""
    return {t.device.type for t in tree_leaves(tensors) if isinstance(t, torch.Tensor) and t.ndim}


def host_batch(first: int, count: int, data) -> Batch:
    clips = torch.zeros(count, data.num_frames, data.crop_size, data.crop_size, 3, dtype=torch.uint8)
    targets = torch.zeros(count, dtype=torch.int64)
    return Batch(clips.permute(0, 4, 1, 2, 3), targets, targets, [], torch.arange(first, first + count))
