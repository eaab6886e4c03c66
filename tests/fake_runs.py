"""Run folders as nlvideo-train and nlvideo-evaluate leave them, written by hand: nothing is trained."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from conftest import composed

from nlvideo.config.compose import to_yaml
from nlvideo.training.run_status import write_status

SMALL = ["data.root=x", "model.width=4", "data.num_frames=8", "data.crop_size=64"]


def write_row(root: Path, experiment: str, seed: int, correct: Sequence[int], *overrides: str) -> Path:
    """Writes a finished run of Table 2a and its evaluation on V videos, 0 or 1 each, of four classes in turn."""
    folder = root / f"experiment-{experiment}+seed-{seed}"
    config = composed("+ablation=table_2a", *SMALL, f"experiment={experiment}", f"seed={seed}", *overrides)
    write_run(folder, to_yaml(config), correct)
    return folder


def write_rows(
    root: Path, shares: Mapping[str, float], seeds: Sequence[int], *overrides: str, videos: int = 40
) -> None:
    """Writes runs of each experiment with every seed, right on about these shares of 40 videos."""
    random = np.random.default_rng(0)
    for experiment, share in shares.items():
        config = to_yaml(composed(*SMALL, f"experiment={experiment}", "seed=1", *overrides))
        for seed in seeds:
            folder = root / f"experiment-{experiment}+seed-{seed}"
            write_run(folder, config.replace("\nseed: 1\n", f"\nseed: {seed}\n"), random.random(40) < share)


def write_run(folder: Path, config: str, correct: Sequence[int] | np.ndarray) -> None:
    """Writes a finished run with this config.yaml, two training lines and a validation."""
    evaluation = folder / "evaluation_step10_1x1_uniform"
    evaluation.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    top1 = float(np.mean(correct))
    rows = [{"split": "train", "step": s, "clips_per_second": 1.0, "seconds": 1.0, "top1": top1 / 2} for s in (5, 10)]
    rows.append({"split": "val", "step": 10, "top1": top1, "top5": 1.0, "seconds": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_status(folder, "finished", step=10, num_classes=4)
    views = {"num_clips": 1, "num_crops": 1}
    (evaluation / "result.json").write_text(json.dumps({"views": views, "step": 10, "top1": top1, "top5": 1.0}))
    targets = np.arange(len(correct)) % 4
    scores = np.eye(4, dtype=np.float32)[np.where(correct, targets, (targets + 1) % 4)]
    names, classes = (np.array([f"{i}.mp4" for i in range(count)]) for count in (len(correct), 4))
    np.savez(evaluation / "scores.npz", ids=names, classes=classes, scores=scores, targets=targets)
