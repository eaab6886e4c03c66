"""Which runs may stand in one of the papers' tables, and which of their evaluations."""

import json
from dataclasses import replace

import numpy as np
import pytest

from nlvideo.experiments.run_folders import MULTIPLY_ADDS, PARAMS, RunSummary
from nlvideo.experiments.run_tables import group_rows, set_overrides
from nlvideo.experiments.trained_rows import fill_table
from nlvideo.runtime.errors import UserError


def evaluate(run: RunSummary, folder: str, correct: list[int], **result) -> None:
    """Writes an evaluation of a run, in which these of its videos are right."""
    (run.path / folder).mkdir(parents=True)
    said = {"views": {"num_clips": 1, "num_crops": 1}, "step": 10, "top1": float(np.mean(correct)), "top5": 1.0}
    (run.path / folder / "result.json").write_text(json.dumps(said | result))
    names = np.array([f"{i}.mp4" for i in range(len(correct))])
    scores, targets = np.eye(2)[[1 - value for value in correct]], np.zeros(len(correct), int)
    np.savez(run.path / folder / "scores.npz", ids=names, classes=names[:2], scores=scores, targets=targets)


def tops(filled) -> list[float]:
    return [run.main_metric for line in filled.lines for run in line.runs]


@pytest.fixture
def run(tmp_path):
    """Returns a function that makes a finished run, validated only, which starts from these weights."""

    def make(experiment: str, start: str) -> RunSummary:
        depth = 101 if "r101" in experiment else 50
        settings = {"name": experiment, "model.depth": depth, "model.pretrained": start, "data.flip": True}
        metrics, cost = {"last top-1": 50.0, "last top-5": 80.0}, {PARAMS: 1.0, MULTIPLY_ADDS: 1.0}
        return RunSummary(experiment, tmp_path / experiment, settings, "finished", 10, 10, None, metrics, cost, seed=1)

    return make


def test_networks_of_each_depth_start_from_their_own_weights(run):
    runs = [run("c2d_r50", "r50.pt"), run("c2d_r50_nl5", "r50.pt"), run("c2d_r101", "r101.pt")]
    assert [bool(line.runs) for line in fill_table("2c", runs).lines] == [True, False, True, False, True] + [False] * 3
    with pytest.raises(UserError, match="model.pretrained is r50.pt and other.pt"):
        fill_table("2c", [*runs, run("c2d_r50_nl1", "other.pt")])
    with pytest.raises(UserError, match="model.pretrained is r101.pt and r50.pt"):
        fill_table("2c", [*runs, run("c2d_r101_nl5", "r50.pt")])


def test_rows_of_128_frames_each_start_from_their_own_row_of_32(run):
    runs = [run(f"{name}_128x1_paper", f"{name}.pt") for name in ("c2d_r50", "i3d_r50", "c2d_r101")]
    assert sum(bool(line.runs) for line in fill_table("2g", runs).lines) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.root": "/b/other"}, "data.root is clips and other"),
        ({"optim.max_epochs": 90}, "optim.max_epochs is 10 and 90"),
        ({"precision": "float64"}, "precision is auto and float64"),
        ({"block.kind": "global_context"}, "block.kind is none and global_context"),  # of the same row
        ({"model.layout": "i3d"}, "model.layout is c2d and i3d"),
    ],
)
def test_a_row_is_of_one_network_recipe_and_data_set(run, settings, message):
    one = run("c2d_r50", "r50.pt")
    usual = {"data.root": "/a/clips", "optim.max_epochs": 10, "precision": "auto"}
    one.settings |= usual | {"block.kind": "none", "model.layout": "c2d", "seed": 1}
    elsewhere = replace(one, name="elsewhere", seed=2, settings=one.settings | {"data.root": "/b/clips", "seed": 2})
    assert len(fill_table("2c", [one, elsewhere]).lines[0].runs) == 2  # the same data on another machine
    other = replace(elsewhere, settings=elsewhere.settings | settings)
    with pytest.raises(UserError, match=message):
        fill_table("2c", [one, other])
    set_overrides([one, other])
    assert len(group_rows([one, other])) == 2


def test_runs_of_two_folders_with_one_name_keep_their_own_evaluations(run, tmp_path):
    runs = [replace(run("c2d_r50", "a.pt"), path=tmp_path / str(seed) / "run", seed=seed) for seed in (1, 2)]
    evaluate(runs[0], "evaluation", [0, 0, 0, 1])
    evaluate(runs[1], "evaluation", [1, 1, 1, 1])
    assert tops(fill_table("2c", runs)) == [25, 100]


def test_evaluations_of_other_steps_and_lists_are_not_mixed(run):
    base, five = run("c2d_r50", "a.pt"), run("c2d_r50_nl5", "a.pt")
    evaluate(base, "last", [0, 0, 0, 1])
    evaluate(five, "best", [1, 1, 1, 1], step=4)
    filled = fill_table("2c", [base, five])
    assert filled.views == "last validation, one centre clip, as no evaluation is of all runs"
    assert tops(filled) == [50, 50]
    evaluate(five, "other_list", [1, 1, 1, 1], list_sha256="b")
    evaluate(base, "best", [0, 0, 1, 1], step=4)
    filled = fill_table("2c", [base, five])
    assert tops(filled) == [50, 100] and filled.views == "1 clip x 1 crop, of a step before the last"
    evaluate(five, "last", [0, 1, 1, 1])
    filled = fill_table("2c", [base, five])
    assert tops(filled) == [25, 75] and filled.views == "1 clip x 1 crop"


def test_a_run_without_any_accuracy_is_named(run):
    never = replace(run("c2d_r50_nl5", "a.pt"), metrics={"best top-1": None})
    with pytest.raises(UserError, match="c2d_r50_nl5 was never validated"):
        fill_table("2c", [run("c2d_r50", "a.pt"), never])
