"""tools/train_detector.py: the schedule, exact resume, ranks that equal micro-batches, and what is refused."""

import argparse
import ast
import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from in_process import run_tool

from nlvideo.runtime.signals import StopSignal
from nlvideo.training.step_files import newest_checkpoint

TOOL = Path(__file__).parents[2] / "tools/train_detector.py"
TINY = "--backbone thin --min-size 64 --batch-size 2 --max-steps 6 --lr 0.002 --workers 0 --log-every 1".split()


@pytest.fixture
def train(monkeypatch, capsys, shapes):
    """Returns a function that trains in this process and returns the finished program; later options replace."""

    monkeypatch.syspath_prepend(TOOL.parent)

    def run(*options, data=("--coco", shapes)):
        return run_tool(TOOL.name, *data, *TINY, *options, monkeypatch=monkeypatch, capsys=capsys)

    return run


def start(shapes, *options, ranks=1, **pipes) -> subprocess.Popen:
    torchrun = f"-m torch.distributed.run --nproc-per-node={ranks} --rdzv-backend=c10d --rdzv-endpoint=localhost:0"
    command = [
        sys.executable,
        *(torchrun.split() if ranks > 1 else []),
        str(TOOL),
        "--coco",
        str(shapes),
        *TINY,
        *map(str, options),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOOL.parents[1])}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def weights_of(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_equal(a, b, parts=("model", "optimizer")):
    for part in parts:
        flat = [torch.utils._pytree.tree_leaves(of[part]) for of in (a, b)]
        assert all(torch.equal(x, y) if torch.is_tensor(x) else x == y for x, y in zip(*flat, strict=True))


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("images_per_second", "split")} for row in rows]


def test_a_run_learns_and_leaves_what_runs_leave(train, tmp_path):
    done = train("--output", tmp_path / "run", "--block", "nl1", "--max-steps", 12)
    assert done.returncode == 0, done.stderr
    assert "8 images with" in done.stdout and "eta" in done.stdout and "blocks: nl1" in done.stdout
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [*range(1, 13)] and rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0]["loss"] == pytest.approx(sum(value for key, value in rows[0].items() if key.startswith("loss_")))
    assert {file.name for file in (tmp_path / "run").iterdir()} >= {
        "checkpoint.pt",
        "curves.png",
        "status.json",
        "tensorboard",
    }
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "finished"


def test_the_rate_is_detectrons_1x_scaled_to_the_batch(tools):
    def rates(**given):
        unset = dict.fromkeys(("images", "annotations", "min_size", "lr", "max_steps"))
        options = argparse.Namespace(coco="x", task="masks", max_size=1333, **unset, **given)
        full = tools.train_detector.completed(options)
        return full, lambda step: tools.train_detector.learning_rate(full, step)

    full, rate = rates(batch_size=16)
    assert (full.max_steps, full.lr) == (90_000, 0.02)
    expected = {
        499: 0.02 * 500 / 501,
        500: 0.02,
        59_999: 0.02,
        60_000: 0.002,
        79_999: 0.002,
        80_000: 0.0002,
        89_999: 0.0002,
    }
    assert {step: rate(step) for step in expected} == pytest.approx(expected)
    half, rate = rates(batch_size=8)
    assert (
        (half.max_steps, half.lr) == (180_000, 0.01) and rate(119_999) == 0.01 and rate(120_000) == pytest.approx(1e-3)
    )


