"""Scores of a checkpoint: the right ones, the same on any number of processes, and complete."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed, frame_numbers
from test_train import TINY, config_of, train

from nlvideo.config import EvaluateConfig
from nlvideo.data import read_val_table
from nlvideo.data.decode import open_video
from nlvideo.data.transforms import normalize
from nlvideo.evaluate import evaluate
from nlvideo.models import build_model
from nlvideo.results import merge_scores
from nlvideo.scoring import VideoScore

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
    options = {"precision": "float32", "views_per_step": 2, "data": data, "output_dir": str(output_dir)}
    return EvaluateConfig(checkpoint=str(checkpoint), **(options | changes))


def test_results_are_complete_and_in_the_order_of_the_list(checkpoint, video_folder, tmp_path, capsys):
    result = evaluate(evaluate_config(checkpoint, video_folder, tmp_path / "out"))
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
    assert stored["top1"] == pytest.approx(right)
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


def test_the_chunk_changes_rounding_only(checkpoint, video_folder, tmp_path):
    for chunk in (1, 2, 6):
        evaluate(evaluate_config(checkpoint, video_folder, tmp_path / str(chunk), views_per_step=chunk))
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
    message = r"1 \(3\) are not of the network, 1 \(0\) are not in the file"
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


def run_command(*arguments, cwd) -> subprocess.CompletedProcess:
    return subprocess.run([SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=300, cwd=cwd)


def test_the_command_needs_the_checkpoint_alone_and_its_keys_win(checkpoint, video_folder, tmp_path):
    done = run_command(f"checkpoint={checkpoint}", "data.test.num_clips=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data.test.num_clips: 2 in the checkpoint, 1 on the command line" in done.stdout
    result = json.loads((checkpoint.parent / "evaluation_step6_1x3_uniform/result.json").read_text())
    assert result["views"]["num_clips"] == 1 and result["views"]["num_crops"] == 3
    assert list(tmp_path.iterdir()) == []  # nothing is written where the command is called


def test_two_processes_give_the_same_files(checkpoint, video_folder, tmp_path):
    for devices in (1, 2):
        config = evaluate_config(checkpoint, video_folder, tmp_path / str(devices))
        torch.set_num_threads(1)  # as each of two processes on two cores has
        if devices == 1:
            evaluate(config)
    options = [f"checkpoint={checkpoint}", "num_devices=2", f"output_dir={tmp_path}/2", "precision=float32"]
    command = ["env", "OMP_NUM_THREADS=1", str(SCRIPT), *options, "views_per_step=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "2/result.json").read_text())["num_devices"] == 2
    one, two = (np.load(tmp_path / name / "scores.npz")["scores"] for name in ("1", "2"))
    assert np.array_equal(one, two)
    assert (tmp_path / "1/predictions.csv").read_bytes() == (tmp_path / "2/predictions.csv").read_bytes()


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
def test_mistakes_are_one_message(checkpoint, tmp_path, arguments, message):
    (tmp_path / "text.pt").write_text("no checkpoint")
    arguments = [a.format(file=tmp_path / "text.pt", good=checkpoint) for a in arguments]
    done = run_command(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_chosen_data_group_replaces_only_what_its_file_states(checkpoint, video_folder, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    for split in ("train", "val"):
        (lists / f"{split}.csv").write_text(
            "".join(f"{video_folder}/{line}\n" for line in (video_folder / f"{split}.csv").read_text().splitlines())
        )
    options = ["data=list", f"data.root={lists}", f"output_dir={tmp_path}/out"]
    done = run_command(f"checkpoint={checkpoint}", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["list"] == str(lists / "val.csv")
    assert (result["num_frames"], result["frame_stride"]) == (4, 2)  # the checkpoint's, not the defaults
    assert result["views"]["short_side"] == 32


def test_a_dict_on_the_command_line_replaces_only_its_own_keys(checkpoint, tmp_path):
    options = [f"checkpoint={checkpoint}", "data.test={num_clips: 1}", f"output_dir={tmp_path}/out"]
    done = run_command(*options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    views = json.loads((tmp_path / "out/result.json").read_text())["views"]
    assert views["num_clips"] == 1 and views["short_side"] == 32 and views["num_crops"] == 3
