"""data.clips_per_video in a run: what is refused, what is said, and how epochs are counted."""

import pytest
import torch
from conftest import composed
from runs import config_of, rows_of

from nlvideo.build.data import train_batches
from nlvideo.data.clips.train_clips import TrainClips
from nlvideo.runtime.distributed import World
from nlvideo.runtime.errors import UserError
from nlvideo.train import train
from nlvideo.training.dry_run import DRY_STEPS
from nlvideo.training.preflight import in_steps
from nlvideo.training.setup import check_shares, set_up
from nlvideo.weights.function_keys import FUNCTION_KEYS


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.clips_per_video=0"], "data.clips_per_video=0: must be at least 1"),
        (
            ["data.clips_per_video=3"],
            "data.clips_per_video=3: the clips of a video stay in one micro-batch, so optim.batch_size=64 must be a "
            "multiple of 3, with num_devices=1 and optim.accumulate=1",
        ),
        (["data.clips_per_video=16", "num_devices=2", "optim.accumulate=4"], "must be a multiple of 128"),
        (
            ["data.clips_per_video=4", "num_devices=16", "optim.cutmix=1"],
            "optim.cutmix=1.0 mixes the clips of a micro-batch in pairs of two videos with data.clips_per_video=4: "
            "optim.batch_size=64 must be a multiple of 128",
        ),
    ],
)
def test_batches_that_part_the_clips_of_a_video_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        composed("data.root=x", *overrides)


def test_also_where_torchrun_says_how_many_ranks_there_are():
    config = composed("data.root=x", "data.clips_per_video=8", "optim.accumulate=2")
    for size in (1, 2, 4):
        check_shares(config, World(0, 0, size, torch.device("cpu")))
    with pytest.raises(UserError, match="data.clips_per_video=8: .* optim.batch_size=64 must be a multiple of 128"):
        check_shares(config, World(0, 0, 8, torch.device("cpu")))
    config.optim.mixup = 0.2
    check_shares(config, World(0, 0, 2, torch.device("cpu")))
    with pytest.raises(UserError, match="in pairs of two videos: optim.batch_size=64 must be a multiple of 128, twice"):
        check_shares(config, World(0, 0, 4, torch.device("cpu")))


def test_a_run_mixes_the_clips_of_two_videos(video_folder, tmp_path):
    options = ["optim.batch_size=4", "data.clips_per_video=2", "optim.mixup=1"]
    run = set_up(config_of(video_folder, tmp_path / "run", *options))
    place = {"first_step": 0, "last_step": 1}
    (batch,) = next(train_batches(run.config.data, run.train_table, run.share(), run.skipped, seed=0, **place))
    assert batch.videos[0] == batch.videos[1] != batch.videos[2] == batch.videos[3]
    _, shares = run.learner.mixer(batch.clips.float(), torch.arange(4), batch.places, 4)
    assert [row.nonzero().flatten().tolist() for row in shares] == [[0, 2], [1, 3], [0, 2], [1, 3]]


def test_an_epoch_is_as_many_clips_as_videos_are_listed_whatever_each_gives():
    options = ("data.root=x", "optim.batch_size=10", "optim.max_epochs=50", "validate_every_epochs=2")
    one, two = (in_steps(composed(*options, f"data.clips_per_video={k}"), 11) for k in (1, 2))
    assert one.optim.max_steps == two.optim.max_steps == 55
    assert one.validate_every_steps == two.validate_every_steps


def test_the_plan_says_how_epochs_are_counted(video_folder, tmp_path, capsys):
    options = ["optim.max_steps=3", "optim.batch_size=4", "validate_every_steps=3"]
    train(config_of(video_folder, tmp_path / "one", *options))
    assert "steps     3 of 4 clips, 2.0 epochs\n" in capsys.readouterr().out
    train(config_of(video_folder, tmp_path / "two", *options, "data.clips_per_video=2"))
    assert (
        "steps     3 of 4 clips, 2.0 epochs of 6 clips: 2 of each video that is drawn, 1.0 passes over the list "
        "(data.clips_per_video)\n"
    ) in capsys.readouterr().out
    assert len(rows_of(tmp_path / "one")) == len(rows_of(tmp_path / "two")) == 4


def test_it_is_not_taken_over_from_pretrained_weights():
    assert "data.clips_per_video" not in FUNCTION_KEYS


def test_a_dry_run_loads_one_clip_of_each_video_to_know_what_validations_take(video_folder, tmp_path, monkeypatch):
    read, asked = TrainClips.__getitems__, []
    monkeypatch.setattr(TrainClips, "__getitems__", lambda self, keys: asked.append(keys) or read(self, keys))
    train(config_of(video_folder, tmp_path / "run", "optim.batch_size=4", "data.clips_per_video=2", "dry_run=true"))
    *steps, alone = [[key.clip for key in keys] for keys in asked]
    assert steps == [[0, 1, 0, 1]] * DRY_STEPS and alone == [0, 0, 0, 0]
    asked.clear()
    train(config_of(video_folder, tmp_path / "run", "optim.batch_size=4", "dry_run=true"))
    assert len(asked) == DRY_STEPS
