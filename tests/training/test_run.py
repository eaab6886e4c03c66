"""What a run does and leaves."""

import json

import pytest
import torch
from runs import (
    assert_equal,
    config_of,
    rows_of,
    weights_of,
)

from nlvideo.runtime.errors import RunFailed
from nlvideo.train import train, validate
from nlvideo.training.setup import set_up
from nlvideo.weights.checkpoint_file import evaluation_weights, load_checkpoint


def test_a_run_leaves_checkpoint_metrics_tensorboard_and_curves(curves, video_folder, tmp_path, capsys):
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


def test_a_loss_that_is_not_finite_stops_and_names_step_and_videos(video_folder, tmp_path, monkeypatch):
    import nlvideo.train

    step, seen = nlvideo.train.train_step, []

    def break_weights(learner, batches):
        seen.append(batches)
        if len(seen) == 3:
            learner.network.fc.weight.data[0] = float("nan")
        return step(learner, batches)

    monkeypatch.setattr(nlvideo.train, "train_step", break_weights)
    with pytest.raises(RunFailed, match=r"loss is nan and .* at step 3, on the videos train/a video \d.mp4, train/a"):
        train(config_of(video_folder, tmp_path / "run"))
    assert all(torch.isfinite(value).all() for value in weights_of(tmp_path / "run").values())  # of step 2


def test_validation_uses_rank_0s_statistics_everywhere(video_folder, tmp_path):
    run = set_up(config_of(video_folder, tmp_path / "run"))
    assert validate(run) == validate(run)
    assert not run.network.training


def test_undecodable_validation_videos_count_as_wrong(video_folder, tmp_path):
    (tmp_path / "broken.mp4").write_text("no video")
    (tmp_path / "val.csv").write_text((video_folder / "val.csv").read_text() + f"{tmp_path}/broken.mp4 0\n")
    train(config_of(video_folder, tmp_path / "run", f"data.val={tmp_path}/val.csv", "optim.max_steps=1"))
    row = rows_of(tmp_path / "run")[-1]
    assert (row["num_videos"], row["num_undecodable"]) == (6, 1)
    assert row["top5"] == pytest.approx(5 / 6)  # three classes: every decoded video is among the best three


def test_precise_statistics_are_for_validation_and_evaluation_only(video_folder, tmp_path):
    train(config_of(video_folder, tmp_path / "plain"))
    train(config_of(video_folder, tmp_path / "precise", "precise_bn_steps=3"))
    assert_equal(weights_of(tmp_path / "plain"), weights_of(tmp_path / "precise"))  # running statistics too
    checkpoint = load_checkpoint(tmp_path / "precise/checkpoint.pt")
    state = evaluation_weights(checkpoint)
    changed = {key for key in state if not torch.equal(state[key], checkpoint["model"][key])}
    assert changed and all("running_" in key for key in changed)
    assert changed <= checkpoint["precise_bn"].keys()


@pytest.mark.slow
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


def test_the_last_checkpoints_and_the_best_are_kept(video_folder, tmp_path):
    run = tmp_path / "run"
    train(config_of(video_folder, run, "optim.max_steps=6", "checkpoint_every_steps=1", "keep=2"))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000005.pt", "step_00000006.pt"]
    assert load_checkpoint(run / "checkpoint.pt")["step"] == 6
    rows = [row for row in rows_of(run) if row["split"] == "val"]
    best = max(rows, key=lambda row: row["top1"])  # the first of equals
    assert load_checkpoint(run / "checkpoint_best.pt")["step"] == best["step"]
