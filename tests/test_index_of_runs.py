"""Runs with an index are those without one, bit for bit; what they say about it."""

import dataclasses
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import write_grey_video
from runs import assert_equal, config_of, rows_of, weights_of

import nlvideo
from nlvideo.build.tables import read_train_table
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.index.video_index import INDEX_FILE, VideoIndex
from nlvideo.runtime.errors import UserError
from nlvideo.train import train
from nlvideo.training.data_warnings import data_warnings
from nlvideo.training.known_videos import known_videos

NUM_VIDEOS = 11


@pytest.fixture
def videos(video_folder, tmp_path):
    """A folder of its own, without an index."""
    return Path(shutil.copytree(video_folder, tmp_path / "videos", ignore=shutil.ignore_patterns(f"{INDEX_FILE}*")))


@pytest.fixture
def scans(monkeypatch):
    """The files whose packets this process has read."""
    found, scan = [], PyavVideo._read_index
    monkeypatch.setattr(PyavVideo, "_read_index", lambda video: found.append(video.path) or scan(video))
    return found


def known_to(file) -> int:
    return VideoIndex(file, grows=False).count()


def warnings_of(data, table) -> str:
    return " ".join(data_warnings(data, table, table, known_videos(data, table)))


@pytest.mark.slow
def test_a_run_with_an_index_is_the_run_without(videos, tmp_path, scans):
    broken = videos / "train/a video 2.mp4"
    broken.write_bytes(broken.read_bytes()[:-400])
    shared = ["optim.max_steps=6", "validate_every_steps=3", "data.max_bad_share=0.9"]
    for name, *overrides in (
        ("without", "data.index=none"),
        ("first", "data.index=null"),
        ("second", "data.index=null"),
        ("workers", f"data.index={tmp_path}/elsewhere", "data.num_workers=2"),
        ("workers again", f"data.index={tmp_path}/elsewhere", "data.num_workers=2", "data.start_method=spawn"),
    ):
        scans.clear()
        train(config_of(videos, tmp_path / name, *shared, *overrides))
        if name == "without":
            assert not (videos / INDEX_FILE).exists()
        if name == "second":
            assert scans == []
        assert_equal(weights_of(tmp_path / "without"), weights_of(tmp_path / name))
        assert rows_of(tmp_path / "without") == rows_of(tmp_path / name)
    assert known_to(videos / INDEX_FILE) == known_to(tmp_path / "elsewhere") == NUM_VIDEOS - 1


@pytest.mark.slow
def test_an_evaluation_and_a_prediction_with_an_index_are_those_without(videos, tmp_path, scans, capsys):
    train(config_of(videos, tmp_path / "run", f"data.index={tmp_path}/of_training"))
    scores = {}
    for name, index in (("without", "none"), ("first", "null"), ("second", "null")):
        scans.clear()
        out = tmp_path / name
        nlvideo.evaluate(tmp_path / "run", [f"output_dir={out}", f"data.index={index}", "data.num_workers=0"])
        scores[name] = np.load(out / "scores.npz")["scores"]
        assert np.array_equal(scores[name], scores["without"])
    assert scans == [] and known_to(videos / INDEX_FILE) == 5
    video = videos / "val/a video 0.mp4"
    assert nlvideo.Predictor(tmp_path / "run").config.data.index is None
    for _ in range(2):
        scans.clear()
        predictor = nlvideo.Predictor(tmp_path / "run", "cpu", settings={"data.index": str(tmp_path / "mine")})
        assert np.array_equal(predictor.scores(video), nlvideo.Predictor(tmp_path / "run", "cpu").scores(video))
        del predictor
    assert known_to(tmp_path / "mine") == 1 and scans == [str(video)]  # of the predictor without an index