@pytest.mark.parametrize(
    "number, task, options",
    [
        (signal.SIGKILL, "masks", ["--block", "gc_all", "--train-bn", "--min-size", 64, 80]),
        (signal.SIGTERM, "keypoints", ["--block", "head4", "nl1", "--accumulate", 2, "--workers", 1]),
    ],
)
def test_a_run_that_was_killed_or_stopped_is_bit_equal_when_resumed(train, shapes, tmp_path, number, task, options):
    options = ["--task", task, *options, "--max-steps", 20, "--checkpoint-every", 1]
    part, whole = tmp_path / "part", tmp_path / "whole"
    process = start(shapes, "--output", part, *options, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (part / "checkpoints/step_00000003.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, errors = process.communicate()
    assert process.returncode in (-number, 128 + number), errors
    assert 3 <= newest_checkpoint(part).content["step"] < 20
    (part / "status.json").unlink(missing_ok=True)
    refused = train("--output", part, *options)
    assert refused.returncode == 1 and "--resume continues it" in refused.stderr
    done = train("--output", part, *options, "--resume")
    assert done.returncode == 0 and "resumed after step" in done.stdout, done.stderr
    assert train("--output", whole, *options).returncode == 0
    assert_equal(weights_of(whole), weights_of(part))
    assert rows_of(whole) == rows_of(part)


def test_a_run_whose_pictures_do_not_come_is_saved(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(StopSignal, "while_waiting", lambda _, items: islice(items, 3))
        hangs = train("--output", tmp_path / "part")
    assert hangs.returncode == 1 and "the pictures of step 4 did not come; --resume continues" in hangs.stderr
    assert weights_of(tmp_path / "part")["step"] == 3
    assert train("--output", tmp_path / "part", "--resume").returncode == 0
    assert train("--output", tmp_path / "whole").returncode == 0
    assert_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "part"))


def test_two_ranks_equal_one_process_with_two_micro_batches(train, shapes, tmp_path):
    options = ["--block", "nl1", "gc_all", "--batch-size", 4]
    process = start(shapes, "--output", tmp_path / "two", *options, ranks=2, stderr=subprocess.PIPE, text=True)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert train("--output", tmp_path / "one", *options, "--accumulate", 2).returncode == 0
    two, one = weights_of(tmp_path / "two"), weights_of(tmp_path / "one")
    assert all(torch.allclose(two["model"][key], value, rtol=1e-5, atol=1e-7) for key, value in one["model"].items())
    for a, b in zip(rows_of(tmp_path / "two"), rows_of(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    resumed = train("--output", tmp_path / "two", *options, "--accumulate", 2, "--resume")
    assert resumed.returncode == 0  # the same micro-batches: the same run
    other = train("--output", tmp_path / "two", *options, "--resume")
    assert other.returncode == 1 and "micro_batch: 2 -> 4" in other.stderr


def test_a_resumed_run_must_be_the_same(train, shapes, tmp_path, changed):
    assert train("--output", tmp_path / "run", "--max-steps", 1).returncode == 0
    for options, part in (
        (["--block", "nl1"], "block: ['none'] -> ['nl1']"),
        (["--seed", 2], "seed: 1 -> 2"),
        (["--max-steps", 2], "max_steps: 1 -> 2"),
    ):
        done = train("--output", tmp_path / "run", "--max-steps", 1, *options, "--resume")
        assert done.returncode == 1 and part in done.stderr and len(done.stderr.splitlines()) == 1
    data = changed(lambda content: content["annotations"].pop() and None)
    done = train("--output", tmp_path / "run", "--max-steps", 1, "--resume", data=data)
    assert done.returncode == 1 and "has changed" in done.stderr


def test_bfloat16_and_new_weights_of_a_baseline(train, tmp_path):
    assert train("--output", tmp_path / "base", "--max-steps", 2).returncode == 0
    options = ["--weights", tmp_path / "base/checkpoint.pt", "--block", "snl", "--precision", "bfloat16"]
    done = train("--output", tmp_path / "run", *options)
    assert done.returncode == 0 and "new blocks: backbone.body.layer3.0" in done.stdout, done.stderr
    before, after = weights_of(tmp_path / "base")["model"], weights_of(tmp_path / "run")["model"]
    assert torch.equal(before["backbone.body.conv1.weight"], after["backbone.body.conv1.weight"])  # frozen
    assert not torch.equal(before["rpn.head.cls_logits.weight"], after["rpn.head.cls_logits.weight"])
    assert after["backbone.body.layer3.0.context_block.value.weight"].any()
    other = train("--output", tmp_path / "other", "--task", "keypoints", *options[:2])
    assert other.returncode == 1 and "another network or head" in other.stderr


def test_a_micro_batch_with_a_broken_picture_counts_for_nothing(train, shapes, tmp_path, tools):
    images = tmp_path / "images"
    images.mkdir()
    for file in (shapes / "train2017").iterdir():
        (images / file.name).write_bytes(file.read_bytes() if file.name != "000005.png" else b"")
    data = ["--annotations", shapes / "annotations/instances_train2017.json", "--images", images]
    done = train("--output", tmp_path / "run", "--max-steps", 8, data=data)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("broken picture, its micro-batch is left out of step") == 2  # 8 steps are two epochs
    assert "000005.png: " in done.stdout
    rows = rows_of(tmp_path / "run")
    assert sum(row["broken_pictures"] for row in rows) == 2
    assert [row["loss"] == 0 for row in rows] == [row["broken_pictures"] == 1 for row in rows]


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_run_of_broken_pictures_ends(train, shapes, tmp_path, log_every):
    images = tmp_path / "images"
    images.mkdir()
    for file in (shapes / "train2017").iterdir():
        (images / file.name).touch()
    data = ["--annotations", shapes / "annotations/instances_train2017.json", "--images", images]
    done = train("--output", tmp_path / "run", "--max-steps", 90, "--log-every", log_every, data=data)
    assert done.returncode == 1 and "12 of the last 12 pictures are broken" in done.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_boxes_stay_float32_in_mixed_precision(tools, dtype):
    settings = tools.networks.NetworkSettings(backbone="thin", num_classes=3, min_size=(600,), max_size=1000)
    network = tools.networks.build_detector(settings)
    tools.networks.prepare(network, frozen_start=False)
    seen = []
    network.roi_heads.register_forward_pre_hook(lambda _, inputs: seen.extend([*inputs[1], *inputs[3]]))
    target = {"boxes": torch.tensor([[701.3, 402.7, 850.1, 555.9]]), "labels": torch.tensor([1])}
    target["masks"] = torch.ones(1, 600, 1000, dtype=torch.uint8)
    tools.networks.seed_draws(network, [1])
    with torch.autocast("cpu", dtype):
        network.train()([torch.rand(3, 600, 1000)], [target])
    proposals, scaled = seen
    assert proposals.dtype == torch.float32 and (proposals != proposals.to(dtype).float()).any()
    assert torch.allclose(scaled["boxes"], target["boxes"])


def test_a_loss_that_is_not_finite_ends_the_run(train, tmp_path):
    done = train("--output", tmp_path / "run", "--lr", 1e15, "--max-steps", 20)
    assert done.returncode == 1 and "is not finite" in done.stderr and "--lr" in done.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize(
    "options, part",
    [
        (["--block", "head4"], "--task masks has no keypoint head"),
        (["--backbone", "resnet34", "--block", "gc_all"], "has no bottlenecks"),
        (["--batch-size", 3, "--accumulate", 2], "not a multiple"),
        (["--lr", "nan"], "--lr nan"),
        (["--lr", "-1"], "--lr -1"),
        (["--max-steps", 0], "--max-steps 0: must be"),
        (["--min-size", 8], "from 32 to --max-size 1333"),
        (["--images", "x"], "Give either --coco, or"),
        (["--coco", "nowhere"], "instances_train2017.json do not exist"),
        (["--weights", "nowhere.pth"], "nowhere.pth does not exist"),
    ],
)
def test_a_wrong_option_is_one_line_before_training(train, tmp_path, options, part):
    done = train("--output", tmp_path / "run", *options)
    assert done.returncode == 1 and part in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--task", "--backbone", "--block", "--precision"])
def test_an_unknown_choice_is_refused_with_the_choices(train, option):
    done = train(option, "other")
    assert done.returncode == 2 and "choose from" in done.stderr


def test_the_video_part_imports_nothing_of_it_and_it_is_small():
    root = TOOL.parents[1]
    for path in (root / "nlvideo").rglob("*.py"):
        text = path.read_text()
        assert "pycocotools" not in text and "models.detection" not in text and "import detection" not in text
    files = [*(root / "tools/detection").glob("*.py"), TOOL, TOOL.with_name("evaluate_detector.py")]
    files.append(TOOL.with_name("write_shapes.py"))
    lines = 0
    for file in files:
        text = file.read_text()
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, documented) and ast.get_docstring(node)]
        docstrings = {i for node in nodes for i in range(node.body[0].lineno, node.body[0].end_lineno + 1)}
        lines += sum(bool(line.strip()) for i, line in enumerate(text.splitlines(), 1) if i not in docstrings)
    assert lines <= 1000
