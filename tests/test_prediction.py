"""Predictions: the scores of nlvideo-evaluate, from moment to moment too, and what the command answers."""

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import write_grey_video
from PIL import Image
from runs import config_of

import nlvideo
from nlvideo.config.compose import from_container
from nlvideo.config.schema import EvaluateConfig, TrainConfig
from nlvideo.data.decoding.opening import open_video
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.decoding.video import DecodeError
from nlvideo.evaluate import evaluate
from nlvideo.prediction import predictor as predictor_module
from nlvideo.prediction.command import command as prediction
from nlvideo.prediction.command import expand, main, take_paths
from nlvideo.prediction.pictures import LabelBox, chosen_classes, clock, write_labelled
from nlvideo.prediction.predictor import Predictor, Stretch, Timeline, blocks_of, window_starts
from nlvideo.train import train
from nlvideo.weights.checkpoint_file import save_checkpoint

WINDOW = 8  # frames of TINY's clips


@pytest.fixture(scope="module")
def checkpoint(video_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    # long enough for scores that differ from video to video
    train(config_of(video_folder, folder / "run", "optim.max_steps=6", "block.norm=false"))
    return folder / "run" / "checkpoint.pt"


@pytest.fixture(scope="module")
def predictor(checkpoint) -> Predictor:
    return Predictor(checkpoint)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def command(monkeypatch, capsys):
    """Returns a function that calls nlvideo-predict here and returns its standard output, its error's and its code."""
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


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> Path:
    """A video whose first 24 frames are dark and whose last 24 are bright."""
    path = tmp_path_factory.mktemp("halves") / "halves.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.options = {"crf": "1", "g": "12"}
        for i in range(48):
            pixels = np.full((48, 64, 3), 30 if i < 24 else 220, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_scores_are_those_of_the_evaluation(checkpoint, video_folder, tmp_path, predictor):
    trained = from_container(TrainConfig, torch.load(checkpoint, weights_only=True)["config"])
    options = {"data": trained.data, "precision": trained.precision, "output_dir": str(tmp_path / "out")}
    evaluate(EvaluateConfig(checkpoint=str(checkpoint), report=False, num_threads=1, **options))
    written = np.load(tmp_path / "out/scores.npz")
    for name, scores in zip(written["ids"], written["scores"], strict=True):
        assert np.array_equal(predictor.scores(video_folder / str(name)), scores)


def test_python(checkpoint, video_folder, predictor):
    video = video_folder / "val/a video 0.mp4"
    found, scores = nlvideo.predict(checkpoint, video, top=2), predictor.scores(video)
    assert found == predictor(video)[:2] and len(predictor(video)) == 3
    assert [name for name, _ in found] == [str(k) for k in np.argsort(-scores)[:2]]
    assert found[0][1] == scores.max() and scores.dtype == np.float32
    fewer = nlvideo.Predictor(checkpoint, "cpu", "float64", {"data.test.num_clips": 1})
    assert fewer.config.data.test.num_clips == 1 and not np.array_equal(fewer.scores(video), scores)
    with pytest.raises(ValueError, match="data.root has no effect on predictions. Choose from: data.test"):
        Predictor(checkpoint, settings={"data.root": "x"})
    with pytest.raises(DecodeError, match="No such file"):
        predictor.scores(video_folder / "nothing.mp4")


def test_several_classes_a_video_have_scores_of_their_own(checkpoint, video_folder, tmp_path, predictor):
    content = torch.load(checkpoint, weights_only=True)
    content["config"]["data"]["format"] = "charades"
    save_checkpoint(tmp_path / "multi.pt", {key: content[key] for key in content if key != "sha256"})
    multi, video = Predictor(tmp_path / "multi.pt"), video_folder / "val/a video 0.mp4"
    assert multi.multi_label and not predictor.multi_label
    assert predictor.scores(video).sum() == pytest.approx(1, abs=1e-5)
    assert abs(multi.scores(video).sum() - 1) > 0.05


def test_windows_are_scored_as_clips_are(checkpoint, video_folder, halves):
    settings = {"data.test.num_clips": 5, "data.test.num_crops": 3}
    predictor, video = Predictor(checkpoint, settings=settings), video_folder / "val/a video 0.mp4"
    timeline = predictor.slide(video, every_seconds=WINDOW / 25, num_crops=3)
    assert timeline.starts.tolist() == [0, 8, 16, 24, 32]  # those of 5 uniform clips of 40 frames
    np.testing.assert_allclose(timeline.scores.mean(0), predictor.scores(video), atol=1e-6)
    timeline = predictor.slide(halves)
    assert timeline.starts.tolist() == list(range(0, 41, 4)) and timeline.window == WINDOW and timeline.fps == 25
    dark, bright = timeline.scores[:5], timeline.scores[6:]  # the window between holds both
    assert np.ptp(dark, 0).max() < 1e-3 and np.ptp(bright, 0).max() < 1e-3
    assert abs(dark[0] - bright[0]).max() > 1e-2
    short = predictor.slide(video_folder / "val/a video 1.mp4", every_seconds=100)
    assert short.starts.tolist() == [0, 2] and short.num_frames == 10


def test_windows_stretches_and_times():
    assert window_starts(30, 8, 10).tolist() == [0, 10, 20, 22]
    assert window_starts(5, 8, 4).tolist() == window_starts(8, 8, 4).tolist() == [0]
    starts = window_starts(100, 8, 4)
    blocks = [block.tolist() for block in blocks_of(starts, 8, 20)]
    assert sum(blocks, []) == starts.tolist() and max(b[-1] + 8 - b[0] for b in blocks) == 20
    assert [len(block) for block in blocks_of(starts, 8, 3)] == [1] * len(starts)
    scores = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]], np.float32)
    timeline = Timeline(np.array([0, 10, 20]), 10, 30, 10.0, scores)
    assert timeline.edges().tolist() == [0, 10, 20, 30]
    first, second = timeline.stretches()
    assert first == Stretch(0, 2, 0, pytest.approx(0.8)) and second == Stretch(2, 3, 1, pytest.approx(0.8))
    assert chosen_classes(scores[::-1], np.array([0, 1, 2, 3])) == [1, 0]
    assert [clock(t) for t in (7.46, 59.99, 3723)] == ["0:07.5", "1:00.0", "1:02:03.0"]


