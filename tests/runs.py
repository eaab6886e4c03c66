"""Small runs for the tests: their config, their processes, and what they leave."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from conftest import composed

from nlvideo.config.schema import TrainConfig
from nlvideo.training.step_metrics import TIMINGS

BIN = Path(sys.executable).parent
TINY = [
    "experiment=quickstart",
    "data=list",
    "model.width=4",
    "block=nl1",
    "data.num_frames=4",
    "data.frame_stride=2",
    "data.scale_range=[32,40]",
    "data.crop_size=32",
    "data.flip=false",
    "data.num_workers=0",
    "data.test={num_clips: 2, num_crops: 3, short_side: 32, crop_size: 32}",
    "optim.batch_size=2",
    "optim.max_steps=4",
    "optim.warmup_steps=0",
    "log_every_steps=1",
    "validate_every_steps=2",
    "checkpoint_every_steps=2",
    "precision=float32",
]
SLOW_LR = "optim.lr=1e-5"  # at the rate of TINY, two clips a step diverge after some 180 steps
ENDLESS = ["optim.max_steps=100000", SLOW_LR]  # until a signal ends it


def config_of(video_folder, output_dir, *overrides: str) -> TrainConfig:
    in_epochs = any(override.startswith("optim.max_epochs") for override in overrides)
    base = [override for override in TINY if not (in_epochs and override.startswith("optim.max_steps"))]
    return composed(*base, f"data.root={video_folder}", f"output_dir={output_dir}", *overrides)


def rows_of(folder) -> list[dict]:
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


def weights_of(folder) -> dict[str, torch.Tensor]:
    return torch.load(Path(folder) / "checkpoint.pt", weights_only=True)["model"]


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)


def children(pid: int) -> list[int]:
    """Returns the processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class StopAt:
    """Sends this process a signal after a number of steps."""

    def __init__(self, monkeypatch, steps: int, number: int):
        import nlvideo.train

        self.left, self.number, self.step = steps, number, nlvideo.train.train_step
        monkeypatch.setattr(nlvideo.train, "train_step", self)

    def __call__(self, learner, batches):
        result = self.step(learner, batches)
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
        return result


def broken(video_folder, tmp_path, count: int) -> str:
    """A training list whose first videos are broken."""
    (tmp_path / "broken.mp4").write_text("no video")
    rows = (video_folder / "train.csv").read_text().splitlines()
    for i in range(count):
        rows[i] = f"{tmp_path}/broken.mp4 {i % 3}"
    (tmp_path / "broken.csv").write_text("\n".join(rows))
    return f"data.train={tmp_path}/broken.csv"


def list_with_broken(folder, tmp_path, broken):
    """A list of 20 rows, of which so many name files that are no videos."""
    rows = [f"train/a video {i % 6}.mp4 {i % 3}\n" for i in range(20 - broken)]
    for i in range(broken):
        (tmp_path / f"broken {i}, really.mp4").write_text("no video")
        rows.insert(3 * i, f"{tmp_path}/broken {i}, really.mp4 0\n")
    (tmp_path / "list.csv").write_text("".join(rows))
    return f"data.train={tmp_path}/list.csv"


def ledger_of(folder):
    with open(folder / "bad_videos.csv", newline="") as file:
        return list(csv.DictReader(file))
