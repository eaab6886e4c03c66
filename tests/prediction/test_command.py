"""nlvideo-predict: what it prints, writes and refuses."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from nlvideo.prediction.command import expand_videos, main, take_paths


@pytest.fixture
def command(monkeypatch, capsys):
    """Returns a function that runs nlvideo-predict in this process: arguments -> (stdout, stderr, exit code)."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def call(*arguments) -> tuple[str, str, int]:
        monkeypatch.setattr(sys, "argv", ["nlvideo-predict", *map(str, arguments), "num_threads=1"])
        code = 0
        capsys.readouterr()
        try:
            main()
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
            code = stop.code if isinstance(stop.code, int) else 1
        out, error = capsys.readouterr()
        return out, error, code

    return call


def write_audio_file(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_one_video_prints_its_classes(command, checkpoint, video_folder, predictor):
    video = video_folder / "val/a video 0.mp4"
    out, error, code = command(video, f"checkpoint={checkpoint}", "top=2")
    assert code == 0, error
    title, *rows = out.splitlines()
    assert title == f"{video}  (2 clips x 3 crops, softmax)"
    assert [row.split() for row in rows] == [[f"{score:.3f}", name] for name, score in predictor(video, 2)]


def test_folders_globs_and_undecodable_files_as_json(command, checkpoint, video_folder, tmp_path, predictor):
    folder = tmp_path / "mixed"
    (folder / "frames").mkdir(parents=True)
    for i in range(12):
        Image.fromarray(np.full((48, 64, 3), 9 * i, np.uint8)).save(folder / f"frames/img_{i:05}.png")
    (folder / "text.mp4").write_text("no video")
    write_audio_file(folder / "sound.mp4")
    glob = f"{video_folder}/val/*[01].mp4"
    out, error, code = command(folder, glob, folder / "frames", f"checkpoint={checkpoint}", "json=true")
    rows = [json.loads(line) for line in out.splitlines()]
    names = [Path(row["video"]).name for row in rows]
    assert names == ["frames", "sound.mp4", "text.mp4", "a video 0.mp4", "a video 1.mp4"]
    assert code == 1 and error.strip().endswith("error: 2 of 5 videos could not be decoded.")
    assert f"{folder}/sound.mp4: no video stream" in error and "Traceback" not in error
    assert rows[1]["error"] == "no video stream" and "Invalid data" in rows[2]["error"]
    for row in (rows[0], *rows[3:]):
        expected = predictor(row["video"])
        assert [(guess["class"], guess["score"]) for guess in row["predictions"]] == expected
        assert row["num_views"] == 6 and row["protocol"]["short_side"] == 32


def test_sliding_writes_a_timeline_and_a_video(command, checkpoint, halves, tmp_path, predictor):
    picture, labelled = tmp_path / "timeline.png", tmp_path / "labelled.mp4"
    asked = (halves, f"checkpoint={checkpoint}", "sliding=true", "every_seconds=0.32", "json=true")
    out, error, code = command(*asked, f"timeline={picture}", f"write={labelled}")
    assert code == 0 and "without sound" in error, error
    (row,) = map(json.loads, out.splitlines())
    assert [(part["start"], part["end"]) for part in row["timeline"]][:2] == [(0, 0.32), (0.32, 0.64)]
    assert len(row["timeline"]) == row["num_views"] == 6 and row["seconds"] == 1.92
    scores = {guess["class"]: guess["score"] for guess in row["timeline"][0]["predictions"]}
    expected = predictor.slide(halves, 0.32).scores[0]
    assert [scores[str(k)] for k in range(3)] == [float(score) for score in expected]
    assert row["segments"][0]["start"] == 0 and row["segments"][-1]["end"] == 1.92
    with Image.open(picture) as opened:
        assert opened.format == "PNG" and opened.size[0] > 800 and np.asarray(opened)[..., :3].std() > 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labelled.mp4", "timeline.png"]
    out, _, _ = command(*asked[:-1])
    assert "6 windows x 1 crops" in out.splitlines()[0] and "0:00.0 -" in out
    out, error, code = command(*asked, f"write={labelled}")
    assert code == 1 and out == "" and "labelled.mp4 exists" in error


def test_which_arguments_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=b.mp4").touch()
    argv = ["nlvideo-predict", "a=b.mp4", "x.mp4", "top=2", "--cfg", "job", "-h", "*.avi"]
    assert take_paths(argv) == ["a=b.mp4", "x.mp4", "*.avi"]
    assert argv == ["nlvideo-predict", "top=2", "--cfg", "job", "-h"]
    assert expand_videos(["a=b.mp4", "./a=b.mp4", "a=b.mp4"]) == ["a=b.mp4", "./a=b.mp4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no video given"),
        (["{video}"], "checkpoint has no value; give it as checkpoint=PATH"),
        (["nowhere.mp4", "{checkpoint}"], "nowhere.mp4 does not exist"),
        (["nowhere/*.mp4", "{checkpoint}"], "nowhere/*.mp4 matches no file"),
        (["{empty}", "{checkpoint}"], "holds no video and no frames"),
        (["{tar}", "{checkpoint}"], "x.tar is a tar file: name a member of it, tars/x.tar/CLASS/name.mp4."),
        (["tars", "{checkpoint}"], "holds no video and no frames. tars/x.tar is a tar file: name a member of it"),
        (["{tar}/", "{checkpoint}"], "cannot be read (x.tar is a tar file: name a member of it, x.tar/CLASS/name.mp4)"),
        (["{video}", "checkpoint=nowhere.pt"], "The checkpoint nowhere.pt does not exist"),
        (["{video}", "checkpoint={text}"], "is not a checkpoint that can be read"),
        (["{video}", "{checkpoint}", "top=0"], "top=0: must be at least 1"),
        (["{video}", "{checkpoint}", "tpo=3"], "Did you mean top?"),
        (["{video}", "{checkpoint}", "data.root=x"], "data.root has no effect on predictions"),
        (["{video}", "{checkpoint}", "data.test.num_crops=2"], "data.test.num_crops=2: choose from 1, 3"),
        (["{video}", "{checkpoint}", "timeline=a.png"], "timeline has no effect without sliding=true"),
        (["{video}", "{checkpoint}", "sliding=true", "every_seconds=0"], "every_seconds=0.0: must be above 0"),
        (["{video}", "{checkpoint}", "sliding=true", "data.test.num_clips=3"], "num_clips has no effect with sliding"),
        (["{video}", "{checkpoint}", "write=a.avi"], "the name must end in .mp4"),
        (["{video}", "{checkpoint}", "write=nowhere/a.mp4"], "the folder nowhere does not exist"),
        (
            ["{video}", "{checkpoint}", "data.test.pooling=sum", "sliding=true"],
            "pooling=sum: sliding windows",
        ),
        (["{folder}", "{checkpoint}", "write=a.mp4"], "write=a.mp4 is for one video; 5 are given"),
        (["{text}", "{checkpoint}"], "text.mp4: Invalid data"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(command, checkpoint, video_folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "tars").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    tarfile.open(tmp_path / "tars/x.tar", "w").close()
    names = {"video": video_folder / "val/a video 0.mp4", "folder": video_folder / "val", "empty": "empty"}
    places = names | {"text": "text.mp4", "tar": "tars/x.tar", "checkpoint": f"checkpoint={checkpoint}"}
    arguments = [argument.format(**places) for argument in arguments]
    out, error, code = command(*arguments)
    lines = [line for line in error.splitlines() if "in the checkpoint" not in line]
    assert code == 1 and out == "" and message in error and "Traceback" not in error, error
    assert lines[0].startswith("error: ") and (len(lines) == 1 or "tpo" in error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "tars", "text.mp4"]


def test_the_command_in_a_process(checkpoint, video_folder, tmp_path):
    command = [sys.executable, "-m", "nlvideo.prediction.command", f"{video_folder}/val/a video 2.mp4"]
    options = [f"checkpoint={checkpoint}", "json=true", "data.test.num_clips=1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_views"] == 3 and "data.test.num_clips: 2 in the checkpoint" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_writable_is_refused(command, checkpoint, video_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    _, error, code = command(video_folder / "val/a video 0.mp4", f"checkpoint={checkpoint}", f"write={tmp_path}/a.mp4")
    assert code == 1 and error.startswith("error: write=") and f"the folder {tmp_path} is not writable" in error