def test_memory_does_not_grow_with_the_video(predictor, video_folder, tmp_path, monkeypatch):
    read, asked = PyavVideo.read, []

    def counting(self, indices, size, box=None):
        asked.append(np.asarray(indices))
        return read(self, indices, size, box)

    video = video_folder / "val/a video 0.mp4"
    whole = predictor.slide(video)
    monkeypatch.setattr(PyavVideo, "read", counting)
    for module in (prediction, predictor_module):
        monkeypatch.setattr(module, "BLOCK_BYTES", 20 * 3 * 32 * 43)  # 20 frames of the resized size
    blocks = predictor.slide(video)
    assert len(asked) > 2 and max(len(indices) for indices in asked) <= 20
    np.testing.assert_allclose(blocks.scores, whole.scores, atol=1e-5)
    asked.clear()
    with open_video(video) as opened:
        write_labelled(tmp_path / "o.mp4", opened, [[("a", 1.0)]], np.array([0]), 7 * 3 * 48 * 64, lambda n: None)
    assert [len(indices) for indices in asked] == [7, 7, 7, 7, 7, 5]
    assert np.concatenate(asked).tolist() == list(range(40))


def test_text_for_one_video(command, checkpoint, video_folder, predictor):
    video = video_folder / "val/a video 0.mp4"
    out, error, code = command(video, f"checkpoint={checkpoint}", "top=2")
    assert code == 0, error
    title, *rows = out.splitlines()
    assert title == f"{video}  (2 clips x 3 crops, softmax)"
    assert [row.split() for row in rows] == [[f"{score:.3f}", name] for name, score in predictor(video, 2)]


