import csv
import json
import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fake_runs import write_row
from in_process import run_tool

TOOL = Path(__file__).parents[2] / "tools/compare_folds.py"
# {(fold, row, seed): which of four videos are right}
RIGHT = {
    (0, "c2d_r50", 1): [1, 0, 0, 0],
    (0, "c2d_r50", 2): [1, 1, 0, 0],
    (0, "c2d_r50_nl1", 1): [1, 1, 1, 0],
    (0, "c2d_r50_nl1", 2): [1, 1, 1, 1],
    (1, "c2d_r50", 1): [0, 0, 1, 0],
    (1, "c2d_r50", 2): [0, 1, 1, 0],
    (1, "c2d_r50_nl1", 1): [0, 1, 1, 1],
    (1, "c2d_r50_nl1", 2): [1, 0, 0, 1],
}


def write_folds(root):
    """Writes the runs of RIGHT, the videos of a fold named after it."""
    for (fold, row, seed), right in RIGHT.items():
        folder = write_row(root / f"fold-{fold}", row, seed, right, f"data.val=val{fold}.csv")
        file = folder / "evaluation_step10_1x1_uniform/scores.npz"
        arrays = dict(np.load(file))
        np.savez(file, **arrays | {"ids": np.array([f"{fold}/{name}" for name in arrays["ids"]])})
    return sorted(root.iterdir())


@pytest.fixture
def compare(monkeypatch, capsys):
    return partial(run_tool, "compare_folds.py", monkeypatch=monkeypatch, capsys=capsys)


def test_each_video_counts_once_in_each_seed(compare, tmp_path):
    folders = write_folds(tmp_path / "runs")
    ended = compare(*folders, "--csv", tmp_path / "table.csv")
    assert ended.returncode == 0, ended.stderr
    base, own = (tmp_path / "table.csv").read_text().splitlines()[1:]
    # 2 and 4 of 8 videos, 6 and 6 of 8
    assert base.startswith("block.kind=none,2,37.50 +- 17.68,")
    assert own.startswith("block.kind=non_local,2,75.00,") and ",+37.50 (" in own
    assert "2 folds" in ended.stdout


def test_videos_of_one_recording_are_one_draw(compare, tmp_path):
    folders = write_folds(tmp_path / "runs")

    def line(*arguments):
        assert compare(*folders, "--csv", tmp_path / "table.csv", *arguments).returncode == 0
        with open(tmp_path / "table.csv", newline="") as file:
            return list(csv.DictReader(file))[1]

    names = [f"{fold}/{i}.mp4" for fold in (0, 1) for i in range(4)]
    (tmp_path / "alone.csv").write_text("".join(f"{name} {name}\n" for name in names))
    (tmp_path / "pairs.csv").write_text("".join(f"{name} {i // 2}\n" for i, name in enumerate(names)))
    videos, alone, pairs = line(), line("--groups", tmp_path / "alone.csv"), line("--groups", tmp_path / "pairs.csv")
    assert videos == alone
    assert pairs["top-1"] == videos["top-1"] and pairs["difference"][:6] == videos["difference"][:6] == "+37.50"
    assert pairs["difference"] != videos["difference"]
    lacking = compare(*folders, "--groups", tmp_path / "runs/none.csv")
    assert lacking.returncode == 1 and "the file does not exist" in lacking.stderr


def test_values_of_groups_have_the_mean_of_their_videos_and_the_spread_of_the_ratio():
    of_groups = runpy.run_path(str(TOOL))["_of_groups"]
    right, names = np.array([1.0, 1, 0, 1, 0, 0]), np.array(list("abcdef"))
    values = of_groups(right, names, dict(zip("abcdef", "xxxyyz", strict=True)))
    assert values.mean() == pytest.approx(right.mean())
    # by hand: groups of 3, 2 and 1 videos with 2, 1 and 0 right, against 1/2 of each
    np.testing.assert_allclose(values, 0.5 + 0.5 * np.array([0.5, 0.0, -0.5]))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("a run", "fold-1 has no finished run with block.kind=non_local, seed 2, which another fold has."),
        ("a fold twice", "have videos in common, such as 0/0.mp4."),
        ("an evaluation", "have no evaluation in common: run nlvideo-evaluate for all of them."),
        ("another length", "are not folds of one run: data.num_frames is 8 and 16."),
        ("other views", "was evaluated with 1 clip x 3 crops,"),
        ("other classes", "have other classes."),
    ],
)
def test_folds_that_are_not_whole_are_refused(compare, tmp_path, mistake, message):
    folders = write_folds(tmp_path)
    if mistake == "a run":
        (tmp_path / "fold-1/experiment-c2d_r50_nl1+seed-2/status.json").unlink()
    elif mistake == "a fold twice":
        folders.append(folders[0])
    elif mistake == "an evaluation":
        (tmp_path / "fold-0/experiment-c2d_r50+seed-1/evaluation_step10_1x1_uniform/result.json").unlink()
    for folder in folders[1].iterdir():
        config, evaluation = folder / "config.yaml", folder / "evaluation_step10_1x1_uniform"
        if mistake == "another length":
            config.write_text(config.read_text().replace("num_frames: 8", "num_frames: 16"))
        elif mistake == "other views":
            result = json.loads((evaluation / "result.json").read_text())
            result["views"]["num_crops"] = 3
            (evaluation / "result.json").write_text(json.dumps(result))
        elif mistake == "other classes":
            arrays = dict(np.load(evaluation / "scores.npz"))
            np.savez(evaluation / "scores.npz", **arrays | {"classes": arrays["classes"][::-1]})
    ended = compare(*folders)
    assert ended.returncode == 1
    assert message in ended.stderr.replace("\n", " ")
