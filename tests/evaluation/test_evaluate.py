"""Scores of a checkpoint: the right ones, the same on any number of processes, and complete."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed, frame_numbers
from in_process import run_main
from runs import TINY, config_of, torchrun

from nlvideo.build.model import build_model
from nlvideo.build.tables import read_val_table
from nlvideo.config.schema import EvaluateConfig, ViewsConfig
from nlvideo.data.clips.batch import normalize
from nlvideo.data.clips.view_sampling import spread_order
from nlvideo.data.decoding.opening import Opener, open_video
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.decoding.video import SlowVideo
from nlvideo.evaluate import evaluate, main
from nlvideo.evaluation.kept_scores import KeptScores, VideoScore
from nlvideo.evaluation.scoring import Scorer, pool
from nlvideo.evaluation.summary import merge_scores
from nlvideo.runtime.errors import RunFailed
from nlvideo.runtime.precision import keeping_torch_settings
from nlvideo.train import train

SCRIPT = Path(sys.executable).parent / "nlvideo-evaluate"


@pytest.fixture(scope="module")
def checkpoint(video_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    # long enough for scores that differ from video to video
    train(config_of(video_folder, folder / "run", "optim.max_steps=6", "block.norm=false"))
    return folder / "run" / "checkpoint.pt"


def evaluate_config(checkpoint, video_folder, output_dir, **changes) -> EvaluateConfig:
    data = composed(*TINY, f"data.root={video_folder}").data
    for key, value in changes.pop("data", {}).items():
        setattr(data, key, value)
    options = {"precision": "float32", "views_per_step": 2, "num_threads": 1, "report": False, "data": data}
    return EvaluateConfig(checkpoint=str(checkpoint), output_dir=str(output_dir), **(options | changes))


def test_results_are_complete_and_in_the_order_of_the_list(checkpoint, video_folder, tmp_path, capsys):
    result = evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "out", report=True))
    names = [line.rsplit(" ", 1)[0] for line in (video_folder / "val.csv").read_text().splitlines()]
    stored = json.loads((tmp_path / "out/result.json").read_text())
    assert stored == result
    assert stored["num_videos"] == 5 and stored["num_undecodable"] == 0 and stored["step"] == 6
    assert 0 <= stored["top1"] <= 1 and stored["top5"] == 1
    assert stored["views"] == {
        "num_clips": 2,
        "num_crops": 3,
        "clip_sampling": "uniform",
        "short_side": 32,
        "crop_size": 32,
        "pooling": "mean",
    }
    scores = np.load(tmp_path / "out/scores.npz")
    assert scores["ids"].tolist() == names and scores["classes"].tolist() == ["0", "1", "2"]
    assert scores["scores"].dtype == np.float32 and scores["scores"].shape == (5, 3)
    np.testing.assert_allclose(scores["scores"].sum(1), 1, rtol=1e-5)
    rows = list(csv.DictReader((tmp_path / "out/predictions.csv").read_text().splitlines()))
    assert [row["video"] for row in rows] == names
    assert [row["target"] for row in rows] == ["0", "1", "2", "0", "1"]
    for row, video in zip(rows, scores["scores"], strict=True):
        assert row["class1"] == str(video.argmax())
        assert float(row["score1"]) >= float(row["score2"]) >= float(row["score3"])
    right = np.mean([row["class1"] == row["target"] for row in rows])
    assert stored["top1"] == stored["recall_weighted"] == pytest.approx(right)
    assert stored["balanced_accuracy"] == stored["mean_class_accuracy"] == pytest.approx(stored["recall_macro"])
    assert stored["f1_macro_interval"][0] <= stored["f1_macro"] <= stored["f1_macro_interval"][1]
    assert 0 <= stored["ece"] <= 1 and sum(row["count"] for row in stored["calibration_bins"]) == 5
    assert (tmp_path / "out/classes.csv").read_text().startswith("class,videos,accuracy,precision,recall,f1\n0,2,")
    out = capsys.readouterr().out
    assert "2 x 3" in out and "result.json" in out and str(checkpoint) in out


def test_scores_are_softmax_per_position_then_mean_over_positions_then_views(checkpoint, video_folder, tmp_path):
    """Every view of one video by hand: 48-pixel crops of a network trained on 32 have 2 x 2 positions."""
    config = evaluate_config(checkpoint, video_folder, tmp_path / "out")
    config.data.test.short_side = config.data.test.crop_size = 48
    evaluate(config)
    content = torch.load(checkpoint, weights_only=True)
    trained = composed(*TINY, f"data.root={video_folder}", "block.norm=false")
    network = build_model(trained.model, trained.block, trained.data, 3)
    network.load_state_dict(content["model"])
    network.eval()
    views = []
    with open_video(video_folder / "val/a video 0.mp4") as video:
        frames = video.read(range(40), (48, 64))
    assert frame_numbers(frames) == list(range(40))
    for start in (0, 32):
        for left in (0, 8, 16):
            clip = frames[start : start + 8 : 2, :, left : left + 48].permute(3, 0, 1, 2)[None]
            clip = normalize(clip, torch.tensor(config.data.mean), torch.tensor(config.data.std), torch.float32)
            with torch.inference_mode():
                features = network.features(clip)  # (1, C, T, 2, 2), one 1 x 1 window each
                assert features.shape[3:] == (2, 2)
                positions = [network.fc(features[0, :, :, i, j].mean(1)).softmax(0) for i in (0, 1) for j in (0, 1)]
            views.append(torch.stack(positions).mean(0))
    expected = torch.stack(views).mean(0).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out/scores.npz")["scores"][0], expected, rtol=1e-5)


def test_the_chunk_changes_rounding_only(checkpoint, video_folder, tmp_path, monkeypatch):
    seen, real = [], Scorer.clip_scores
    monkeypatch.setattr(Scorer, "clip_scores", lambda self, clips: seen.append(len(clips)) or real(self, clips))
    for chunk in (1, 2, 6):
        evaluate(evaluate_config(checkpoint, video_folder, tmp_path / str(chunk), views_per_step=chunk))
    assert seen == [1] * 30 + [2] * 15 + [6] * 5  # 5 videos of 6 views
    one, two, six = (np.load(tmp_path / name / "scores.npz")["scores"] for name in ("1", "2", "6"))
    np.testing.assert_allclose(one, two, atol=1e-5)
    np.testing.assert_allclose(one, six, atol=1e-5)


def test_an_undecodable_video_counts_as_wrong_and_is_named(checkpoint, video_folder, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_text("no video")
    (tmp_path / "val.csv").write_text(f"{tmp_path}/broken.mp4 0\n" + (video_folder / "val.csv").read_text())
    whole = evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "whole"))
    config = evaluate_config(checkpoint, video_folder, tmp_path / "out", data={"val": f"{tmp_path}/val.csv"})
    result = evaluate(config)
    assert result["num_undecodable"] == 1 and result["num_videos"] == 6
    assert result["undecodable"][0]["video"] == f"{tmp_path}/broken.mp4"
    assert "Invalid data" in result["undecodable"][0]["reason"]
    assert result["top1"] == pytest.approx(whole["top1"] * 5 / 6) and result["top5"] == pytest.approx(5 / 6)
    assert result["top1_decoded"] == pytest.approx(whole["top1"])
    assert np.isnan(np.load(tmp_path / "out/scores.npz")["scores"][0]).all()
    assert f"undecodable, counted as wrong: {tmp_path}/broken.mp4" in capsys.readouterr().out


def test_the_result_of_another_evaluation_is_not_overwritten(checkpoint, video_folder, tmp_path):
    evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "out"))
    evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "out"))  # the same one may be repeated
    before = (tmp_path / "out/result.json").read_bytes()
    config = evaluate_config(checkpoint, video_folder, tmp_path / "out")
    config.data.test.num_clips = 3
    with pytest.raises(FileExistsError, match="holds the result of another evaluation .views: .*another output_dir"):
        evaluate(config)
    assert (tmp_path / "out/result.json").read_bytes() == before


def test_lost_and_repeated_videos_are_an_error(video_folder):
    table = read_val_table(composed(*TINY, f"data.root={video_folder}").data, ["0", "1", "2"])
    score = VideoScore(np.full(3, 1 / 3, np.float32), np.zeros(5, np.int64), np.empty((0, 3), np.float32))
    scores = dict.fromkeys(range(5), score)
    assert np.isfinite(merge_scores([scores], table).scores).all()
    for parts in ([{0: score}], [scores, {0: score}], [scores | {7: score}]):
        with pytest.raises(RuntimeError, match="5 videos, but"):
            merge_scores(parts, table)


def test_classes_that_do_not_fit_are_refused(checkpoint, video_folder, tmp_path):
    with pytest.raises(ValueError, match="data.num_classes=7, but the network has 3 classes"):
        evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "a", data={"num_classes": 7}))
    (tmp_path / "names.txt").write_text("2\n1\n3\n")
    message = r"1 \(3\) are not the network's, 1 \(0\) are not in the file"
    with pytest.raises(ValueError, match=message):
        evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "b", data={"classes": f"{tmp_path}/names.txt"}))
    (tmp_path / "val.csv").write_text("val/a video 0.mp4 3\n")
    with pytest.raises(ValueError, match="label 3 of val/a video 0.mp4 is out of range; there are 3 classes"):
        evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "c", data={"val": f"{tmp_path}/val.csv"}))


def test_classes_in_another_order_are_matched_by_name(checkpoint, video_folder, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("2\n0\n1\n")
    moved = {"0": "1", "1": "2", "2": "0"}
    rows = [line.rsplit(" ", 1) for line in (video_folder / "val.csv").read_text().splitlines()]
    (tmp_path / "val.csv").write_text("".join(f"{name} {moved[label]}\n" for name, label in rows))
    data = {"val": f"{tmp_path}/val.csv", "classes": f"{tmp_path}/names.txt"}
    evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "a"))
    evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "b", data=data))
    assert "matched by name" in capsys.readouterr().out
    for name in ("predictions.csv", "classes.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def run_process(*arguments, cwd) -> subprocess.CompletedProcess:
    return subprocess.run([SCRIPT, *arguments, "num_threads=1"], capture_output=True, text=True, timeout=300, cwd=cwd)


@pytest.fixture
def run_command(tmp_path, monkeypatch, capsys):
    """Returns a function that runs nlvideo-evaluate in this process, in a folder of its own."""
    return partial(
        run_main, main, "num_threads=1", name="nlvideo-evaluate", monkeypatch=monkeypatch, capsys=capsys, cwd=tmp_path
    )


def test_the_command_needs_the_checkpoint_alone_and_its_keys_win(checkpoint, video_folder, tmp_path):
    done = run_process(f"checkpoint={checkpoint}", "data.test.num_clips=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data.test.num_clips: 2 in the checkpoint, 1 on the command line" in done.stdout
    result = json.loads((checkpoint.parent / "evaluation_step6_1x3_uniform/result.json").read_text())
    assert result["views"]["num_clips"] == 1 and result["views"]["num_crops"] == 3
    assert list(tmp_path.iterdir()) == []  # nothing is written where the command is called


FILES = ("scores.npz", "predictions.csv", "classes.csv")


def assert_same_files(a: Path, b: Path) -> None:
    for name in FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    one, two = (json.loads((folder / "result.json").read_text()) for folder in (a, b))
    for key in ("top1", "top1_interval", "by_clips", "by_crops", "list_sha256", "checkpoint_sha256", "num_threads"):
        assert one[key] == two[key]


@pytest.mark.slow
def test_processes_and_videos_per_step_give_the_same_files(checkpoint, video_folder, tmp_path):
    evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "1"))
    evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "4", videos_per_step=4))
    assert_same_files(tmp_path / "1", tmp_path / "4")
    options = [f"checkpoint={checkpoint}", f"output_dir={tmp_path}/launched", "precision=float32", "report=false"]
    done = run_process(*options, "num_devices=2", "views_per_step=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "launched/result.json").read_text())["num_devices"] == 2
    assert_same_files(tmp_path / "1", tmp_path / "launched")
    options = [*options[:1], f"output_dir={tmp_path}/2", *options[2:], "num_threads=1"]
    done = torchrun(2, "-m", "nlvideo.evaluate", *options, "views_per_step=2")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "2/result.json").read_text())["num_devices"] == 2
    assert_same_files(tmp_path / "1", tmp_path / "2")


def test_an_interrupted_evaluation_goes_on_where_it_stopped(checkpoint, video_folder, tmp_path, monkeypatch, capsys):
    evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "whole"))
    opened, real = [], Opener.__call__

    def noted(self, path, part):
        opened.append(Path(path).name)
        if len(opened) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, path, part)

    monkeypatch.setattr(Opener, "__call__", noted)
    with pytest.raises(SystemExit) as stopped:
        evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "out"))
    assert stopped.value.code == 128 + signal.SIGINT
    assert "Resume with the same command" in capsys.readouterr().out
    assert len(opened) == 3 and not (tmp_path / "out/result.json").exists()
    config = evaluate_config(checkpoint, video_folder, tmp_path / "out")
    config.data.test.num_clips = 3
    with pytest.raises(FileExistsError, match="holds the beginning of another evaluation .views: "):
        evaluate(config)
    result = evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "out", videos_per_step=2, num_devices=1))
    assert "resumed: 3 of 5 videos are scored already" in capsys.readouterr().out
    assert opened == [f"a video {i}.mp4" for i in range(5)]  # each once
    assert result["num_scored_before"] == 3 and not (tmp_path / "out/unfinished").exists()
    assert_same_files(tmp_path / "whole", tmp_path / "out")
    evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "out"))
    assert len(opened) == 5 and "holds this evaluation already" in capsys.readouterr().out


def test_a_new_evaluation_takes_its_part_of_the_cores_and_a_begun_one_keeps_it(
    checkpoint, video_folder, tmp_path, monkeypatch, capsys
):
    def options():
        return evaluate_config(checkpoint, video_folder, tmp_path / "out", num_threads=None)

    def ranks_of_six_cores(number):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(number))

    opened, real = [], Opener.__call__

    def noted(self, path, part):
        opened.append(path)
        if len(opened) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, path, part)

    monkeypatch.setattr(Opener, "__call__", noted)
    with keeping_torch_settings():
        ranks_of_six_cores(2)
        with pytest.raises(SystemExit):
            evaluate(options())
        ranks_of_six_cores(1)
        result = evaluate(options())
        assert result["num_threads"] == torch.get_num_threads() == 3 and result["num_scored_before"] == 2
        ranks_of_six_cores(3)
        assert evaluate(options()) == result and "holds this evaluation already" in capsys.readouterr().out
        with pytest.raises(FileExistsError, match="another evaluation .num_threads: 3, now 2"):
            evaluate(dataclasses.replace(options(), num_threads=2))


def test_a_slow_video_stops_it_or_counts_as_wrong_and_nothing_is_lost(checkpoint, video_folder, tmp_path, monkeypatch):
    real = PyavVideo.read

    def slow(self, indices, size, box=None):
        if "video 2" in str(self.path):
            raise SlowVideo(self.path, 1.0)
        return real(self, indices, size, box)

    monkeypatch.setattr(PyavVideo, "read", slow)
    with pytest.raises(RunFailed, match="a video 2.mp4: decoding takes longer"):
        evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "out"))
    result = evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "out", data={"skip_slow": True}))
    assert result["num_scored_before"] == 2 and result["num_undecodable"] == 1
    assert "takes longer" in result["undecodable"][0]["reason"]


def test_failures_are_tried_again_and_other_processes_are_kept_out(checkpoint, video_folder, tmp_path, monkeypatch):
    shutil.copytree(video_folder, tmp_path / "set")
    (tmp_path / "set/val/a video 0.mp4").rename(tmp_path / "away.mp4")
    config = evaluate_config(checkpoint, tmp_path / "set", tmp_path / "out")
    code = (
        "import sys; from pathlib import Path; from nlvideo.runtime.folder_lock import lock_folder; "
        "lock_folder(Path(sys.argv[1]))"
    )

    def other_process():
        command = [sys.executable, "-c", code, tmp_path / "out/unfinished"]
        return subprocess.run(command, capture_output=True, text=True).stderr

    errors = []

    def interrupted(*_):
        errors.append(other_process())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # a disk that comes back while the evaluation is interrupted
        patch.setattr("nlvideo.evaluate.finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(config)
    assert "is in use by another process" in errors[0] and other_process() == ""  # only as long as it lasts
    (tmp_path / "away.mp4").rename(tmp_path / "set/val/a video 0.mp4")
    result = evaluate(config)
    assert result["num_scored_before"] == 4 and result["num_undecodable"] == 0


def test_kept_scores_of_something_else_are_not_taken_up(tmp_path):
    def kept(**identity):
        return KeptScores(tmp_path / "unfinished", identity)

    first = kept(short_side=256)
    assert first.open() == []
    first[3] = VideoScore(np.ones(2, np.float32), np.zeros(3, np.int64), np.empty((0, 2), np.float32))
    first[4] = "cannot be read"
    first.flush()
    again = kept(short_side=256)
    assert again.open() == [3] and again.before[3].scores.tolist() == [1, 1]
    with pytest.raises(FileExistsError, match="short_side: 256, now 320"):
        kept(short_side=320).open()
    (tmp_path / "unfinished/identity.json").unlink()  # as on a machine whose disk rank 0 does not see
    assert kept(short_side=320).open() == []


def test_scores_that_are_not_finite_name_the_video(checkpoint, video_folder, tmp_path, monkeypatch):
    real = Scorer.view_scores

    def broken(self, views):
        return real(self, views) * (torch.nan if views.video == 3 else 1)

    monkeypatch.setattr(Scorer, "view_scores", broken)
    with pytest.raises(RunFailed, match="The scores of .*a video 3.mp4 are not finite"):
        evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "out"))


def test_fewer_views_are_scored_in_the_same_pass(checkpoint, video_folder, tmp_path):
    data = {"test": ViewsConfig(num_clips=3, num_crops=3, short_side=32, crop_size=32)}
    result = evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "all", data=data))
    assert [row["clips"] for row in result["by_clips"]] == [1, 2, 3] and len(result["by_crops"]) == 3
    assert result["by_clips"][-1]["top1"] == result["by_crops"][-1]["top1"] == result["top1"]
    data = {"test": ViewsConfig(num_clips=3, num_crops=1, short_side=32, crop_size=32)}
    centre = evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "centre", data=data))
    assert centre["top1"] == result["by_crops"][0]["top1"]


def test_pooling_over_views():
    views = np.random.default_rng(0).random((5, 3, 4)).astype(np.float32)
    order = spread_order(5)
    assert order == [2, 0, 4, 1, 3]
    for name, function in (("mean", np.mean), ("sum", np.sum), ("max", np.max)):
        by_clips, by_crops, clips = pool(views, name)
        for k in range(1, 6):
            np.testing.assert_allclose(by_clips[k - 1], function(views[order[:k]], (0, 1)), rtol=1e-6)
        for k in range(1, 4):
            np.testing.assert_allclose(by_crops[k - 1], function(views[:, [1, 0, 2][:k]], (0, 1)), rtol=1e-6)
        assert np.array_equal(by_clips[-1], by_crops[-1])
        np.testing.assert_allclose(clips, function(views, 1), rtol=1e-6)


def test_the_whole_frame_is_one_fully_convolutional_view(checkpoint, video_folder, tmp_path):
    data = {"test": ViewsConfig(num_clips=1, num_crops=1, short_side=32, crop_size=None)}
    evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "out", data=data))
    scores = np.load(tmp_path / "out/scores.npz")["scores"]
    assert scores.shape == (5, 3) and np.isfinite(scores).all()
    content = torch.load(checkpoint, weights_only=True)
    trained = composed(*TINY, f"data.root={video_folder}", "block.norm=false")
    network = build_model(trained.model, trained.block, trained.data, 3)
    network.load_state_dict(content["model"])
    with open_video(video_folder / "val/a video 0.mp4") as video:
        clip = video.read([16, 18, 20, 22], (32, 43)).permute(3, 0, 1, 2)[None]
    settings = trained.data
    clip = normalize(clip, torch.tensor(settings.mean), torch.tensor(settings.std), torch.float32)
    with torch.inference_mode():
        expected = network.eval().position_logits(clip).softmax(2).mean(1)[0].numpy()
    np.testing.assert_allclose(scores[0], expected, rtol=1e-5)


def test_the_report_is_one_file_without_links(checkpoint, video_folder, tmp_path):
    (tmp_path / "val.csv").write_text((video_folder / "val.csv").read_text() + f"{tmp_path}/<gone>.mp4 0\n")
    data = {"val": f"{tmp_path}/val.csv"}
    result = evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "out", report=True, data=data))
    page = (tmp_path / "out/report.html").read_text()
    assert page.count('src="data:image/svg+xml,') == 5 and page.count("data:image/jpeg;base64,") == 20  # two rows each
    assert "http" not in page.replace("http://www.w3.org/", "") and "&lt;gone&gt;.mp4" in page and "<gone>" not in page
    assert f"{100 * result['top1']:.2f} %" in page and result["num_missing"] == 1


def test_several_checkpoints_in_one_call(run_command, checkpoint, tmp_path):
    for name in ("a", "b", "broken"):
        (tmp_path / name).mkdir()
        shutil.copy(checkpoint, tmp_path / name / "checkpoint.pt")
    (tmp_path / "broken/checkpoint.pt").write_text("nothing")
    one_view = ["data.test.num_clips=1", "data.test.num_crops=1", "report=false"]
    done = run_command(f"checkpoint={tmp_path}/*/checkpoint.pt", *one_view)
    assert done.returncode == 1 and "1 of 3 checkpoints could not be evaluated" in done.stderr
    assert f"failed  {tmp_path}/broken/checkpoint.pt" in done.stdout and "Traceback" not in done.stderr
    results = [tmp_path / name / "evaluation_step6_1x1_uniform/result.json" for name in ("a", "b")]
    one, two = (json.loads(file.read_text()) for file in results)
    assert one["top1"] == two["top1"] and one["checkpoint"] != two["checkpoint"]
    again = run_command(f"checkpoint=[{tmp_path}/a/checkpoint.pt,{checkpoint}]", *one_view)
    assert again.returncode == 0 and "holds this evaluation already, finished" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "checkpoint has no value; give it as checkpoint=PATH"),
        (["checkpoint=nowhere.pt"], "The checkpoint nowhere.pt does not exist"),
        (["checkpoint={file}"], "is not a checkpoint that can be read"),
        (["checkpoint={good}", "data.test.num_crops=2"], "data.test.num_crops=2: choose from 1, 3"),
        (["checkpoint={good}", "data.tset.num_crops=1"], "Key 'tset' not in 'DataConfig'"),
        (["checkpoint={good}", "data.root=/nowhere"], "/nowhere/val.csv does not exist"),
    ],
)
def test_mistakes_are_one_message(run_command, checkpoint, tmp_path, arguments, message):
    (tmp_path / "text.pt").write_text("no checkpoint")
    arguments = [a.format(file=tmp_path / "text.pt", good=checkpoint) for a in arguments]
    done = run_command(*arguments)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_chosen_data_group_replaces_only_what_its_file_states(run_command, checkpoint, video_folder, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    for split in ("train", "val"):
        (lists / f"{split}.csv").write_text(
            "".join(f"{video_folder}/{line}\n" for line in (video_folder / f"{split}.csv").read_text().splitlines())
        )
    options = ["data=list", f"data.root={lists}", f"output_dir={tmp_path}/out"]
    done = run_command(f"checkpoint={checkpoint}", *options)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["list"] == str(lists / "val.csv")
    assert (result["num_frames"], result["frame_stride"]) == (4, 2)  # the checkpoint's, not the defaults
    assert result["views"]["short_side"] == 32


def test_a_dict_on_the_command_line_replaces_only_its_own_keys(run_command, checkpoint, tmp_path):
    options = [f"checkpoint={checkpoint}", "data.test={num_clips: 1}", f"output_dir={tmp_path}/out"]
    done = run_command(*options)
    assert done.returncode == 0, done.stderr
    views = json.loads((tmp_path / "out/result.json").read_text())["views"]
    assert views["num_clips"] == 1 and views["short_side"] == 32 and views["num_crops"] == 3
