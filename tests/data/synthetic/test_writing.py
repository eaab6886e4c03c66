import json

import numpy as np
import pytest

from nlvideo.data.decoding.opening import open_video
from nlvideo.data.lists.class_file import read_classes
from nlvideo.data.lists.path_list import read_table
from nlvideo.data.synthetic import writing
from nlvideo.data.synthetic.motions import MOTIONS, Action, render
from nlvideo.data.synthetic.writing import write_set

SETTINGS = {"num_train": 16, "num_val": 8, "num_frames": 12, "height": 48, "seed": 3}


def render_of(label, seed=0, num_frames=24):
    return render([Action(label, 0, num_frames)] * 3, num_frames, 48, np.random.default_rng(seed))


def test_a_clip_follows_from_its_seed():
    assert np.array_equal(render_of(0), render_of(0))
    assert not np.array_equal(render_of(0), render_of(0, seed=1))


def test_classes_share_their_first_frame_and_differ_after_it():
    clips = [render_of(label) for label in range(len(MOTIONS))]
    for a in range(len(MOTIONS)):
        assert np.array_equal(clips[a][0], clips[0][0])
        for b in range(a):
            assert not np.array_equal(clips[a][1], clips[b][1])


@pytest.mark.parametrize("t", [0, 11, 23])
def test_one_frame_tells_nothing_about_the_class(t):
    """At any time the mean picture and its variance are those of every other class."""
    frames = np.stack(
        [[render_of(label, seed=1000 * label + i)[t] for i in range(60)] for label in range(len(MOTIONS))]
    ).astype(float)  # (classes, clips, H, W, 3)
    brightness = frames.mean((2, 3, 4))  # how much of the frame the shapes cover shows in it
    overall, spread = brightness.mean(), brightness.std() / 60**0.5
    assert (abs(brightness.mean(1) - overall) < 4 * spread).all()


def test_the_set_is_written_once_and_the_same_again(tmp_path):
    write_set("motions", tmp_path / "a", **SETTINGS)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.mp4")}
    assert len(times) == 24
    write_set("motions", tmp_path / "a", **SETTINGS)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.mp4")}
    write_set("motions", tmp_path / "b", **SETTINGS)
    for path in times:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_the_set_is_a_list_like_any_other(tmp_path):
    write_set("motions", tmp_path, **SETTINGS)
    table = read_table(str(tmp_path), "train.csv", read_classes(tmp_path / "classes.txt"))
    assert table.classes == MOTIONS and len(table) == 16
    assert np.bincount(table.targets).tolist() == [2] * 8
    with open_video(table.path(0)) as video:
        assert (video.num_frames, video.height, video.width) == (12, 48, 64)


def test_an_interrupted_writing_goes_on(tmp_path):
    write_set("motions", tmp_path, **SETTINGS)
    card = json.loads((tmp_path / "synthetic.json").read_text())
    (tmp_path / "synthetic.json").write_text(json.dumps(card | {"complete": False}))
    gone = (tmp_path / "train/00003.mp4").read_bytes()
    (tmp_path / "train/00003.mp4").unlink()
    write_set("motions", tmp_path, **SETTINGS)
    assert (tmp_path / "train/00003.mp4").read_bytes() == gone
    assert json.loads((tmp_path / "synthetic.json").read_text())["complete"]


def test_other_settings_and_other_folders_are_refused(tmp_path):
    write_set("motions", tmp_path / "set", **SETTINGS)
    with pytest.raises(ValueError, match="holds a synthetic set with other settings"):
        write_set("motions", tmp_path / "set", **(SETTINGS | {"seed": 4}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and holds no synthetic set"):
        write_set("motions", tmp_path / "mine", **SETTINGS)


def test_a_process_that_waited_for_another_finds_its_set_and_writes_nothing(tmp_path, monkeypatch):
    def wait(*_, **__):  # until the other one is ready
        monkeypatch.undo()
        write_set("motions", tmp_path, **SETTINGS)
        monkeypatch.setattr(writing, "_write_videos", None)

    monkeypatch.setattr(writing, "lock_file", wait)
    write_set("motions", tmp_path, **SETTINGS)
    assert json.loads((tmp_path / "synthetic.json").read_text())["complete"]
