"""collect_results.py --table and plot_curves.py, on hand-written run folders."""

import csv
import json
import shutil
from functools import partial

import numpy as np
import pytest
from fake_runs import write_row
from in_process import run_tool
from PIL import Image


@pytest.fixture
def tool(monkeypatch, capsys):
    return partial(run_tool, monkeypatch=monkeypatch, capsys=capsys)


@pytest.fixture
def sweep(tmp_path):
    root = tmp_path / "ablation"
    for seed, base, better in ((1, [1, 0, 0, 0], [1, 1, 0, 0]), (2, [1, 1, 0, 0], [1, 1, 1, 0])):
        write_row(root, "c2d_r50", seed, base)
        write_row(root, "c2d_r50_nl1", seed, better)
    write_row(root, "i3d_r50", 1, [1, 1, 1, 1])  # of another table
    return root


def test_the_table_has_differences_costs_and_the_papers_numbers(tool, sweep, tmp_path):
    files = {name: tmp_path / f"2a.{name}" for name in ("csv", "markdown", "latex", "plot")}
    files["plot"] = tmp_path / "2a.png"
    done = tool("collect_results.py", sweep, "--table", "2a", *(x for n, f in files.items() for x in (f"--{n}", f)))
    assert done.returncode == 0, done.stderr
    with open(files["csv"], newline="") as file:
        rows = {row[""]: row for row in csv.DictReader(file)}
    assert list(rows) == ["C2D R50", "gaussian", "embedded gaussian", "dot product", "concatenation"]
    base, row = rows["C2D R50"], rows["embedded gaussian"]
    assert (base["top-1"], row["top-1"], row["top-5"], row["seeds"]) == (
        "37.50 +- 17.68",
        "62.50 +- 17.68",
        "100.00",
        "2",
    )
    assert row["difference"].startswith("+25.00 (") and base["difference"] == "-"
    assert base["params"] == "1.00x" and 1 < float(row["params"][:-1]) < 1.3
    assert (row["paper"], row["paper's difference"]) == ("72.7 / 90.5", "+0.9")
    assert rows["gaussian"]["top-1"] == "-" and rows["gaussian"]["paper"] == "72.5 / 90.2"
    assert "not trained: gaussian (c2d_r50_nl1_gaussian)" in done.stdout
    assert (
        row["p (Holm)"] == row["p"]
        and "adjusted for all rows with p, 1; detectable" in done.stdout
        and row["detectable"] != "-"
    )
    assert files["markdown"].read_text().splitlines()[4].startswith("| embedded gaussian | 2 ")
    assert "\\toprule" in files["latex"].read_text()
    with Image.open(files["plot"]) as picture:
        assert picture.size[0] > 500


def test_validations_fill_the_papers_columns_where_nothing_was_evaluated(tool, sweep, tmp_path):
    for folder in sweep.glob("*"):
        shutil.rmtree(folder / "evaluation_step10_1x1_uniform")
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rows[-1] |= {"mean_class_accuracy": 0.125, "loss": 2.0}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tool("collect_results.py", sweep, "--table", "2a", "--csv", tmp_path / "2a.csv").returncode == 0
    header, first, *_ = csv.reader((tmp_path / "2a.csv").read_text().splitlines())
    assert header[:5] == ["", "seeds", "top-1", "top-5", "difference"] and first[2] == "37.50 +- 17.68"
    for folder in sweep.glob("*seed-2"):
        shutil.rmtree(folder)
    # one value of one seed has no p
    assert "adjusted for all rows with p, 0;" in tool("collect_results.py", sweep, "--table", "2a").stdout
    assert tool("collect_results.py", sweep, "--csv", tmp_path / "runs.csv").returncode == 0
    row = next(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    assert float(row["last mean of classes"]) == 12.5 and not any("loss" in name for name in row)


def test_runs_that_are_not_rows_of_one_table_are_refused(tool, sweep):
    write_row(sweep, "c2d_r50_nl1_gaussian", 1, [1, 1, 1, 1], "optim.max_steps=7", "data.flip=false")
    done = tool("collect_results.py", sweep, "--table", "2a")
    assert done.returncode == 1 and "are not rows of one table: data.flip is True and False" in done.stderr
    none = tool("collect_results.py", sweep, "--table", "gcnet")
    assert none.returncode == 1 and "No finished run of table gcnet" in none.stderr


def test_evaluations_on_different_videos_are_refused(tool, sweep):
    file = sweep / "experiment-c2d_r50+seed-2/evaluation_step10_1x1_uniform/scores.npz"
    with np.load(file) as held:
        arrays = dict(held)
    np.savez(file, **(arrays | {"ids": arrays["ids"][::-1]}))
    done = tool("collect_results.py", sweep, "--table", "2a")
    assert done.returncode == 1 and "were evaluated on different videos" in done.stderr


def test_curves_of_rows(tool, sweep, tmp_path):
    done = tool("plot_curves.py", tmp_path / "curves.png", sweep, "--rows", "c2d_r50", "c2d_r50_nl1")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 500
    missing = tool("plot_curves.py", tmp_path / "curves.png", sweep, "--rows", "c2d_r101")
    assert missing.returncode == 1 and "No run named c2d_r101" in missing.stderr
    strange = tool("plot_curves.py", tmp_path / "curves.mp3", sweep, "--rows", "c2d_r50")
    assert strange.returncode == 1 and "curves.mp3: no picture format has this suffix; use one of" in strange.stderr