def test_json_for_folders_globs_and_bad_files(command, checkpoint, video_folder, tmp_path, predictor):
    folder = tmp_path / "mixed"
    (folder / "frames").mkdir(parents=True)
    for i in range(12):
        Image.fromarray(np.full((48, 64, 3), 9 * i, np.uint8)).save(folder / f"frames/img_{i:05}.png")
    (folder / "text.mp4").write_text("no video")
    write_sound(folder / "sound.mp4")
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


def test_the_labelled_video_is_the_video_with_a_box(halves, tmp_path):
    labels = [[("jumping", 0.9), ("running", 0.1)], [("running far away", 0.8), ("jumping", 0.2)]]
    made = tmp_path / "made.mp4"
    with open_video(halves) as source:
        write_labelled(made, source, labels, np.array([0, 24]), 2**20, lambda count: None)
        pixels = source.read(range(48), (48, 64)).numpy().astype(int)
    with open_video(made) as video:
        assert (video.num_frames, video.fps, video.height, video.width) == (48, 25, 48, 64)
        found = video.read(range(48), (48, 64)).numpy().astype(int)
    high, wide = LabelBox(labels, 48, 64).draw(labels[0]).shape[:2]
    change = abs(found - pixels)
    assert wide == 64 and high < 24  # the long name needs all the width
    assert change[:, :high, :wide].mean() > 30 and change[:, high + 4 :].mean() < 3
    assert abs(found[0] - found[23])[:high].mean() < 8  # the label stands, and changes in the middle
    assert abs((found[23] > 100).astype(int) - (found[24] > 100))[:high].mean() > 0.05


def test_odd_sizes_become_even(tmp_path):
    write_grey_video(tmp_path / "odd.mkv", 3, 33, 51, "ffv1", pix_fmt="yuv444p")
    with open_video(tmp_path / "odd.mkv") as source:
        write_labelled(tmp_path / "even.mp4", source, [[("a", 1.0)]], np.array([0]), 2**20, lambda count: None)
    with open_video(tmp_path / "even.mp4") as video:
        assert (video.num_frames, video.height, video.width) == (3, 32, 50)


def test_which_arguments_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=b.mp4").touch()
    argv = ["nlvideo-predict", "a=b.mp4", "x.mp4", "top=2", "--cfg", "job", "-h", "*.avi"]
    assert take_paths(argv) == ["a=b.mp4", "x.mp4", "*.avi"]
    assert argv == ["nlvideo-predict", "top=2", "--cfg", "job", "-h"]
    assert expand(["a=b.mp4", "./a=b.mp4", "a=b.mp4"]) == ["a=b.mp4", "./a=b.mp4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no video given"),
        (["{video}"], "checkpoint has no value; give it as checkpoint=PATH"),
        (["nowhere.mp4", "{checkpoint}"], "nowhere.mp4 does not exist"),
        (["nowhere/*.mp4", "{checkpoint}"], "nowhere/*.mp4 matches no file"),
        (["{empty}", "{checkpoint}"], "holds no video and no frames"),
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
        (["{folder}", "{checkpoint}", "write=a.mp4"], "write=a.mp4 is for one video; 5 are given"),
        (["{text}", "{checkpoint}"], "text.mp4: Invalid data"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_mistakes_are_one_message(command, checkpoint, video_folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    names = {"video": video_folder / "val/a video 0.mp4", "folder": video_folder / "val", "empty": "empty"}
    places = names | {"text": "text.mp4", "checkpoint": f"checkpoint={checkpoint}"}
    arguments = [argument.format(**places) for argument in arguments]
    out, error, code = command(*arguments)
    lines = [line for line in error.splitlines() if "in the checkpoint" not in line]
    assert code == 1 and out == "" and message in error and "Traceback" not in error, error
    assert lines[0].startswith("error: ") and (len(lines) == 1 or "tpo" in error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "text.mp4"]


def test_the_command_as_a_process(checkpoint, video_folder, tmp_path):
    command = [sys.executable, "-m", "nlvideo.prediction.command", f"{video_folder}/val/a video 2.mp4"]
    options = [f"checkpoint={checkpoint}", "json=true", "data.test.num_clips=1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_views"] == 3 and "data.test.num_clips: 2 in the checkpoint" in done.stderr
    assert list(tmp_path.iterdir()) == []
