"""Small runs for the tests: their config, their processes, and what they leave."""

import json
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


def config_of(video_folder, output_dir, *overrides: str) -> TrainConfig:
    return composed(*TINY, f"data.root={video_folder}", f"output_dir={output_dir}", *overrides)


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
