"""Training, evaluation and prediction from shards: bit for bit those from files."""

import csv
import shutil
import signal
import tarfile

import numpy as np
import pytest
import torch
from runs import StopAt, assert_equal, config_of, rows_of, weights_of

from nlvideo.config.schema import EvaluateConfig
from nlvideo.data.shards.shard_writing import write_shard
from nlvideo.evaluate import evaluate
from nlvideo.prediction.command import expand_videos
from nlvideo.prediction.predictor import Predictor
from nlvideo.runtime.errors import UserError
from nlvideo.train import train


@pytest.fixture(scope="module")
def shard_folder(video_folder, tmp_path_factory):
    """The videos of video_folder in two shards, with lists that name them in the same order."""
    folder = tmp_path_factory.mktemp("shards")
    for k, split in enumerate(("train", "val")):
        files = sorted((video_folder / split).iterdir())
        write_shard(folder / f"shard_{k:05}.tar", [(f"{split}/{file.name}", file) for file in files])
        lines = (video_folder / f"{split}.csv").read_text().splitlines()
        (folder / f"{split}.csv").write_text("".join(f"shard_{k:05}.tar/{line}\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def runs(video_folder, shard_folder, tmp_path_factory):
    """Folders of a run from files and of one from shards, both evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    torch.set_num_threads(1)  # as tests have it, which begin after this
    for name, root in (("files", video_folder), ("shards", shard_folder)):
        config = config_of(root, folder / name, "data.num_workers=1")
        train(config)
        evaluate(EvaluateConfig(checkpoint=f"{folder}/{name}/checkpoint.pt", data=config.data, num_threads=1))
    return folder


def predictions(run):
    (file,) = run.glob("evaluation_*/predictions.csv")
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_training_from_shards_is_training_from_files(runs):
    assert rows_of(runs / "files") == rows_of(runs / "shards")
    assert_equal(weights_of(runs / "files"), weights_of(runs / "shards"))
    assert not (runs / "shards/bad_videos.csv").exists()


def test_evaluation_from_shards_is_that_from_files(runs):
    files, shards = predictions(runs / "files"), predictions(runs / "shards")
    assert [row.pop("video") for row in shards] == [f"shard_00001.tar/{row.pop('video')}" for row in files]
    assert files == shards
    pages = [next((runs / name).glob("evaluation_*/report.html")).read_text() for name in ("files", "shards")]
    assert pages[0].count("data:image/jpeg") == pages[1].count("data:image/jpeg") > 0


def test_a_run_that_is_stopped_resumes_from_shards(runs, shard_folder, tmp_path, monkeypatch):
    config = config_of(shard_folder, tmp_path / "run", "data.num_workers=0", "resume=auto")
    with monkeypatch.context() as patch:
        StopAt(patch, 2, signal.SIGTERM)
        train(config)
    assert rows_of(tmp_path / "run")[-1]["step"] == 2
    train(config)
    assert_equal(weights_of(runs / "files"), weights_of(tmp_path / "run"))


def test_prediction_from_shards_is_that_from_files(runs, video_folder, shard_folder):
    predictor = Predictor(runs / "files", device="cpu")
    member = f"{shard_folder}/shard_00000.tar/train/a video 2.mp4"
    assert expand_videos([member]) == [member]
    assert np.array_equal(predictor.scores(member), predictor.scores(video_folder / "train/a video 2.mp4"))
    sliding = predictor.slide(member), predictor.slide(video_folder / "train/a video 2.mp4")
    assert np.array_equal(*[timeline.scores for timeline in sliding])
    with pytest.raises(UserError, match=r"no.mp4 cannot be read \(the tar file shard_00000.tar holds no train/no.mp4"):
        expand_videos([member.replace("a video 2", "no")])


def test_members_that_are_missing_are_named_and_replaced(shard_folder, tmp_path, capsys):
    (tmp_path / "train.csv").write_text(
        (shard_folder / "train.csv").read_text() + "shard_00000.tar/train/gone.mp4 0\nshard_00001.tar/gone.mp4 1\n"
    )
    options = f"data.train={tmp_path}/train.csv", "data.max_bad_share=0.9", "optim.max_steps=6"
    train(config_of(shard_folder, tmp_path / "run", *options))
    shown = capsys.readouterr()
    assert "missing files: 2 (shard_00000.tar/train/gone.mp4, shard_00001.tar/gone.mp4)" in shown.out
    with open(tmp_path / "run/bad_videos.csv", newline="") as file:
        reasons = {row["video"]: row["reason"] for row in csv.DictReader(file)}
    expected = {
        "shard_00000.tar/train/gone.mp4": "the tar file shard_00000.tar holds no train/gone.mp4",
        "shard_00001.tar/gone.mp4": "the tar file shard_00001.tar holds no gone.mp4",
    }
    assert reasons == expected


def test_a_shard_that_is_cut_short_is_named_with_its_members(shard_folder, tmp_path, capsys):
    whole = (shard_folder / "shard_00000.tar").read_bytes()
    with tarfile.open(shard_folder / "shard_00000.tar") as tar:
        members = [member for member in tar if member.name.endswith(".mp4")]
    (tmp_path / "shard_00000.tar").write_bytes(whole[: members[-2].offset_data + 700])
    for name in ("train.csv", "val.csv", "shard_00001.tar"):
        shutil.copy(shard_folder / name, tmp_path)
    train(config_of(tmp_path, tmp_path / "run", "data.max_bad_share=0.9", "optim.max_steps=6"))
    name = "shard_00000.tar"
    cut, gone = (f"{name}/{member.name}" for member in members[-2:])
    assert f"missing files: 2 ({cut}, {gone})" in capsys.readouterr().out
    size, stop = members[-2].offset_data + 700, members[-2].offset_data + members[-2].size
    with open(tmp_path / "run/bad_videos.csv", newline="") as file:
        reasons = {row["video"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons == {
        cut: f"in {name} it is cut short: the tar file ends after {size} bytes, this video would end after {stop}",
        gone: f"{name} is cut short: it ends after {size} bytes, and up to there it holds no {members[-1].name}",
    }


def test_a_list_of_a_shard_that_is_compressed_ends_at_the_start(shard_folder, tmp_path):
    import gzip

    (tmp_path / "shard_00000.tar.gz").write_bytes(gzip.compress((shard_folder / "shard_00000.tar").read_bytes()))
    (tmp_path / "train.csv").write_text((shard_folder / "train.csv").read_text().replace(".tar/", ".tar.gz/"))
    with pytest.raises(UserError, match=r"none of its 6 videos exists; .*\(shard_00000.tar.gz is compressed \(gzip\)"):
        train(config_of(tmp_path, tmp_path / "run", f"data.val={shard_folder}/val.csv"))
