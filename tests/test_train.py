"""Whole runs of a thin network on tiny videos, in this process and in others."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kills import equal
from runs import BIN, TINY, assert_equal, config_of, rows_of, torchrun, weights_of

from nlvideo.models.non_local import NonLocalBlock
from nlvideo.runtime.errors import RunFailed
from nlvideo.train import train, train_step, validate
from nlvideo.training.run_status import read_status
from nlvideo.training.setup import set_up
from nlvideo.weights.checkpoint_file import evaluation_weights, load_checkpoint, save_step


def test_a_run_leaves_checkpoint_metrics_tensorboard_and_curves(video_folder, tmp_path, capsys):
    train(config_of(video_folder, tmp_path / "run"))
    checkpoint = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 4 and checkpoint["classes"] == ["0", "1", "2"]
    assert checkpoint["config"]["model"]["width"] == 4
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if row["split"] == "val"] == [2, 4]
    assert rows[0].keys() == {"split", "step", "loss", "top1", "lr", "grad_norm", "skipped_updates", "bad_share"}
    assert all(row["top1"] in (0, 0.5, 1) for row in rows if row["split"] == "train")  # of two clips
    assert all(row["num_videos"] == 5 for row in rows if row["split"] == "val")
    assert list((tmp_path / "run/tensorboard").iterdir())
    assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "blocks    1 non_local after res4.4" in out
    assert "lr        0.0025 = 0.02 x 2/16" in out
    assert "eta" in out and "checkpoint.pt" in out and "curves.png" in out


def test_the_same_config_gives_the_same_run_with_and_without_workers(video_folder, tmp_path):
    train(config_of(video_folder, tmp_path / "a"))
    train(config_of(video_folder, tmp_path / "b", "data.num_workers=2"))
    assert_equal(weights_of(tmp_path / "a"), weights_of(tmp_path / "b"))
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")
    train(config_of(video_folder, tmp_path / "c", "seed=1"))
    assert rows_of(tmp_path / "a") != rows_of(tmp_path / "c")


class StopAt:
    """Sends this process a signal after a number of steps."""

    def __init__(self, monkeypatch, steps: int, number: int):
        import nlvideo.train

        self.left, self.number, self.step = steps, number, nlvideo.train.train_step
        monkeypatch.setattr(nlvideo.train, "train_step", self)

    def __call__(self, run, batch):
        loss = self.step(run, batch)
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
        return loss


@pytest.mark.parametrize(
    ("number", "more"),
    [
        (signal.SIGINT, []),
        (signal.SIGTERM, ["log_every_steps=4", "optim.accumulate=2", "optim.batch_size=4"]),
        (signal.SIGUSR1, ["precise_bn_steps=1", "optim.max_grad_norm=0.5"]),
        (signal.SIGUSR2, ["precision=float16", "model.activation_checkpointing=[res2,res4]", "data.num_frames=2"]),
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(video_folder, tmp_path, monkeypatch, number, more):
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

        def crash(run, batch):
            seen.append(1)
            if len(seen) == 4:
                raise MemoryError
            return step(run, batch)

        patch.setattr(nlvideo.train, "train_step", crash)
        with pytest.raises(MemoryError):
            train(config_of(video_folder, tmp_path / "crashed", *options))
    assert [row["step"] for row in rows_of(tmp_path / "crashed")] == [1, 2, 2, 3]
    train(config_of(video_folder, tmp_path / "crashed", *options, "resume=auto"))
    assert_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "crashed"))
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "crashed")


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
    ],
)
def test_resuming_as_another_run_is_refused_with_the_difference(video_folder, tmp_path, override, message):
    train(config_of(video_folder, tmp_path / "run", "optim.max_steps=1"))
    with pytest.raises(ValueError, match=message):
        train(config_of(video_folder, tmp_path / "run", "resume=auto", override))


def test_resuming_with_another_list_is_refused(video_folder, tmp_path):
    rows = (video_folder / "train.csv").read_text().splitlines()
    (tmp_path / "list.csv").write_text("\n".join(rows))
    options = [f"data.train={tmp_path}/list.csv", "optim.max_steps=1"]
    train(config_of(video_folder, tmp_path / "run", *options))
    (tmp_path / "list.csv").write_text("\n".join(rows[::-1]))
    with pytest.raises(ValueError, match="the training list: .* has other videos, labels or class names"):
        train(config_of(video_folder, tmp_path / "run", *options, "resume=auto"))


def test_a_loss_that_is_not_finite_stops_and_names_step_and_videos(video_folder, tmp_path, monkeypatch):
    import nlvideo.train

    step, seen = nlvideo.train.train_step, []

    def break_weights(run, batch):
        seen.append(batch)
        if len(seen) == 3:
            run.network.fc.weight.data[0] = float("nan")
        return step(run, batch)

    monkeypatch.setattr(nlvideo.train, "train_step", break_weights)
    with pytest.raises(RunFailed, match=r"loss is nan and .* at step 3, on the videos train/a video \d.mp4, train/a"):
        train(config_of(video_folder, tmp_path / "run"))
    assert all(torch.isfinite(value).all() for value in weights_of(tmp_path / "run").values())  # of step 2


def broken(video_folder, tmp_path, count: int) -> str:
    """A training list whose first videos are broken."""
    (tmp_path / "broken.mp4").write_text("no video")
    rows = (video_folder / "train.csv").read_text().splitlines()
    for i in range(count):
        rows[i] = f"{tmp_path}/broken.mp4 {i % 3}"
    (tmp_path / "broken.csv").write_text("\n".join(rows))
    return f"data.train={tmp_path}/broken.csv"


def test_bad_videos_are_replaced_and_counted(video_folder, tmp_path):
    option = broken(video_folder, tmp_path, 1)
    train(config_of(video_folder, tmp_path / "run", option, "data.max_bad_share=0.9", "optim.max_steps=6"))
    last = [row for row in rows_of(tmp_path / "run") if row["split"] == "train"][-1]
    assert last["bad_share"] >= 2 / 12  # two epochs


def test_too_many_bad_videos_stop_the_run(video_folder, tmp_path):
    option = broken(video_folder, tmp_path, 4)
    with pytest.raises(RunFailed, match="could not be decoded, more than data.max_bad_share=0.02 allows"):
        train(config_of(video_folder, tmp_path / "run", option))


def list_with_broken(folder, tmp_path, broken):
    """A list of 20 rows, of which so many name files that are no videos."""
    rows = [f"train/a video {i % 6}.mp4 {i % 3}\n" for i in range(20 - broken)]
    for i in range(broken):
        (tmp_path / f"broken {i}, really.mp4").write_text("no video")
        rows.insert(3 * i, f"{tmp_path}/broken {i}, really.mp4 0\n")
    (tmp_path / "list.csv").write_text("".join(rows))
    return f"data.train={tmp_path}/list.csv"


def ledger_of(folder):
    with open(folder / "bad_videos.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_over_a_list_with_bad_files_finishes_and_its_ledger_names_exactly_those(video_folder, tmp_path, workers):
    option = list_with_broken(video_folder, tmp_path, 1)  # 5 %
    settings = (option, "data.max_bad_share=0.1", "optim.max_steps=20", f"data.num_workers={workers}")
    train(config_of(video_folder, tmp_path / "run", *settings))  # 40 clips: two epochs
    ledger = ledger_of(tmp_path / "run")
    assert {row["video"] for row in ledger} == {f"{tmp_path}/broken 0, really.mp4"}
    asked = [row for row in ledger if row["epoch"] in "01"]
    assert {row["epoch"] for row in asked} == {"0", "1"}
    assert all("Invalid data" in row["reason"] and row["replaced_by"].startswith("train/a video") for row in ledger)
    assert rows_of(tmp_path / "run")[-2]["bad_share"] == len(ledger) / 40


def test_a_run_with_too_many_bad_files_stops_and_has_named_them(video_folder, tmp_path):
    option = list_with_broken(video_folder, tmp_path, 6)  # 30 %
    with pytest.raises(RunFailed, match="more than data.max_bad_share=0.1 allows; .*bad_videos.csv names each"):
        train(config_of(video_folder, tmp_path / "run", option, "data.max_bad_share=0.1", "optim.max_steps=20"))
    assert {"broken" in row["video"] for row in ledger_of(tmp_path / "run")} == {True}


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


def test_undecodable_validation_videos_count_as_wrong(video_folder, tmp_path):
    (tmp_path / "broken.mp4").write_text("no video")
    (tmp_path / "val.csv").write_text((video_folder / "val.csv").read_text() + f"{tmp_path}/broken.mp4 0\n")
    train(config_of(video_folder, tmp_path / "run", f"data.val={tmp_path}/val.csv", "optim.max_steps=1"))
    row = rows_of(tmp_path / "run")[-1]
    assert (row["num_videos"], row["num_undecodable"]) == (6, 1)
    assert row["top5"] == pytest.approx(5 / 6)  # three classes: every decoded video is among the best three


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
        (["num_devices=2", "optim.batch_size=3"], ValueError, "batch_size=3 cannot be shared evenly"),
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


# ---- several processes ----

WORKER = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_train import five_steps
five_steps(*sys.argv[2:])
"""


