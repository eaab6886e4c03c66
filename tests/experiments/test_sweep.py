"""Sweeps as a user starts them: nlvideo-train -m ..."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import composed
from in_process import run_main
from omegaconf import OmegaConf
from runs import BIN, ENDLESS, SLOW_LR, TINY, rows_of

from nlvideo.evaluation.significance import detectable_errors
from nlvideo.experiments.sweep import _placed
from nlvideo.experiments.sweep_power import by_binomial, by_spread, power_line
from nlvideo.train import main
from nlvideo.training.run_status import read_status, write_status


def arguments_of(*overrides: str) -> list[str]:
    """Returns those of a sweep; a key must not be both fixed and swept."""
    swept = {override.split("=")[0] for override in overrides}
    return ["-m", *(o for o in TINY if o.split("=")[0] not in swept), *overrides]


def sweep(cwd, *overrides: str) -> subprocess.CompletedProcess:
    command = [BIN / "nlvideo-train", *arguments_of(*overrides)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=cwd)


@pytest.fixture
def sweep_here(tmp_path, monkeypatch, capsys):
    """Returns a function that starts a sweep in this process; its points have their own all the same."""

    def started(*overrides: str) -> subprocess.CompletedProcess:
        return run_main(main, *arguments_of(*overrides), monkeypatch=monkeypatch, capsys=capsys, cwd=tmp_path)

    return started


@pytest.mark.nightly
def test_a_sweep_of_two_ranks_does_only_what_is_missing(sweep_here, video_folder, tmp_path):
    """Two points, two ranks each, one of which fails on purpose: its list does not exist at first."""
    text = (video_folder / "train.csv").read_text()
    (tmp_path / "one.csv").write_text(text)
    lists = ",".join(f"{tmp_path}/{name}.csv" for name in ("four", "one"))
    options = [f"data.train={lists}", "num_devices=2", "optim.batch_size=4", f"data.root={video_folder}"]
    options += ["output_dir=points", "optim.max_steps=2"]
    first = sweep_here(*options)
    assert first.returncode == 1
    root = tmp_path / "points"
    prefix = f"data.train-{tmp_path}/".replace("/", "_")
    *good, failed = (root / f"{prefix}{name}.csv" for name in ("one", "four"))
    assert {path for path in root.iterdir() if path.is_dir()} == {*good, failed}
    assert [read_status(folder)["state"] for folder in (*good, failed)] == ["finished", "failed"]
    assert "1 of 2 points failed" in first.stderr and f"log: points/{failed.name}/log.txt" in first.stderr
    assert "four.csv does not exist" in read_status(failed)["error"]
    assert "four.csv does not exist" in (failed / "log.txt").read_text()

    (tmp_path / "four.csv").write_text(text)
    before = {file: file.stat().st_mtime_ns for folder in good for file in folder.rglob("*")}
    second = sweep_here(*options)
    assert second.returncode == 0, second.stderr[-3000:]
    assert "sweep of 2 points in points, 1 of them finished already" in second.stdout
    assert before == {file: file.stat().st_mtime_ns for file in before}, "a finished point was touched"
    assert all(read_status(folder)["state"] == "finished" for folder in (*good, failed))
    assert all([r["step"] for r in rows_of(f) if r["split"] == "val"] == [2] for f in (*good, failed))

    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    other = sweep_here(*options, "model.dropout=0.25")
    assert other.returncode == 1
    assert "holds another run than the point asked for:\n  model.dropout: 0.0 -> 0.25" in other.stderr
    assert before == {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.batch_size=2,0"], "error: optim.batch_size=0: must be at least 1."),
        (["block=nl1,nl2"], "Could not find 'block/nl2'"),
        (["block.mode=gaussian,gausian"], "mode='gausian' is not a non-local mode"),
        (["seed=1,1"], "two points would have the folder points/seed-1"),
        (["dry_run=true,false"], "dry_run=true is for all points of a sweep or for none"),
        (["seed=1,2", "output_dir=/proc/nlvideo"], "output_dir=/proc/nlvideo cannot be written"),
    ],
)
def test_a_points_mistake_is_reported_before_any_is_trained(sweep_here, video_folder, tmp_path, overrides, message):
    done = sweep_here(f"data.root={video_folder}", "output_dir=points", *overrides)
    assert done.returncode == 1 and message in done.stderr
    assert not list(tmp_path.glob("points/*"))


def test_a_dry_run_says_what_so_many_seeds_and_videos_can_show(sweep_here, video_folder, tmp_path):
    options = [f"data.root={video_folder}", "output_dir=points", "block=none,nl1", "seed=1,2,3", "dry_run=true"]
    done = sweep_here(*options)
    assert done.returncode == 0, done.stderr
    assert "sweep of 6 points in points, 0 of them finished already" in done.stdout and "nl1+seed-3\n" in done.stdout
    # 2.88 errors of sqrt(2 * 0.25 / 15), as 28 degrees of freedom are
    expected = 100 * detectable_errors(28) * (0.5 / 15) ** 0.5
    line = f"detectable  {expected:.2f} points between two rows of 3 seeds and 5 validation videos (80 % power,"
    assert line in done.stdout and "by the binomial alone at 50.0 % (nothing is finished)" in done.stdout
    assert not list(tmp_path.glob("points/*"))


def test_the_detectable_difference_is_by_the_spread_of_finished_points():
    points, source = by_spread([[0.5, 0.6], [0.7], [0.4, 0.5, 0.6]], 3)
    deviation = ((0.005 + 2 * 0.01) / 3) ** 0.5  # pooled, of one and two degrees of freedom
    assert points == pytest.approx(565.3 * deviation * (2 / 3) ** 0.5, rel=1e-3)  # 5.653 errors: two degrees of freedom
    assert source == "by the spread of 5 finished points in 2 rows: 9.13 points over seeds"
    assert by_spread([[0.5], [0.6]], 3) is None and by_spread([[0.5, 0.6]], 1) is None
    points, source = by_binomial([0.8, 1.0], 1, 200)
    assert points == pytest.approx(280.8 * 0.03, rel=1e-3) and "at 90.0 % (the mean of 2 finished)" in source
    assert by_spread([[0.1 + 0.2, 0.3]], 3) is None  # equal but for rounding
    for all_right in (0.0, 1.0):  # a binomial without spread would find any difference
        points, source = by_binomial([all_right] * 2, 3, 160)
        assert points == pytest.approx(280.3 * (2 * 0.02345 * 0.97655 / 480) ** 0.5, rel=1e-3)
        assert f"(Wilson's end, as the mean of 2 finished is {100 * all_right:.0f} %)" in source


def test_finished_points_of_a_row_tell_the_spread_of_its_seeds(video_folder, tmp_path):
    configs = []
    for block, scores in (("none", (0.4, 0.6)), ("nl1", (0.8,))):
        for seed, score in enumerate(scores, 1):
            folder = tmp_path / f"block-{block}+seed-{seed}"
            weights = f"model.pretrained={tmp_path}/stills+seed-{seed}/checkpoint.pt"  # each seed starts from its own
            options = [f"block={block}", f"seed={seed}", weights, f"output_dir={folder}"]
            configs.append(
                composed(*(o for o in TINY if not o.startswith("block")), f"data.root={video_folder}", *options)
            )
            folder.mkdir()
            write_status(folder, "finished", step=6, score=score)
    line = power_line(configs, [True] * 3)
    assert "between two rows of 1 seed and 5" in line and "at 60.0 % (the mean of 3 finished)" in line
    line = power_line(configs[:2], [True] * 2)
    assert "by the spread of 2 finished points in 1 row: 14.14 points over seeds" in line
    assert "(nothing is finished)" in power_line(configs, [False] * 3)


@pytest.mark.slow
def test_a_sweep_that_is_asked_to_stop_leaves_checkpoints_and_goes_on(sweep_here, video_folder, tmp_path):
    options = [f"data.root={video_folder}", "seed=1,2", "output_dir=points", "checkpoint_every_steps=100000"]
    options += ["validate_every_steps=100000", "optim.schedule=steps", SLOW_LR]
    command = [BIN / "nlvideo-train", "-m", *TINY, *options, *ENDLESS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)
    metrics = tmp_path / "points/seed-1/metrics.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGUSR1)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGUSR1, output[-3000:]
    assert "resume with the same command" in output and "Traceback" not in output
    status = read_status(tmp_path / "points/seed-1")
    assert status["state"] == "stopped", (status, output[-3000:])
    assert not (tmp_path / "points/seed-2").exists()
    steps = status["step"] + 2
    done = sweep_here(*options, f"optim.max_steps={steps}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resumed after step {status['step']}" in done.stdout
    for seed in (1, 2):
        assert read_status(tmp_path / f"points/seed-{seed}")["step"] == steps


def test_names_are_short_and_need_no_quotes(tmp_path):
    config = composed(*TINY, "data.root=x")

    def name_of(overrides: str) -> str:
        hydra_config = OmegaConf.create({"job": {"override_dirname": overrides}, "sweep": {"dir": str(tmp_path)}})
        return Path(_placed(config, hydra_config).output_dir).name

    assert name_of("block-nl1+model.pretrained-/data/a b.pt") == "block-nl1+model.pretrained-_data_a_b.pt"
    long = ["+".join(f"data.mean-[0.{i},0.{i},{end}]" for i in range(20)) for end in (1, 2)]
    assert len({name_of(overrides) for overrides in long}) == 2
    assert all(len(name_of(overrides)) == 150 for overrides in long)


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", ["submitit_local"])
def test_points_can_be_started_by_submitit(video_folder, tmp_path, monkeypatch, launcher):
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    options = [f"hydra/launcher={launcher}", f"data.root={video_folder}", "seed=1,2", f"output_dir={tmp_path}/points"]
    # submitit starts a local job and then makes its folder: on a busy machine the job comes too early, so it waits.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\ntime.sleep(3 * ('submitit.local._local' in sys.orig_argv))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = sweep(tmp_path, *options, "optim.max_steps=2")
    assert done.returncode == 0, done.stderr[-3000:]
    for seed in (1, 2):
        assert json.loads((tmp_path / f"points/seed-{seed}/status.json").read_text())["state"] == "finished"
