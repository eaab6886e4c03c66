"""What a run refuses, before anything is written."""

import shutil
import subprocess
import sys

import pytest
import torch
from runs import BIN, TINY, config_of

from nlvideo.train import train
from nlvideo.weights.checkpoint_file import load_checkpoint


def test_a_folder_with_a_run_is_refused_and_left_alone(video_folder, tmp_path):
    train(config_of(video_folder, tmp_path / "run"))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="holds a run already .*resume=auto, or give another output_dir"):
        train(config_of(video_folder, tmp_path / "run"))
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("block.mode=dot_product", "block.mode: embedded_gaussian -> dot_product"),
        ("seed=5", "seed: 0 -> 5"),
        ("data.num_frames=8", "data.num_frames: 4 -> 8"),
        ("optim.batch_size=4", "optim.batch_size: 2 -> 4"),
        ("data.clips_per_video=2", "data.clips_per_video: 1 -> 2"),
    ],
)
def test_resuming_as_another_run_is_refused_with_the_difference(video_folder, tmp_path, override, message):
    train(config_of(video_folder, tmp_path / "run", "optim.max_steps=1"))
    with pytest.raises(ValueError, match=message):
        train(config_of(video_folder, tmp_path / "run", "resume=auto", override))


def test_another_length_under_cosine_is_refused_with_what_to_do_instead(video_folder, tmp_path):
    train(config_of(video_folder, tmp_path / "run", "optim.max_steps=1"))
    with pytest.raises(
        ValueError, match="optim.max_steps: 1 -> 2 .*learning rate .*resume with the old value, or start"
    ):
        train(config_of(video_folder, tmp_path / "run", "optim.max_steps=2", "resume=auto"))


def test_weights_that_cannot_be_used_are_refused_with_their_key(video_folder, tmp_path):
    torch.save({"model_state": {"s1.pathway0_stem.conv.weight": torch.zeros(1)}}, tmp_path / "slowfast.pyth")
    (tmp_path / "other.pkl").write_bytes(b"a pickle of something")
    for name, message in (
        ("slowfast.pyth", "slowfast.pyth: it has 0, 0, 0, 0 bottlenecks"),
        ("other.pkl", "other.pkl is not a checkpoint that can be read"),
    ):
        with pytest.raises(ValueError, match=f"model.pretrained: .*{message}"):
            train(config_of(video_folder, tmp_path / "run", f"model.pretrained={tmp_path}/{name}"))


def test_resuming_with_another_list_is_refused(video_folder, tmp_path):
    rows = (video_folder / "train.csv").read_text().splitlines()
    (tmp_path / "list.csv").write_text("\n".join(rows))
    options = [f"data.train={tmp_path}/list.csv", "optim.max_steps=1"]
    train(config_of(video_folder, tmp_path / "run", *options))
    (tmp_path / "list.csv").write_text("\n".join(rows[::-1]))
    with pytest.raises(ValueError, match="the training list: .* has other videos, labels or class names"):
        train(config_of(video_folder, tmp_path / "run", *options, "resume=auto"))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data.train=nothing.csv"], FileNotFoundError, "nothing.csv does not exist"),
        (["data.num_classes=2"], ValueError, "label 2 of train/a video 2.mp4 is out of range; there are 2 classes"),
        (["model.layout=resnext"], ValueError, "layout='resnext' is unknown. Choose from: c2d, i3d"),
        (["block.mode=softmax"], ValueError, "mode='softmax' is not a non-local mode. Choose from: gaussian"),
        (["model.pretrained=nowhere.pt"], FileNotFoundError, "nowhere.pt does not exist"),
        (["optim.batch_size=1"], ValueError, "optim.batch_size=1: batch norm in res5 would see a single value"),
        (["model.frozen_bn=true"], ValueError, "which could never learn"),
        (["num_devices=2", "optim.batch_size=3"], ValueError, "batch_size=3 cannot be divided evenly"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(video_folder, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        train(config_of(video_folder, tmp_path / "run", *overrides))
    assert not (tmp_path / "run").exists()


def test_a_list_with_a_gap_in_its_labels_is_refused(video_folder, tmp_path):
    (tmp_path / "gap.csv").write_text("train/a video 0.mp4 0\ntrain/a video 2.mp4 2\n")
    with pytest.raises(ValueError, match="has no video of class 1 but of higher ones up to 2"):
        train(config_of(video_folder, tmp_path / "run", f"data.train={tmp_path}/gap.csv"))


def test_a_mistake_with_many_devices_is_one_message(video_folder, tmp_path):
    script = BIN / "nlvideo-train"
    command = [
        script,
        *TINY,
        f"data.root={video_folder}",
        "num_devices=2",
        "data.train=nothing.csv",
        "optim.batch_size=4",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "nothing.csv does not exist" in done.stderr


def test_a_folder_without_checkpoint_is_resumed_as_the_same_run_only(video_folder, tmp_path):
    train(config_of(video_folder, tmp_path / "run"))
    (tmp_path / "run/checkpoint.pt").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints")
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="holds another run than the one asked for:\n  seed: 0 -> 7"):
        train(config_of(video_folder, tmp_path / "run", "resume=auto", "seed=7"))
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_a_checkpoint_of_a_newer_program_is_not_passed_over(video_folder, tmp_path):
    train(config_of(video_folder, tmp_path / "run"))
    newer = load_checkpoint(tmp_path / "run/checkpoint.pt") | {"format": 99}
    torch.save(newer, tmp_path / "run/checkpoints/step_00000004.pt")
    with pytest.raises(ValueError, match=r"was written by a newer nlvideo \(format 99"):
        train(config_of(video_folder, tmp_path / "run", "resume=auto"))


def test_a_run_without_a_whole_checkpoint_is_not_started_again(video_folder, tmp_path):
    train(config_of(video_folder, tmp_path / "run"))
    for file in (tmp_path / "run/checkpoints").iterdir():
        file.write_bytes(b"torn")
    with pytest.raises(ValueError, match="No checkpoint in .*run can be resumed from:\n  .*step_00000004.pt is not"):
        train(config_of(video_folder, tmp_path / "run", "resume=auto"))


def test_two_programs_do_not_train_in_one_folder(video_folder, tmp_path):
    (tmp_path / "run").mkdir()
    imports = "from pathlib import Path; from nlvideo.runtime.folder_lock import lock_folder"
    program = f"{imports}; lock_folder(Path('{tmp_path}/run'))"
    command = [sys.executable, "-c", f"{program}; print('claimed', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "claimed\n"
        with pytest.raises(FileExistsError, match="is in use by another process"):
            train(config_of(video_folder, tmp_path / "run"))
        other.communicate("\n")
    train(config_of(video_folder, tmp_path / "run", "resume=auto"))


def test_more_devices_than_there_are_is_refused(monkeypatch):
    from nlvideo.runtime.launch import launch_ranks

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="num_devices=3: this machine has 2 GPUs"):
        launch_ranks(print, None, 3)
