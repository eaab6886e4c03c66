"""Videos with several actions or none, from Charades's lists to its files: trained, evaluated, localised."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed
from references import precisions_by_hand
from runs import rows_of
from sklearn.metrics import average_precision_score, f1_score

from nlvideo.build.tables import prepare_data, read_val_table
from nlvideo.config.schema import EvaluateConfig, ViewsConfig
from nlvideo.data.synthetic.motions import MOTIONS
from nlvideo.evaluate import evaluate
from nlvideo.evaluation.result_files import read_results
from nlvideo.train import train

SMALL = [
    "experiment=quickstart_actions",
    "model.width=4",
    "block=nl1",
    "data.num_frames=4",
    "data.crop_size=32",
    "data.scale_range=[32,40]",
    "data.num_workers=0",
    "data.synthetic={num_train: 12, num_val: 11, num_frames: 24, height: 48}",
    "data.test={num_clips: 2, num_crops: 3, short_side: 36, crop_size: 32}",
    "optim.batch_size=4",
    "optim.max_steps=4",
    "optim.warmup_steps=0",
    "log_every_steps=2",
    "validate_every_steps=2",
    "checkpoint_every_steps=4",
    "precision=float32",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("actions")
    torch.manual_seed(0)
    config = composed(*SMALL, f"data.root={folder}/set", f"output_dir={folder}/run")
    train(config)
    return config


def evaluation_of(run, output_dir, report=False, **changes) -> EvaluateConfig:
    data = composed(*SMALL, f"data.root={run.data.root}").data
    for key, value in changes.items():
        setattr(data, key, value)
    checkpoint = f"{run.output_dir}/checkpoint.pt"
    options = {"precision": "float32", "num_threads": 1, "report": report}
    return EvaluateConfig(checkpoint, output_dir=str(output_dir), data=data, **options)


def test_the_set_has_lists_as_charades(run):
    table = read_val_table(run.data, [f"c{i:03} {name}" for i, name in enumerate(MOTIONS)])
    assert table.multi_label and table.targets.shape == (11, 8)
    assert not table.targets[9].any() and (table.targets.sum(1)[:9] >= 1).all()
    assert (table.segments.lengths == 0.96).all()
    assert (table.segments.times[:, 1] <= 0.96 + 1e-9).all()


def test_training_and_validation(run):
    rows = rows_of(run.output_dir)
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert abs(losses[0] - np.log(2)) < 0.1  # binary cross-entropy of a new head
    val = [row for row in rows if row["split"] == "val"]
    assert [row["step"] for row in val] == [2, 4] and all(0 < row["map"] < 1 and "top1" not in row for row in val)
    status = json.loads(Path(run.output_dir, "status.json").read_text())
    assert status["metric"] == "map" and status["score"] == val[-1]["map"]


def test_evaluation_and_its_files(run, tmp_path):
    result = evaluate(evaluation_of(run, tmp_path / "out", report=True))
    held = read_results(tmp_path / "out")
    scores, targets = held.scores, held.targets
    assert scores.shape == (11, 8) and targets.dtype == bool and (scores.sum(1) > 1.5).all()  # sigmoid, not softmax
    acting = targets.any(1)
    # the official rules rank videos without actions last, where they change nothing
    expected = [average_precision_score(targets[acting, k], scores[acting, k]) for k in np.flatnonzero(targets.any(0))]
    assert result["map"] == pytest.approx(np.mean(expected))
    assert result["map_interval"][0] <= result["map"] <= result["map_interval"][1]
    assert result["num_videos_without_actions"] == 1 and result["activation"] == "sigmoid"
    assert result["ece"] is None and result["calibration_bins"] is None  # a maximum over views is no probability
    f1 = f1_score(targets, scores > 0.5, average=None, zero_division=0)
    assert result["f1_macro"] == pytest.approx(f1[targets.any(0)].mean())
    assert "balanced_accuracy" not in result
    assert result["views"]["pooling"] == "max" and len(result["by_clips"]) == 2
    lines = (tmp_path / "out/submission_classify.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [f"val{i:05}" for i in range(11)]
    np.testing.assert_allclose([[float(word) for word in line.split()[1:]] for line in lines], scores, rtol=1e-6)
    assert not (tmp_path / "out/submission_localize.txt").exists()
    assert "mAP" in (tmp_path / "out/report.html").read_text()


def test_a_class_without_positives_has_no_official_map(run, tmp_path):
    (tmp_path / "val.csv").write_text("id,actions,length\nval00000,c000 0 0.5,0.96\nval00001,c001 0 0.5,0.96\n")
    result = evaluate(evaluation_of(run, tmp_path / "out", val=str(tmp_path / "val.csv")))
    assert result["map_official"] is None and 0 < result["map"] <= 1 and result["num_classes_without_videos"] == 6


def test_a_test_list_without_actions_gives_a_submission(run, tmp_path):
    (tmp_path / "val.csv").write_text("id,actions,length\nval00000,,0.96\nval00001,,0.96\nnowhere,,1\n")
    result = evaluate(evaluation_of(run, tmp_path / "out", val=str(tmp_path / "val.csv")))
    assert result["map"] is None and result["f1_macro"] is None and result["num_missing"] == 1
    lines = (tmp_path / "out/submission_classify.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["val00000", "val00001"]


def test_localisation_at_25_points(run, tmp_path):
    test = ViewsConfig(num_clips=25, num_crops=1, clip_sampling="points", short_side=36, crop_size=32, pooling="max")
    result = evaluate(evaluation_of(run, tmp_path / "out", test=test))
    words = [line.split() for line in (tmp_path / "out/submission_localize.txt").read_text().splitlines()]
    assert [(w[0], int(w[1])) for w in words[:26]] == [("val00000", p) for p in range(1, 26)] + [("val00001", 1)]
    scores = np.array([[float(x) for x in w[2:]] for w in words])
    # by hand: the official script's frame p, counted from 0, lies at p / 25 of the length
    expected_targets = np.zeros((11, 25, 8), bool)
    lines = Path(run.data.root, "val.csv").read_text().splitlines()[1:]
    for video, line in enumerate(lines):
        _, actions, length = line.split(",")
        for action in filter(None, actions.split(";")):
            number, start, end = action.split()
            for p in range(25):
                if float(start) <= p / 25 * float(length) <= float(end):
                    expected_targets[video, p, int(number[1:])] = True
    targets = expected_targets.reshape(-1, 8)
    # The file has seven digits, so a few scores are equal there that are not: they stay in the list's order.
    assert result["localization_map"] == pytest.approx(np.nanmean(precisions_by_hand(scores, targets)), abs=1e-4)
    moved = np.roll(expected_targets, 1, axis=1).reshape(-1, 8)
    assert result["localization_map"] != pytest.approx(np.nanmean(precisions_by_hand(scores, moved)), abs=1e-3)
    video = read_results(tmp_path / "out").scores
    np.testing.assert_allclose(scores.reshape(11, 25, 8).max(1), video, rtol=1e-6)


def test_localisation_needs_lengths_before_anything_is_scored(run, tmp_path):
    (tmp_path / "val.csv").write_text("id,actions\nval00000,c000 0 0.5\n")
    test = ViewsConfig(num_clips=25, num_crops=1, clip_sampling="points", short_side=36, crop_size=32, pooling="max")
    with pytest.raises(ValueError, match="does not give the length of val00000.mp4 .column length."):
        evaluate(evaluation_of(run, tmp_path / "out", test=test, val=str(tmp_path / "val.csv")))
    assert not (tmp_path / "out").exists()


def test_few_positives_leave_no_nan_in_the_result(run, tmp_path):
    rows = "".join(f"val{i:05},{'c000 0 0.5' if i == 0 else ''},0.96\n" for i in range(11))
    (tmp_path / "val.csv").write_text(f"id,actions,length\n{rows}")
    result = evaluate(evaluation_of(run, tmp_path / "out", val=str(tmp_path / "val.csv")))
    assert "NaN" not in (tmp_path / "out/result.json").read_text() and result["map_interval"][1] == 1


def test_lists_of_the_other_kind_and_sums_are_refused(run, video_folder, tmp_path):
    config = evaluation_of(
        run, tmp_path / "a", format="list", root=str(video_folder), videos="", classes=None, synthetic=None
    )
    with pytest.raises(ValueError, match="the list has one class a video, but the network was trained for several"):
        evaluate(config)
    with pytest.raises(ValueError, match="data.test.pooling=sum: the classes of multi-label data"):
        composed(*SMALL, "data.root=x", "data.test.pooling=sum")


def test_the_synthetic_set_is_written_once(run):
    files = sorted(Path(run.data.root).rglob("*"))
    before = [path.stat().st_mtime_ns for path in files]
    prepare_data(run.data)
    assert before == [path.stat().st_mtime_ns for path in files]


@pytest.fixture(scope="module")
def list_run(tmp_path_factory, video_folder):
    """A run on lists with several labels a video and no times, by names, the validation's in another order."""
    folder = tmp_path_factory.mktemp("several")
    labels = ["run|sit", "run", "", "wave;run", "sit", "wave"]
    for split, count in (("train", 6), ("val", 5)):
        rows = "".join(f"{split}/a video {i}.mp4,{labels[-1 - i if split == 'val' else i]}\n" for i in range(count))
        (folder / f"{split}.csv").write_text(f"path,labels\n{rows}")
    lists = [f"data.train={folder}/train.csv", f"data.val={folder}/val.csv", "data.multi_label=true"]
    small = [word for word in SMALL if not word.startswith(("experiment=", "data.synthetic"))]
    config = composed("data=list", *small, *lists, f"data.root={video_folder}", f"output_dir={folder}/run",
                      "model.pretrained=null")  # fmt: skip
    train(config)
    return config


