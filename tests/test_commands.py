"""The console commands as a user meets them: in an empty folder, with mistakes."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from in_process import run_main

from nlvideo.train import main

BIN = Path(sys.executable).parent


@pytest.fixture
def train_command(tmp_path, monkeypatch, capsys):
    """Returns a function that runs nlvideo-train in this process, in a folder of its own."""
    return partial(run_main, main, name="nlvideo-train", monkeypatch=monkeypatch, capsys=capsys, cwd=tmp_path)


def test_the_config_can_be_printed_in_any_folder_and_nothing_is_written(tmp_path):
    command = [BIN / "nlvideo-train", "experiment=i3d_r50_nl5", "data.root=x", "--cfg", "job"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "layout: i3d" in done.stdout and "res4.5" in done.stdout and "output_dir: outputs/${name}" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_module_is_the_same_command(tmp_path):
    command = [sys.executable, "-m", "nlvideo.train", "experiment=quickstart", "--cfg", "job"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0 and "name: quickstart" in done.stdout


def test_own_experiments_can_be_added(train_command, tmp_path):
    (tmp_path / "my_runs/experiment").mkdir(parents=True)
    (tmp_path / "my_runs/experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: c2d_r101\nname: mine\n"
    )
    options = ["--config-dir", "my_runs", "experiment=mine", "data.root=x", "--cfg", "job"]
    done = train_command(*options)
    assert done.returncode == 0 and "depth: 101" in done.stdout and "name: mine" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["experiment=i3d_r5"], ["Could not find 'experiment/i3d_r5'", "i3d_r50_nl5", "quickstart"]),
        (["model=resnext"], ["Could not find 'model/resnext'", "c2d_r50", "i3d_r101"]),
        (["model.dpeth=50", "data.root=x"], ["model.dpeth", "Known keys there: layout, depth", "Did you mean depth?"]),
        (["modle=x"], ["modle", "model"]),
        (["+model.dpeth=50", "data.root=x"], ["model.dpeth", "depth"]),
        (["model.depth=fifty", "data.root=x"], ["fifty", "model.depth", "Integer"]),
        (["data.flip=2x", "data.root=x"], ["2x", "data.flip"]),
        (["precision=half", "data.root=x"], ["precision=half: choose from auto, float32"]),
        ([], ["data.root has no value; give it as data.root=..."]),
        (["data.root=/nowhere"], ["/nowhere/train.csv does not exist"]),
        (["experiment=quickstart", "block.places.r50=[res9.1]"], ["res9.1", "res4.0 to res4.5"]),
        (["experiment=quickstart", "block.mode=softmax"], ["softmax", "embedded_gaussian"]),
        (["experiment=quickstart", "model.layout=x3d"], ["x3d", "c2d, i3d"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_mistakes_are_refused_at_once_with_the_choices(train_command, tmp_path, arguments, messages):
    small = ["data.synthetic={num_train: 16, num_val: 8, num_frames: 4, height: 48}"] * ("quickstart" in str(arguments))
    done = train_command(*arguments, *small)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr, done.stderr
    for message in messages:
        assert message in done.stderr, done.stderr
    assert not (tmp_path / "outputs/quickstart").exists()


def test_a_table_is_a_sweep_whose_configurations_can_be_shown(train_command, tmp_path):
    options = ["+ablation=table_2g", "data.root=x", "seed=1,2"]
    done = train_command("-m", *options, "--cfg", "job")
    assert done.returncode == 0, done.stderr
    points = [line for line in done.stdout.splitlines() if line.startswith("# outputs")]
    assert len(points) == 12 and points[3] == "# outputs/ablation/experiment-i3d_r50_128x1_paper+seed-2"
    assert "pretrained: outputs/ablation/experiment-i3d_r50+seed-2/checkpoint.pt" in done.stdout
    alone = train_command(*options[:2])
    assert alone.returncode == 1 and "error: This config is a sweep over several runs: add -m" in alone.stderr
    assert list(tmp_path.iterdir()) == []
