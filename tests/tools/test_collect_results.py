import csv
import json
import statistics
import subprocess
import sys
from functools import partial

import pytest
from conftest import composed
from in_process import TOOLS, run_tool

from nlvideo.config.compose import to_yaml
from nlvideo.experiments.run_folders import read_runs
from nlvideo.runtime.errors import UserError
from nlvideo.training.run_status import write_status

TOOL = "collect_results.py"


@pytest.fixture
def collect(monkeypatch, capsys):
    return partial(run_tool, TOOL, monkeypatch=monkeypatch, capsys=capsys)


def write_run(folder, *overrides: str, top1=(), state="finished", step=10, **status):
    folder.mkdir(parents=True)
    config = composed("experiment=quickstart", "model.width=4", "optim.max_steps=10", *overrides)
    (folder / "config.yaml").write_text(to_yaml(config))
    rows = [{"split": "train", "step": i, "clips_per_second": 10.0 * i, "seconds": 900.0} for i in (1, 2, 3)]
    rows += [{"split": "val", "step": i, "top1": top, "top5": 0.9, "seconds": 450.0} for i, top in enumerate(top1, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if state:
        write_status(folder, state, step=step, num_classes=8, **status)


def write_evaluation(run, step: int, top1: float):
    folder = run / f"evaluation_step{step}_10x3_uniform"
    folder.mkdir()
    result = {"views": {"num_clips": 10, "num_crops": 3}, "top1": top1, "top5": 0.95, "step": step}
    (folder / "result.json").write_text(json.dumps(result))


def read_markdown(text: str, table: int, key: str) -> dict[str, dict[str, str]]:
    """Returns the rows of one of the tables by their value in the column `key`."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n\n")[table].splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    return {row[key]: row for row in rows}


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "outputs"
    for block, seed, top1 in (("none", 1, 0.5), ("none", 2, 0.6), ("none", 3, 0.9), ("nl1", 1, 0.7), ("nl1", 2, 0.75)):
        write_run(root / f"block-{block}+seed-{seed}", f"block={block}", f"seed={seed}", top1=(0.8, top1))
    write_run(root / "block-nl1+seed-3", "block=nl1", "seed=3", top1=(0.99,), state=None)
    (root / "block-nl5+seed-1").mkdir()
    write_status(root / "block-nl5+seed-1", "failed", error="rank 1: error: no such file")
    write_evaluation(root / "block-none+seed-1", 10, 0.55)
    return root


def test_runs_and_their_spread_over_seeds(collect, runs, tmp_path):
    done = collect(runs, "--csv", tmp_path / "runs.csv", "--markdown", tmp_path / "runs.md")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "runs.csv", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert len(rows) == 7
    first = rows["outputs/block-none+seed-1"]
    assert (float(first["best top-1"]), float(first["last top-1"]), round(float(first["10x3 top-1"]), 9)) == (
        80,
        50,
        55,
    )
    assert first["overrides"] == "block.kind=none" and first["state"] == "finished"
    assert float(first["hours"]) == pytest.approx((3 * 900 + 2 * 450) / 3600) and float(first["clips/s"]) == 20
    failed = rows["outputs/block-nl5+seed-1"]
    assert failed["error"] == "rank 1: error: no such file" and failed["seed"] == failed["max_steps"] == ""

    text = (tmp_path / "runs.md").read_text()
    table = read_markdown(text, 1, "overrides")
    assert table.keys() == {"block.kind=none", "block.kind=non_local"}
    none, blocks = table["block.kind=none"], table["block.kind=non_local"]
    assert (none["seeds"], blocks["seeds"]) == ("3", "2")  # unfinished runs are not part of a mean
    assert none["last top-1"] == f"66.67 +- {statistics.stdev([50, 60, 90]):.2f}" == "66.67 +- 20.82"
    assert blocks["last top-1"] == "72.50 +- 3.54" and blocks["best top-1"] == "80.00"
    assert float(none["M params"]) < float(blocks["M params"])
    for out in (done.stdout, text):
        assert "not finished: outputs/block-nl1+seed-3: unfinished at step 4" in out
        assert "not finished: outputs/block-nl5+seed-1: failed at step 0, rank 1: error: no such file" in out
    # only one of three seeds was evaluated with 10x3 views, and the mean says so
    assert (none["10x3 top-1"], blocks["10x3 top-1"]) == ("55.00 (1 of 3 seeds)", "-")


def test_the_latest_of_several_evaluations_has_the_plain_name(collect, tmp_path):
    write_run(tmp_path / "o/a", top1=(0.5,))
    for step, top1 in ((5000, 0.2), (10000, 0.7), (900, 0.1)):
        write_evaluation(tmp_path / "o/a", step, top1)
    assert collect(tmp_path / "o", "--markdown", tmp_path / "runs.md").returncode == 0
    row = read_markdown((tmp_path / "runs.md").read_text(), 0, "run")["o/a"]
    assert row["10x3 top-1"] == "70.00"
    assert row["10x3 evaluation_step5000_10x3_uniform top-1"] == "20.00"
    assert row["10x3 evaluation_step900_10x3_uniform top-1"] == "10.00"


def test_runs_that_differ_in_free_keys_or_folder_are_the_same(collect, tmp_path):
    write_run(tmp_path / "o/a", "seed=1", "data.num_workers=1", "output_dir=x", top1=(0.5,))
    write_run(tmp_path / "o/b", "seed=2", "data.num_workers=3", "output_dir=y", "name=other", top1=(0.7,))
    done = collect(tmp_path / "o", "--markdown", tmp_path / "runs.md")
    assert done.returncode == 0 and "60.00 +- 14.14" in (tmp_path / "runs.md").read_text()


def test_what_cannot_be_read_is_named(collect, tmp_path):
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "o/a", top1=(0.5,))
    write_run(tmp_path / "o/b", top1=(0.7,))
    for arguments, message in (
        ([tmp_path / "nowhere"], "nowhere does not exist"),
        ([tmp_path / "empty"], "empty holds no run"),
        ([tmp_path / "o"], "o/a, o/b are the same run with the same seed 0"),
    ):
        done = collect(*arguments)
        assert done.returncode == 1 and message in done.stderr and done.stderr.startswith("error: ")


def test_an_output_that_cannot_be_written_is_named_before_anything_is_read(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, TOOLS / TOOL, tmp_path / "nowhere", "--csv", tmp_path / "file/runs.csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)  # in a process, as users start it
    assert done.returncode == 1 and f"error: --csv {tmp_path}/file/runs.csv: cannot create the folder" in done.stderr


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("metrics.jsonl", '{"split": "train", "step": 1}\n{torn\n', "in '{torn'"),
        ("metrics.jsonl", '{"step": 1}\n', "'split' is missing"),
        ("config.yaml", "a: [1\n  b", "flow sequence"),
        ("config.yaml", "another: program\n", "another"),
        ("config.yaml", "- 1\n", "ListConfig"),
        ("config.yaml", "model: {layout: none}\ndata: {root: x}\n", "none"),
        ("status.json", "{", "in '{'"),
        ("evaluation_step9_10x3_uniform/result.json", "{}", "'views' is missing"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_that_names_it(tmp_path, file, content, reason):
    write_run(tmp_path / "o/a", top1=(0.5,))
    write_evaluation(tmp_path / "o/a", 9, 0.5)
    (tmp_path / "o/a" / file).write_text(content)
    with pytest.raises(UserError) as raised:
        read_runs(tmp_path / "o")
    message = str(raised.value)
    assert message.startswith(f"{tmp_path}/o/a/{file} cannot be read: ") and reason in message and "\n" not in message