def evaluation_of_list(list_run, output_dir, **test) -> EvaluateConfig:
    views = {"num_clips": 2, "num_crops": 1, "short_side": 36, "crop_size": 32} | test
    data = dataclasses.replace(list_run.data, test=ViewsConfig(**views))
    checkpoint = f"{list_run.output_dir}/checkpoint.pt"
    return EvaluateConfig(checkpoint=checkpoint, output_dir=str(output_dir), precision="float32", data=data)


def test_lists_with_several_labels_are_trained_and_measured_by_map(list_run, tmp_path, capsys):
    assert all(0 < row["map"] <= 1 for row in rows_of(list_run.output_dir) if row["split"] == "val")
    result = evaluate(evaluation_of_list(list_run, tmp_path / "out"))
    assert "val.csv: columns path, labels; 5 videos of 3 classes, multi-label" in capsys.readouterr().out
    held = read_results(tmp_path / "out")
    assert held.classes.tolist() == ["run", "sit", "wave"] and held.targets.dtype == bool
    assert held.targets.tolist()[2] == [True, False, True] and not held.targets[3].any()
    assert 0 < result["map"] <= 1 and result["activation"] == "sigmoid" and "localization_map" not in result
    assert not (tmp_path / "out/submission_classify.txt").exists()  # Charades's own
    assert (tmp_path / "out/report.html").exists()


def test_without_times_nothing_is_localised(list_run, tmp_path):
    with pytest.raises(ValueError, match="clip_sampling=points: .*val.csv does not say when its actions take place"):
        evaluate(evaluation_of_list(list_run, tmp_path / "out", num_clips=25, clip_sampling="points"))


def test_a_network_for_one_label_is_not_evaluated_on_several(list_run, tmp_path):
    config = evaluation_of_list(list_run, tmp_path / "out")
    config.data.multi_label = False
    with pytest.raises(ValueError, match="the list has one class a video, but the network was trained for several"):
        evaluate(config)
