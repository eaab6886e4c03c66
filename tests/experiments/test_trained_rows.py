"""Which runs may stand in one of the papers' tables."""

import pytest

from nlvideo.experiments.run_folders import MULTIPLY_ADDS, PARAMS, RunSummary
from nlvideo.experiments.trained_rows import fill_table
from nlvideo.runtime.errors import UserError


@pytest.fixture
def run(tmp_path):
    """Returns a function that makes a finished run, validated only, which starts from these weights."""

    def make(experiment: str, start: str) -> RunSummary:
        depth = 101 if "r101" in experiment else 50
        settings = {"name": experiment, "model.depth": depth, "model.pretrained": start, "data.flip": True}
        metrics, cost = {"last top-1": 50.0, "last top-5": 80.0}, {PARAMS: 1.0, MULTIPLY_ADDS: 1.0}
        return RunSummary(experiment, tmp_path, settings, "finished", 10, 10, None, metrics, cost, seed=1)

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
