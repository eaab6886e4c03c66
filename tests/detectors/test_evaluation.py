"""tools/evaluate_detector.py: its numbers are COCOeval's, a killed one continues, and differences are paired."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from in_process import run_tool
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nlvideo.evaluation import intervals

TOOLS = Path(__file__).parents[2] / "tools"
TINY = ["--backbone", "thin", "--min-size", "64", "--batch-size", "2", "--lr", "0.002", "--workers", "0"]


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.syspath_prepend(TOOLS)
    return lambda name, *options: run_tool(f"{name}_detector.py", *options, monkeypatch=monkeypatch, capsys=capsys)


@pytest.fixture
def trained(run, shapes, tmp_path):
    """Returns a function that trains for two steps and returns the run's folder; detections of any score count."""

    def train(name, *options):
        done = run("train", "--coco", shapes, "--output", tmp_path / name, *TINY, "--max-steps", 2, *options)
        assert done.returncode == 0, done.stderr
        return tmp_path / name

    return train


@pytest.fixture(autouse=True)
def few_resamples(tools, monkeypatch):
    for module in (intervals, tools.evaluate_detector):
        monkeypatch.setattr(module, "RESAMPLES", 400)


@pytest.fixture(autouse=True)
def detects_above(tools, monkeypatch):
    """Returns a function that sets the least score of a detection; at first 0, as an untrained network is unsure."""
    build, least = tools.networks.build_detector, {"score": 0.0}

    def with_threshold(settings):
        network = build(settings)
        network.roi_heads.score_thresh = least["score"]
        return network

    monkeypatch.setattr(tools.networks, "build_detector", with_threshold)
    return lambda score: least.update(score=score)


def lines_of(folder):
    rows = [json.loads(line) for line in (folder / "evaluation/detections0.jsonl").read_text().splitlines()]
    return [row for row in rows if "index" in row]


@pytest.mark.parametrize(
    "task, kinds, blocks, panels",
    [
        ("masks", {"box": "bbox", "mask": "segm"}, ["nl1"], 2),
        ("keypoints", {"box": "bbox"}, ["head4", "gc_all"], 5),  # GCNet's blocks have a panel for each stage
        ("boxes", {"box": "bbox"}, ["snl"], 2),
    ],
)
def test_the_results_are_cocoevals_of_the_detections(run, trained, shapes, task, kinds, blocks, panels):
    folder = trained("run", "--task", task, "--block", *blocks)
    done = run("evaluate", folder, "--pictures", 1, "--query", 160, -3)
    assert done.returncode == 0 and "interval of ap" in done.stdout, done.stderr
    result = json.loads((folder / "evaluation/result.json").read_text())
    part = "person_keypoints" if task == "keypoints" else "instances"
    detections = [one for row in lines_of(folder) for one in row["detections"]]
    assert len(detections) > 20
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(shapes / f"annotations/{part}_val2017.json")
        for name, kind in kinds.items():
            # without boxes, from which pycocotools would take the areas of masks
            rows = [{key: one[key] for key in one if kind == "bbox" or key != "bbox"} for one in detections]
            theirs = COCOeval(truth, truth.loadRes(rows), kind)
            theirs.evaluate()
            theirs.accumulate()
            theirs.summarize()
            ours = [result[f"{name}_{key}"] for key in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")]
            assert ours == [None if value < 0 else value for value in theirs.stats[:6]]
    assert result["num_images"] == 4 and result["num_broken"] == 0 and result["step"] == 2
    assert result["box_ap"] == pytest.approx(np.mean([*result["box_ap_of_categories"].values()]))
    low, high = result["box_ap_interval"]
    assert low <= high and ("keypoint_ap" in result) == (task == "keypoints")
    with Image.open(folder / "evaluation/picture0.png") as picture:
        assert picture.width / picture.height == pytest.approx(panels, rel=0.15)


def test_some_categories_can_count_alone(run, trained):
    folder = trained("run")
    assert run("evaluate", folder).returncode == 0
    every = json.loads((folder / "evaluation/result.json").read_text())["box_ap_of_categories"]
    assert run("evaluate", folder, "--categories", "red-lit", "green-lit").returncode == 0
    result = json.loads((folder / "evaluation/result.json").read_text())
    assert result["box_ap_of_categories"] == {name: every[name] for name in ("red-lit", "green-lit") if name in every}
    assert result["box_ap"] == pytest.approx(np.mean([*result["box_ap_of_categories"].values()]))
    wrong = run("evaluate", folder, "--categories", "blue-lit")
    assert wrong.returncode == 1 and "choose from red lamp, green lamp" in wrong.stderr


def test_a_head_that_sees_no_detection_has_no_panel(run, trained, detects_above):
    folder = trained("run", "--task", "keypoints", "--block", "head4")
    detects_above(2.0)
    done = run("evaluate", folder, "--pictures", 1)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "evaluation/result.json").read_text())
    assert result["box_ap"] == result["keypoint_ap"] == 0 and (folder / "evaluation/picture0.png").exists()


