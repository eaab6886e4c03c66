"""Checkpoints that a thread writes while training goes on."""

import threading

import pytest
import torch
from runs import config_of

from nlvideo.runtime.errors import RunFailed
from nlvideo.train import train
from nlvideo.training import checkpoint_writer
from nlvideo.training.checkpoint_writer import CheckpointWriter
from nlvideo.weights.checkpoint_file import load_checkpoint


@pytest.fixture
def full_disk(monkeypatch):
    def fail(*_):
        raise RunFailed("the disk is full")

    monkeypatch.setattr(checkpoint_writer, "save_step", fail)


def content_of(step: int, weight: torch.Tensor) -> dict:
    optimizer = {"state": {0: {"momentum_buffer": weight * 2}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {"model": {"w": weight}, "optimizer": optimizer, "step": step, "config": {}, "classes": ["a"]}


@pytest.fixture
def held(monkeypatch):
    """Holds the thread before it writes, until the event is set."""
    go, plain = threading.Event(), checkpoint_writer.save_step

    def wait_and_save(*arguments):
        assert go.wait(20)
        plain(*arguments)

    monkeypatch.setattr(checkpoint_writer, "save_step", wait_and_save)
    return go


def test_what_is_written_is_the_moment_of_the_call(held, tmp_path):
    weight = torch.arange(24.0).view(1, 2, 3, 2, 2).contiguous(memory_format=torch.channels_last_3d)
    content = content_of(3, weight)
    expected = weight.clone()
    with CheckpointWriter(tmp_path, keep=2) as writer:
        writer.save(content)
        weight.zero_()  # as the next step of training does
        content["optimizer"]["state"][0]["momentum_buffer"].zero_()
        content["optimizer"]["param_groups"][0]["lr"] = 7.0
        assert not (tmp_path / "checkpoint.pt").exists()
        held.set()
    found = load_checkpoint(tmp_path / "checkpoint.pt")
    assert torch.equal(found["model"]["w"], expected)
    assert found["model"]["w"].is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(found["optimizer"]["state"][0]["momentum_buffer"], 2 * expected)
    assert found["optimizer"]["param_groups"][0]["lr"] == 0.1


def test_the_next_save_waits_for_the_one_before(held, tmp_path):
    with CheckpointWriter(tmp_path, keep=2) as writer:
        writer.save(content_of(1, torch.ones(1)))
        threading.Timer(0.2, held.set).start()
        writer.save(content_of(2, torch.ones(1)))
        assert load_checkpoint(tmp_path / "checkpoints/step_00000001.pt")["step"] == 1
        writer.wait()
        assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 2


@pytest.mark.parametrize("end", ["check", "wait", "save", "exit"])
def test_a_failure_to_write_ends_the_run(full_disk, tmp_path, end):
    with pytest.raises(RunFailed, match="the disk is full"), CheckpointWriter(tmp_path, keep=2) as writer:
        writer.save(content_of(1, torch.ones(1)))
        while end == "check":
            writer.check()  # raises once the thread has failed
        if end == "wait":
            writer.wait()
        if end == "save":
            writer.save(content_of(2, torch.ones(1)))


def test_another_error_is_not_hidden_by_a_failure_to_write(full_disk, tmp_path, capsys):
    with pytest.raises(RunFailed, match="the loss is nan"), CheckpointWriter(tmp_path, keep=2) as writer:
        writer.save(content_of(1, torch.ones(1)))
        raise RunFailed("the loss is nan")
    assert "the disk is full" in capsys.readouterr().err


def test_training_goes_on_while_a_checkpoint_is_written(held, video_folder, tmp_path, monkeypatch):
    import nlvideo.train

    step, steps = nlvideo.train.train_step, []

    def counted(learner, batches):
        steps.append((tmp_path / "run/checkpoint.pt").exists())
        if len(steps) == 4:
            held.set()
        return step(learner, batches)

    monkeypatch.setattr(nlvideo.train, "train_step", counted)
    rarely = ["optim.max_steps=5", "validate_every_steps=100", "log_every_steps=100"]
    train(config_of(video_folder, tmp_path / "run", *rarely, "checkpoint_every_steps=2"))
    assert steps[:4] == [False] * 4  # steps 3 and 4 were launched before step 2 was on the disk
    names = sorted(file.name for file in (tmp_path / "run/checkpoints").iterdir())
    assert names[-2:] == ["step_00000004.pt", "step_00000005.pt"]
