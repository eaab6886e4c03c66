from functools import partial

import numpy as np
import pytest
from fake_runs import write_row
from in_process import run_tool

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
    assert "2 folds, 8 videos" in ended.stdout


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("a run", "fold-1 has no finished run with block.kind=non_local, seed 2, which another fold has."),
        ("a fold twice", "have videos in common, such as 0/0.mp4."),
        ("an evaluation", "fold-0/experiment-c2d_r50+seed-1 has 0 evaluations; it must have one."),
    ],
)
def test_folds_that_are_not_whole_are_refused(compare, tmp_path, mistake, message):
    folders = write_folds(tmp_path)
    if mistake == "a run":
        (tmp_path / "fold-1/experiment-c2d_r50_nl1+seed-2/status.json").unlink()
    elif mistake == "a fold twice":
        folders.append(folders[0])
    else:
        (tmp_path / "fold-0/experiment-c2d_r50+seed-1/evaluation_step10_1x1_uniform/result.json").unlink()
    ended = compare(*folders)
    assert ended.returncode == 1
    assert message in ended.stderr.replace("\n", " ")
