"""Interrupted runs resume as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import time

import pytest
import torch
from kills import equal
from runs import BIN, ENDLESS, TINY, StopAt, assert_equal, config_of, ledger_of, list_with_broken, rows_of, weights_of

from nlvideo.train import launch as train
from nlvideo.training import validation
from nlvideo.training.run_status import read_status
from nlvideo.training.step_files import save_step
from nlvideo.weights.checkpoint_file import load_checkpoint


@pytest.mark.parametrize(
    ("number", "more"),
    [
        (signal.SIGINT, []),
        pytest.param(
            signal.SIGTERM,
            ["log_every_steps=4", "optim.accumulate=2", "optim.batch_size=4"],
            marks=pytest.mark.slow,
        ),
        (
            signal.SIGUSR1,
            ["precise_bn_steps=1", "optim.max_grad_norm=0.5", "data.augment=trivial", "data.crop=random_resized"],
        ),
        (
            signal.SIGINT,
            ["data.clips_per_video=2", "optim.batch_size=4", "optim.mixup=0.4", "data.balance=classes"],
        ),
        pytest.param(
            signal.SIGUSR2,
            ["precision=float16", "model.activation_checkpointing=[res2,res4]", "data.num_frames=2"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_stopped_run_resumes_as_if_it_had_not_stopped(video_folder, tmp_path, monkeypatch, number, more):
    options = ["optim.max_steps=6", "model.dropout=0.5", "data.num_workers=1", *more]
    train(config_of(video_folder, tmp_path / "whole", *options))
    with monkeypatch.context() as patch:
        StopAt(patch, 3, number)
        with pytest.raises(SystemExit) as stopped:
            train(config_of(video_folder, tmp_path / "stopped", *options))
    assert stopped.value.code == 128 + number
    assert torch.load(tmp_path / "stopped/checkpoint.pt", weights_only=True)["step"] == 3
    train(config_of(video_folder, tmp_path / "stopped", *options, "resume=auto"))
    for name in ("checkpoint.pt", "checkpoint_best.pt"):
        whole, stopped = (load_checkpoint(tmp_path / folder / name) for folder in ("whole", "stopped"))
        for part in ("model", "optimizer", "scaler", "precise_bn", "step", "meter"):
            assert equal(whole[part], stopped[part]), (name, part)
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "stopped")


def test_a_crashed_run_resumes_from_its_checkpoint_and_drops_later_lines(video_folder, tmp_path, monkeypatch):
    options = ["optim.max_steps=6"]
    train(config_of(video_folder, tmp_path / "whole", *options))
    with monkeypatch.context() as patch:
        import nlvideo.train

        step = nlvideo.train.train_step
        seen = []

        def crash(learner, batches):
            seen.append(1)
            if len(seen) == 4:
                raise MemoryError
            return step(learner, batches)

        patch.setattr(nlvideo.train, "train_step", crash)
        with pytest.raises(MemoryError):
            train(config_of(video_folder, tmp_path / "crashed", *options))
    assert [row["step"] for row in rows_of(tmp_path / "crashed")] == [1, 2, 2, 3]
    train(config_of(video_folder, tmp_path / "crashed", *options, "resume=auto"))
    assert_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "crashed"))
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "crashed")


def test_a_run_stopped_at_a_validation_step_validates_on_resume(video_folder, tmp_path, monkeypatch):
    train(config_of(video_folder, tmp_path / "whole"))
    assert read_status(tmp_path / "whole")["state"] == "finished"
    for step in (2, 4):
        folder = tmp_path / f"stopped{step}"
        with monkeypatch.context() as patch:
            StopAt(patch, step, signal.SIGINT)
            with pytest.raises(SystemExit):
                train(config_of(video_folder, folder))
        assert read_status(folder)["state"] == "stopped"  # after the last step too, which has no validation yet
        (folder / "checkpoint.pt").unlink()  # as if killed before the newest step was named
        top1 = train(config_of(video_folder, folder, "resume=auto"))
        assert load_checkpoint(folder / "checkpoint.pt")["step"] == 4
        assert rows_of(folder) == rows_of(tmp_path / "whole")
        assert top1 == rows_of(folder)[-1]["top1"]
        assert train(config_of(video_folder, folder, "resume=auto")) == top1  # nothing left to do


def test_a_run_stopped_during_validation_validates_on_resume(video_folder, tmp_path, monkeypatch):
    options = ["validate_every_steps=3", "checkpoint_every_steps=100", "precise_bn_steps=1"]
    train(config_of(video_folder, tmp_path / "whole", *options))
    batches, seen = validation.center_batches, []

    def interrupted(*arguments, **place):
        for batch in batches(*arguments, **place):
            seen.append(batch)
            os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(validation, "center_batches", interrupted)
        with pytest.raises(SystemExit):
            train(config_of(video_folder, tmp_path / "run", *options))
    assert len(seen) == 1  # of three
    assert read_status(tmp_path / "run")["state"] == "stopped"
    assert [row["split"] for row in rows_of(tmp_path / "run")] == ["train"] * 3
    assert load_checkpoint(tmp_path / "run/checkpoint.pt")["step"] == 3
    train(config_of(video_folder, tmp_path / "run", *options, "resume=auto"))
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")
    assert_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "run"))


@pytest.mark.parametrize("how", ["cut short", "one bit flipped"])
def test_a_damaged_newest_checkpoint_is_skipped_with_its_reason(video_folder, tmp_path, capsys, how):
    train(config_of(video_folder, tmp_path / "whole", "checkpoint_every_steps=1"))
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    file = tmp_path / "run/checkpoints/step_00000004.pt"
    data = bytearray(file.read_bytes())
    if how == "cut short":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    train(config_of(video_folder, tmp_path / "run", "checkpoint_every_steps=1", "resume=auto"))
    captured = capsys.readouterr()
    assert f"skipped: {file} is" in captured.out and "resumed after step 3" in captured.out
    assert_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "run"))
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "run")


def test_what_a_resumed_run_has_seen_is_not_decoded_again(video_folder, tmp_path, monkeypatch):
    from nlvideo.data.clips.train_clips import TrainClips

    train(config_of(video_folder, tmp_path / "run", "optim.max_steps=4", "optim.schedule=steps"))
    read, asked = TrainClips.__getitems__, []
    monkeypatch.setattr(TrainClips, "__getitems__", lambda self, keys: asked.extend(keys) or read(self, keys))
    train(config_of(video_folder, tmp_path / "run", "optim.max_steps=6", "optim.schedule=steps", "resume=auto"))
    assert len(asked) == 4  # two steps of two clips


def test_resuming_with_other_ranks_or_micro_batches_reports_what_changes(video_folder, tmp_path, capsys):
    options = ["optim.batch_size=4", "optim.schedule=steps"]
    train(config_of(video_folder, tmp_path / "run", *options, "optim.max_steps=2"))
    capsys.readouterr()
    train(config_of(video_folder, tmp_path / "run", *options, "resume=auto", "optim.max_steps=3", "optim.accumulate=2"))
    out = capsys.readouterr().out
    assert (
        "          1 ranks with 2 micro-batches instead of 1 with 1: the same clips per step, but trained batch" in out
    )
    with pytest.raises(ValueError, match="precision: float32 -> bfloat16"):
        train(config_of(video_folder, tmp_path / "run", *options, "resume=auto", "precision=bfloat16"))


def test_a_resumed_run_has_the_ledger_of_an_uninterrupted_one(video_folder, tmp_path, monkeypatch):
    option = list_with_broken(video_folder, tmp_path, 5)
    settings = (option, "data.max_bad_share=0.9", "optim.max_steps=9", "checkpoint_every_steps=2", "log_every_steps=3")
    train(config_of(video_folder, tmp_path / "whole", *settings))
    with monkeypatch.context() as patch:
        StopAt(patch, 5, signal.SIGINT)
        with pytest.raises(SystemExit):
            train(config_of(video_folder, tmp_path / "run", *settings))
    with open(tmp_path / "run/bad_videos.csv", "a") as file:
        file.write("7,0,of a step that was lost,why,other\n")
    train(config_of(video_folder, tmp_path / "run", *settings, "resume=auto"))
    assert ledger_of(tmp_path / "run") == ledger_of(tmp_path / "whole")


def test_a_resumed_run_obeys_the_list_of_slow_videos(video_folder, tmp_path, monkeypatch):
    settings = ("data.skip_slow=true", "data.max_bad_share=0.9", "optim.max_steps=9")
    with monkeypatch.context() as patch:
        StopAt(patch, 2, signal.SIGINT)
        with pytest.raises(SystemExit):
            train(config_of(video_folder, tmp_path / "run", *settings))
    checkpoint = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert checkpoint["slow_videos"] == []
    save_step(tmp_path / "run", checkpoint | {"slow_videos": [1, 4]}, keep=1)
    train(config_of(video_folder, tmp_path / "run", *settings, "resume=auto"))
    ledger = ledger_of(tmp_path / "run")
    assert {row["video"] for row in ledger} == {"train/a video 1.mp4", "train/a video 4.mp4"}
    assert {row["reason"] for row in ledger} == {"skipped, because it took too long before"}
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["slow_videos"] == [1, 4]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_ctrl_c_in_a_terminal_writes_a_checkpoint(video_folder, tmp_path, method):
    script = BIN / "nlvideo-train"
    options = [*ENDLESS, "data.num_workers=1", f"data.start_method={method}"]
    options += [f"output_dir={tmp_path}/run", "validate_every_steps=100000"]
    command = [script, *TINY, f"data.root={video_folder}", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "run/checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers too
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGINT, output[-2000:]
    assert "resume it with the same command and resume=auto" in output and "Traceback" not in output
    steps = [row["step"] for row in rows_of(tmp_path / "run")]
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["step"] == max(steps)