def five_steps(video_folder, output, batch_size, *overrides):
    """Five steps in float64 with frozen batch norm and no dropout; rank 0 saves losses and weights."""
    config = config_of(
        video_folder,
        f"{output}_run",
        "precision=float64",
        "model.frozen_bn=true",
        "block.norm=false",
        "block.places.r50=[res3.1,res4.4]",
        f"optim.batch_size={batch_size}",
        "optim.max_steps=5",
        "optim.lr=0.05",
        *overrides,
    )
    from nlvideo.build.data import train_batches
    from nlvideo.runtime import distributed

    run = set_up(config)
    for name, module in run.network.named_modules():  # gains of zero would leave most of the network out
        if name.endswith("bn3"):
            torch.nn.init.constant_(module.weight, 0.5)
        if isinstance(module, NonLocalBlock):
            torch.nn.init.normal_(module.out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    world = run.world
    steps = train_batches(config.data, run.train_table, run.share(), run.skipped, seed=0, first_step=0, last_step=5)
    losses = []
    for passes in steps:
        (loss,) = distributed.sum_over_ranks([train_step(run, passes).loss])
        losses.append(loss / world.size)
    if world.is_main:
        torch.save({"losses": losses, "model": run.network.state_dict(), "size": world.size}, output)
    distributed.leave_world()


def test_two_processes_and_two_passes_equal_one_with_the_doubled_batch(video_folder, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    five_steps(str(video_folder), str(tmp_path / "one.pt"), "4")
    five_steps(str(video_folder), str(tmp_path / "passes.pt"), "4", "optim.accumulate=2")
    done = torchrun(
        2, str(tmp_path / "worker.py"), str(Path(__file__).parent), str(video_folder), str(tmp_path / "two.pt"), "4"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, passes, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "passes", "two"))
    assert (one["size"], passes["size"], two["size"]) == (1, 1, 2)
    assert len(set(one["losses"])) == 5
    for other in (passes, two):
        torch.testing.assert_close(torch.tensor(one["losses"]), torch.tensor(other["losses"]), rtol=0, atol=1e-10)
        for key, value in one["model"].items():
            torch.testing.assert_close(
                value, other["model"][key], rtol=0, atol=1e-10, msg=lambda m, key=key: f"{key}: {m}"
            )


def test_two_processes_name_the_same_bad_videos_as_one(video_folder, tmp_path):
    option = list_with_broken(video_folder, tmp_path, 2)
    options = [*TINY, option, f"data.root={video_folder}", "data.max_bad_share=0.9", "optim.batch_size=4"]
    for devices in (1, 2):
        command = [BIN / "nlvideo-train", *options, f"num_devices={devices}", f"output_dir={tmp_path}/{devices}"]
        done = subprocess.run([*command, "optim.max_steps=5"], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (ledger_of(tmp_path / str(devices)) for devices in (1, 2))
    order = sorted(one, key=lambda row: (row["step"], row["video"], row["replaced_by"]))
    assert len(one) >= 2 and order == sorted(two, key=lambda row: (row["step"], row["video"], row["replaced_by"]))


def test_num_devices_starts_the_processes_itself(video_folder, tmp_path):
    overrides = [*TINY, f"data.root={video_folder}", "num_devices=2", "optim.batch_size=4"]
    script = BIN / "nlvideo-train"
    command = [script, *overrides, f"output_dir={tmp_path}/run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "device    2 x cpu" in done.stdout and "this run takes 4 (2 x 2)" in done.stdout
    val = [row for row in rows_of(tmp_path / "run") if row["split"] == "val"]
    assert [(row["step"], row["num_videos"]) for row in val] == [(2, 5), (4, 5)]


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


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_ctrl_c_in_a_terminal_writes_a_checkpoint(video_folder, tmp_path, method):
    script = BIN / "nlvideo-train"
    options = ["optim.max_steps=100000", "data.num_workers=1", f"data.start_method={method}"]
    options += [f"output_dir={tmp_path}/run", "validate_every_steps=100000"]
    command = [script, *TINY, f"data.root={video_folder}", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers too
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, output[-2000:]
    assert "resume=auto goes on from here" in output and "Traceback" not in output
    steps = [row["step"] for row in rows_of(tmp_path / "run")]
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["step"] == max(steps)


def test_validation_uses_rank_0s_statistics_everywhere(video_folder, tmp_path):
    run = set_up(config_of(video_folder, tmp_path / "run"))
    assert validate(run) == validate(run)
    assert not run.network.training


def test_a_run_stopped_at_a_validation_step_validates_when_it_goes_on(video_folder, tmp_path, monkeypatch):
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


def test_a_folder_without_checkpoint_is_resumed_as_the_same_run_only(video_folder, tmp_path):
    train(config_of(video_folder, tmp_path / "run"))
    (tmp_path / "run/checkpoint.pt").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints")
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="holds another run than the one asked for:\n  seed: 0 -> 7"):
        train(config_of(video_folder, tmp_path / "run", "resume=auto", "seed=7"))
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("how", ["cut short", "one bit flipped"])
def test_a_damaged_newest_checkpoint_is_skipped_with_its_reason(video_folder, tmp_path, capsys, how):
    train(config_of(video_folder, tmp_path / "whole", "checkpoint_every_steps=1"))
    train(config_of(video_folder, tmp_path / "run", "checkpoint_every_steps=1"))
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
    from nlvideo.data.clips.datasets import TrainClips

    train(config_of(video_folder, tmp_path / "run", "optim.max_steps=4", "optim.schedule=steps"))
    read, asked = TrainClips.__getitem__, []
    monkeypatch.setattr(TrainClips, "__getitem__", lambda self, key: asked.append(key) or read(self, key))
    train(config_of(video_folder, tmp_path / "run", "optim.max_steps=6", "optim.schedule=steps", "resume=auto"))
    assert len(asked) == 4  # two steps of two clips


def test_the_last_checkpoints_and_the_best_are_kept(video_folder, tmp_path):
    run = tmp_path / "run"
    train(config_of(video_folder, run, "optim.max_steps=6", "checkpoint_every_steps=1", "keep=2"))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000005.pt", "step_00000006.pt"]
    assert load_checkpoint(run / "checkpoint.pt")["step"] == 6
    rows = [row for row in rows_of(run) if row["split"] == "val"]
    best = max(rows, key=lambda row: row["top1"])  # the first of equals
    assert load_checkpoint(run / "checkpoint_best.pt")["step"] == best["step"]


def test_resuming_with_other_processes_or_passes_says_what_changes(video_folder, tmp_path, capsys):
    options = ["optim.batch_size=4", "optim.schedule=steps"]
    train(config_of(video_folder, tmp_path / "run", *options, "optim.max_steps=2"))
    capsys.readouterr()
    train(config_of(video_folder, tmp_path / "run", *options, "resume=auto", "optim.max_steps=3", "optim.accumulate=2"))
    out = capsys.readouterr().out
    assert "          1 processes with 2 passes instead of 1 with 1: the same clips a step, but trained batch" in out
    with pytest.raises(ValueError, match="precision: float32 -> bfloat16"):
        train(config_of(video_folder, tmp_path / "run", *options, "resume=auto", "precision=bfloat16"))


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


def test_precise_statistics_are_for_validation_and_evaluation_only(video_folder, tmp_path):
    train(config_of(video_folder, tmp_path / "plain"))
    train(config_of(video_folder, tmp_path / "precise", "precise_bn_steps=3"))
    assert_equal(weights_of(tmp_path / "plain"), weights_of(tmp_path / "precise"))  # running statistics too
    checkpoint = load_checkpoint(tmp_path / "precise/checkpoint.pt")
    state = evaluation_weights(checkpoint)
    changed = {key for key in state if not torch.equal(state[key], checkpoint["model"][key])}
    assert changed and all("running_" in key for key in changed)
    assert changed <= checkpoint["precise_bn"].keys()


def test_a_compiled_network_trains_the_same_weights(video_folder, tmp_path, monkeypatch):
    """Traced and differentiated as inductor would, but run by PyTorch, since compiling takes minutes."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled(self, backend="aot_eager"))
    train(config_of(video_folder, tmp_path / "plain", "optim.max_steps=2"))
    train(config_of(video_folder, tmp_path / "compiled", "optim.max_steps=2", "compile=true"))
    plain, compiled = weights_of(tmp_path / "plain"), weights_of(tmp_path / "compiled")
    assert plain.keys() == compiled.keys()
    for key, value in plain.items():
        torch.testing.assert_close(value, compiled[key], rtol=1e-3, atol=1e-4)


def test_a_profile_and_tensorboard_show_what_happens(video_folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config_of(video_folder, tmp_path / "run", "optim.max_steps=6", "profile_steps=2"))
    (trace,) = (tmp_path / "run/trace").glob("*.pt.trace.json")
    assert any("aten::conv3d" in event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"])
    board = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    tags = board.Tags()
    assert tags["images"] == ["clips"]
    wanted = {f"train/{name}" for name in ("loss", "lr", "grad_norm", "clips_per_second", "data_wait_share")}
    wanted |= {f"train/{name}_share" for name in ("forward", "backward", "communication")}
    assert wanted | {"gain/res4.4", "val/top1"} <= set(tags["scalars"])
    gains = [event.value for event in board.Scalars("gain/res4.4")]
    assert 0 < gains[0] < gains[-1]  # a new block's gain is zero


def test_a_run_that_is_stopped_while_it_validates_gives_up_and_validates_when_it_goes_on(
    video_folder, tmp_path, monkeypatch
):
    import nlvideo.train

    options = ["validate_every_steps=3", "checkpoint_every_steps=100", "precise_bn_steps=1"]
    train(config_of(video_folder, tmp_path / "whole", *options))
    batches, seen = nlvideo.train.center_batches, []

    def interrupted(*arguments, **place):
        for batch in batches(*arguments, **place):
            seen.append(batch)
            os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(nlvideo.train, "center_batches", interrupted)
        with pytest.raises(SystemExit):
            train(config_of(video_folder, tmp_path / "run", *options))
    assert len(seen) == 1  # of three
    assert read_status(tmp_path / "run")["state"] == "stopped"
    assert [row["split"] for row in rows_of(tmp_path / "run")] == ["train"] * 3
    assert load_checkpoint(tmp_path / "run/checkpoint.pt")["step"] == 3
    train(config_of(video_folder, tmp_path / "run", *options, "resume=auto"))
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")
    assert_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "run"))


def test_more_devices_than_there_are_is_refused(monkeypatch):
    from nlvideo.runtime import distributed

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="num_devices=3: this machine has 2 GPUs"):
        distributed.launch(print, None, 3)