@pytest.mark.slow
def test_a_dry_run_makes_no_index_and_uses_the_one_that_is_there(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nlvideo.training.dry_run.print_memory", lambda *_: None)  # which takes long
    train(config_of(videos, tmp_path / "out", "dry_run=true"))
    assert not [path for path in videos.iterdir() if path.name.startswith(INDEX_FILE)]
    assert "in the index" not in capsys.readouterr().out
    train(config_of(videos, tmp_path / "run", "optim.max_steps=6"))
    capsys.readouterr()
    asked = []
    for module in ("nlvideo.train", "nlvideo.training.known_videos"):
        monkeypatch.setattr(f"{module}.known_videos", lambda *given: asked.append(given) or known_videos(*given))
    train(config_of(videos, tmp_path / "out", "dry_run=true"))
    assert len(asked) == 1  # it takes seconds for a long list
    said = "6 of the 6 training videos looked at are in the index: 0.4 to 1.6 s, median 1.6 s, at 25 frames per second"
    assert said in capsys.readouterr().out
    before = (videos / INDEX_FILE).read_bytes()
    for path in videos.glob("train/*"):
        os.utime(path, ns=(0, 1))
    train(config_of(videos, tmp_path / "out", "dry_run=true"))
    assert (videos / INDEX_FILE).read_bytes() == before and not list(videos.glob(f"{INDEX_FILE}.*.notes"))


def test_short_videos_and_mixed_rates_are_known_without_opening_any(videos, tmp_path, scans):
    config = config_of(videos, tmp_path / "run", "data.num_frames=8", "data.frame_stride=4", "optim.max_steps=6")
    train(config)
    table = read_train_table(config.data)
    scans.clear()
    assert "1 of the 6 training videos looked at are shorter" in warnings_of(config.data, table)
    slow = dataclasses.replace(config.data, clip_fps=12.5)
    assert known_videos(slow, table).taken.tolist() == [20, 5, 20, 20, 20, 20]
    assert "6 of the 6" in warnings_of(slow, table) and scans == []
    path = videos / "train/a video 0.mp4"
    write_grey_video(path, 40)
    os.utime(path, ns=(0, 5))
    assert len(known_videos(config.data, table).taken) == 5
    assert known_videos(config.data, table).mixed_rates() is None
    with sqlite3.connect(videos / INDEX_FILE) as database:
        database.execute("UPDATE videos SET fps = 50 WHERE name = ?", (b"train/a video 3.mp4",))
    assert len(known_videos(config.data, table).taken) == 4  # a row that was changed is none


def test_rates_that_differ_are_named(videos, tmp_path):
    known = known_videos(config_of(videos, tmp_path / "x").data, read_train_table(config_of(videos, "x").data))
    assert len(known.taken) == 0 and known.mixed_rates() is None
    mixed = known._replace(fps=np.array([25.0, 50.0]))
    assert mixed.mixed_rates().startswith("training videos have 25 to 50 frames per second")


def test_what_is_wrong_with_an_index_is_said_once(videos, tmp_path, capsys, monkeypatch):
    (videos / INDEX_FILE).touch()
    train(config_of(videos, tmp_path / "run", "data.num_workers=2"))
    out = capsys.readouterr().out
    assert out.count("it is made anew") == 1 and f"{INDEX_FILE} is empty" in out
    assert known_to(videos / INDEX_FILE) > 0
    monkeypatch.setattr("nlvideo.data.index.video_index.os.access", lambda *_: False)
    (videos / INDEX_FILE).unlink()
    data = config_of(videos, tmp_path / "x").data
    said = f"no index of the videos is kept: {videos} cannot be written; data.index=FILE keeps it elsewhere"
    assert said in warnings_of(data, read_train_table(data))


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("{}", "this is a folder"),
        ("{}/no/index", "the folder {}/no does not exist"),
        ("{}/videos/train.csv", "this file is no index of videos, and is not overwritten"),
        ("{}/foreign.sqlite", "this file is no index of videos, and is not overwritten"),
        ("/dev/null", "this file is no index of videos, and is not overwritten"),
    ],
)
def test_an_index_that_cannot_be_is_refused(videos, tmp_path, index, reason):
    index, reason = index.format(tmp_path), reason.format(tmp_path)
    with closing(sqlite3.connect(tmp_path / "foreign.sqlite")) as database, database:
        database.execute("PRAGMA application_id=7")
    before = {path: path.read_bytes() for path in (videos / "train.csv", tmp_path / "foreign.sqlite")}
    with pytest.raises(UserError, match=f"data.index={index}: {reason}. Give a file"):
        train(config_of(videos, tmp_path / "run", f"data.index={index}"))
    assert all(path.read_bytes() == data for path, data in before.items())
