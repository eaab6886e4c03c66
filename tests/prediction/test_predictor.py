"""From Python: the scores of nlvideo-evaluate, and those of sliding windows."""

import numpy as np
import pytest
import torch

import nlvideo
from nlvideo.config.compose import from_container
from nlvideo.config.schema import EvaluateConfig, TrainConfig
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.decoding.video import DecodeError
from nlvideo.evaluate import evaluate
from nlvideo.prediction.predictor import Predictor
from nlvideo.runtime.errors import UserError
from nlvideo.weights.checkpoint_file import save_checkpoint

WINDOW = 8  # frames that a clip of the checkpoint spans


def test_scores_equal_those_of_the_evaluation(checkpoint, video_folder, tmp_path, predictor):
    trained = from_container(TrainConfig, torch.load(checkpoint, weights_only=True)["config"])
    options = {"data": trained.data, "precision": trained.precision, "output_dir": str(tmp_path / "out")}
    evaluate(EvaluateConfig(checkpoint=str(checkpoint), report=False, num_threads=1, **options))
    written = np.load(tmp_path / "out/scores.npz")
    for name, scores in zip(written["ids"], written["scores"], strict=True):
        assert np.array_equal(predictor.scores(video_folder / str(name)), scores)


def test_the_public_functions(checkpoint, video_folder, predictor):
    video = video_folder / "val/a video 0.mp4"
    found, scores = nlvideo.predict(checkpoint, video, top=2), predictor.scores(video)
    assert found == predictor(video)[:2] and len(predictor(video)) == 3
    assert [name for name, _ in found] == [str(k) for k in np.argsort(-scores)[:2]]
    assert found[0][1] == scores.max() and scores.dtype == np.float32
    with pytest.raises(DecodeError, match="No such file"):
        predictor.scores(video_folder / "nothing.mp4")


def test_settings_replace_those_of_the_checkpoint(checkpoint, video_folder, predictor):
    video = video_folder / "val/a video 0.mp4"
    fewer = nlvideo.Predictor(checkpoint.parent, "cpu", "float64", {"data.test.num_clips": 1})  # a run's folder
    assert fewer.config.data.test.num_clips == 1 and not np.array_equal(fewer.scores(video), predictor.scores(video))
    with pytest.raises(UserError, match="data.root has no effect on predictions. Choose from: data.test"):
        Predictor(checkpoint, settings={"data.root": "x"})
    with pytest.raises(UserError, match="data.test.pooling=sum: sliding windows need mean or max"):
        Predictor(checkpoint, settings={"data.test.pooling": "sum"}).slide(video)


def test_multi_label_scores_are_independent(checkpoint, video_folder, tmp_path, predictor):
    content = torch.load(checkpoint, weights_only=True)
    content["config"]["data"]["format"] = "charades"
    save_checkpoint(tmp_path / "multi.pt", {key: content[key] for key in content if key != "sha256"})
    multi, video = Predictor(tmp_path / "multi.pt"), video_folder / "val/a video 0.mp4"
    assert multi.multi_label and not predictor.multi_label
    assert predictor.scores(video).sum() == pytest.approx(1, abs=1e-5)
    assert abs(multi.scores(video).sum() - 1) > 0.05


def test_windows_are_scored_like_clips(checkpoint, video_folder, halves):
    settings = {"data.test.num_clips": 5, "data.test.num_crops": 3}
    predictor, video = Predictor(checkpoint, settings=settings), video_folder / "val/a video 0.mp4"
    timeline = predictor.slide(video, every_seconds=WINDOW / 25, num_crops=3)
    assert timeline.starts.tolist() == [0, 8, 16, 24, 32]  # those of 5 uniform clips of 40 frames
    np.testing.assert_allclose(timeline.scores.mean(0), predictor.scores(video), atol=1e-6)
    np.testing.assert_array_equal(timeline.scores.mean(0), predictor.pool_windows(timeline))
    timeline = predictor.slide(halves)
    assert timeline.starts.tolist() == list(range(0, 41, 4)) and timeline.window == WINDOW and timeline.fps == 25
    dark, bright = timeline.scores[:5], timeline.scores[6:]  # the window between sees both
    assert np.ptp(dark, 0).max() < 1e-3 and np.ptp(bright, 0).max() < 1e-3
    assert abs(dark[0] - bright[0]).max() > 1e-2
    short = predictor.slide(video_folder / "val/a video 1.mp4", every_seconds=100)
    assert short.starts.tolist() == [0, 2] and short.num_frames == 10


def test_a_video_is_decoded_once_however_many_windows(checkpoint, predictor, video_folder, monkeypatch):
    frames, decoded = PyavVideo.frames, []

    def counting(self, indices):
        for frame in frames(self, indices):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(PyavVideo, "frames", counting)
    video = video_folder / "val/a video 0.mp4"
    timeline = predictor.slide(video, every_seconds=1 / 25, num_crops=3)
    assert len(timeline.starts) == 33 and len(decoded) == len(set(decoded)) == 39  # the last one is between two taken
    # 3 crops of 2 windows are whole steps of 2 views, and of 1 window are not
    steps = Predictor(checkpoint, settings={"views_per_step": 33 * 3}).slide(video, every_seconds=1 / 25, num_crops=3)
    np.testing.assert_allclose(steps.scores, timeline.scores, atol=1e-5)


def test_clips_are_taken_by_time(checkpoint, video_folder):
    half = Predictor(checkpoint, settings={"data.clip_fps": 12.5})
    video = video_folder / "val/a video 0.mp4"  # 40 frames, 25 a second
    with half.open(video) as opened:
        assert (opened.num_frames, opened.fps) == (20, 12.5)
    timeline = half.slide(video)
    assert (timeline.num_frames, timeline.fps) == (20, 12.5)
    strided = Predictor(checkpoint, settings={"data.frame_stride": 4})  # of every second frame: the same clips
    halved = Predictor(checkpoint, settings={"data.frame_stride": 2, "data.clip_fps": 12.5})
    np.testing.assert_allclose(halved.scores(video), strided.scores(video), atol=1e-5)