def test_an_evaluation_that_was_killed_continues(run, trained, monkeypatch, tools):
    folder = trained("run")
    assert run("evaluate", folder).returncode == 0
    whole, result = lines_of(folder), (folder / "evaluation/result.json").read_text()
    file = folder / "evaluation/detections0.jsonl"
    kept = file.read_text().splitlines(keepends=True)[:3]  # the identity and two images
    file.write_text("".join(kept) + '{"index": 2, "detec')
    seen = []
    detect = tools.evaluate_detector.detected

    def noted(network, coco, index):
        seen.append(index)
        return detect(network, coco, index)

    monkeypatch.setattr(tools.evaluate_detector, "detected", noted)
    monkeypatch.setattr("sys.argv", ["evaluate_detector.py", str(folder)])
    tools.evaluate_detector.main()
    assert seen == [2, 3]
    assert lines_of(folder) == whole and (folder / "evaluation/result.json").read_text() == result


def test_the_difference_of_two_runs_is_paired(run, trained):
    first, second = trained("first"), trained("second", "--block", "gc1", "--seed", 2)
    assert run("evaluate", first).returncode == 0
    done = run("evaluate", second, "--baseline", first)
    assert done.returncode == 0 and "box_gain" in done.stdout, done.stderr
    a, b = (json.loads((folder / "evaluation/result.json").read_text()) for folder in (first, second))
    assert b["box_gain_ap"] == pytest.approx(b["box_ap"] - a["box_ap"])
    low, high = b["box_gain_ap_interval"]
    assert low <= high
    run("evaluate", first, "--baseline", first)
    same = json.loads((first / "evaluation/result.json").read_text())
    assert same["box_gain_ap"] == 0 and same["box_gain_ap_interval"] == [0, 0]


def test_intervals_hold_the_truth_as_often_as_they_say(tools):
    """Of samples of 60 images of 4,000. Percentiles themselves hold it too seldom, since resamples repeat images."""
    rng, measures = np.random.default_rng(0), tools.average_precision
    images, scores = rng.integers(0, 4000, 12000), rng.random(12000)
    right = rng.random(12000) < 0.15 + 0.6 * scores
    order = np.argsort(-scores)
    objects = np.bincount(images[right], minlength=4000) + 1
    every = measures.Matches(1, images[order], right[None, order], np.ones((1, 12000), bool), objects)
    truth = measures.average_precision([every], np.ones((1, 4000)))[0, 0]
    basic = percentile = 0
    for _ in range(60):
        drawn = rng.choice(4000, 60, replace=False)
        number = np.full(4000, -1)
        number[drawn] = np.arange(60)
        inside = number[every.images] >= 0
        sample = measures.Matches(
            1, number[every.images[inside]], every.right[:, inside], every.counted[:, inside], objects[drawn]
        )
        low, high = tools.evaluate_detector.basic_interval([[sample]], 60)
        middle = measures.average_precision([sample], np.ones((1, 60)))[0, 0]
        basic += low <= truth <= high
        percentile += 2 * middle - high <= truth <= 2 * middle - low
    assert basic >= 52, (basic, percentile)


def test_a_broken_picture_has_no_detections_and_is_counted(run, trained, shapes, tmp_path):
    folder, images = trained("run"), tmp_path / "images"
    images.mkdir()
    for file in (shapes / "val2017").iterdir():
        (images / file.name).write_bytes(file.read_bytes() if file.name != "000001.png" else b"GIF")
    data = ["--images", images, "--annotations", shapes / "annotations/instances_val2017.json"]
    done = run("evaluate", folder, *data)
    assert done.returncode == 0 and "1 broken" in done.stdout and "000001.png: " in done.stdout
    result = json.loads((folder / "evaluation/result.json").read_text())
    assert result["num_broken"] == 1 and result["num_images"] == 4


def test_other_pictures_of_the_same_annotations_are_detected_anew(run, trained, shapes, tmp_path):
    folder, images = trained("run"), tmp_path / "images"
    images.mkdir()
    for file in (shapes / "val2017").iterdir():
        Image.new("RGB", (160, 160)).save(images / file.name)
    assert run("evaluate", folder).returncode == 0
    before = lines_of(folder)
    black = ["--images", images, "--annotations", shapes / "annotations/instances_val2017.json"]
    done = run("evaluate", folder, *black, "--baseline", folder)
    assert done.returncode == 1 and "was evaluated on other pictures of" in done.stderr
    assert run("evaluate", folder, *black).returncode == 0
    assert len(lines_of(folder)) == 2 * len(before) and lines_of(folder)[len(before) :] != before


def test_the_baseline_must_have_the_same_task(run, trained):
    boxes, masks = trained("boxes", "--task", "boxes"), trained("masks")
    assert run("evaluate", boxes).returncode == 0
    done = run("evaluate", masks, "--baseline", boxes)
    assert done.returncode == 1 and "is of another checkpoint, task or data" in done.stderr


def test_what_cannot_be_evaluated_is_refused_in_one_line(run, trained, shapes, tmp_path, changed):
    folder = trained("run")
    other = changed(lambda content: content["categories"][0].update(name="other"), "other.json")
    assert run("evaluate", folder).returncode == 0
    for options, part in (
        ([folder, *other], "has other categories or keypoints"),
        ([folder, "--annotations", shapes / "annotations/instances_train2017.json", "--images", shapes / "train2017"],
         "another checkpoint, task or data"),
        ([tmp_path / "nowhere"], "does not exist"),
        ([folder, "--annotations", "x.json"], "Give --coco, or --images and --annotations"),
        ([folder, "--baseline", tmp_path], "no finished evaluation"),
    ):  # fmt: skip
        done = run("evaluate", *options)
        assert done.returncode == 1 and part in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    again = trained("run", "--max-steps", 3, "--output", tmp_path / "longer")
    assert again and run("evaluate", tmp_path / "longer", "--output", folder / "evaluation").returncode == 1
