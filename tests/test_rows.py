"""Every row of every ablation table, built and trained for two steps in this one process."""

from pathlib import Path

import pytest
import torch
from conftest import composed

from nlvideo.experiments.paper import TABLES
from nlvideo.models.resnet import block_gains
from nlvideo.train import set_learning_rate, train_batches, train_step
from nlvideo.training.setup import Run, set_up, state_of
from nlvideo.training.step_metrics import Meter
from nlvideo.weights.checkpoint_file import save_step

SMALL = [
    "+scale=small",
    "model.width=8",
    "data=list",
    "data.num_frames=8",
    "data.frame_stride=1",
    "data.scale_range=[64,64]",
    "data.crop_size=64",
    "data.test={short_side: 64, crop_size: 64}",
    "data.num_workers=0",
    "optim.batch_size=2",
    "optim.warmup_steps=0",
    "precision=float32",
]


def trained(table: str, row: str, video_folder: Path, folder: Path, pretrained: str = "null") -> tuple[Run, dict]:
    """Returns a row's run after two steps, and its weights before them."""
    ablation = table if table == "gcnet" else f"table_{table}"
    overrides = [f"+ablation={ablation}", f"experiment={row}", *SMALL, f"model.pretrained={pretrained}"]
    run = set_up(composed(*overrides, f"data.root={video_folder}", f"output_dir={folder}"))
    before = {key: value.clone() for key, value in run.network.state_dict().items()}
    place = {"seed": 1, "first_step": 0, "last_step": 2}
    for step, passes in enumerate(train_batches(run.config.data, run.train_table, run.share(), run.skipped, **place)):
        set_learning_rate(run, step)
        result = train_step(run, passes)
        assert result.updated and 0 < result.loss < 10, row
    return run, before


@pytest.mark.parametrize("table", TABLES)
def test_every_row_learns(table, video_folder, tmp_path):
    """No block stays a copy of its baseline by mistake: after two steps each has moved away from the identity."""
    earlier = list(TABLES)[: list(TABLES).index(table)]
    done = {row.experiment for name in earlier for row in TABLES[name].rows}
    for row in (row.experiment for row in TABLES[table].rows if row.experiment not in done):
        pretrained = "null"
        if table == "2g":  # its norms are frozen, so each starts from the trained row of Table 2f
            short, _ = trained("2f", row.removesuffix("_128x1_paper"), video_folder, tmp_path / "short")
            (tmp_path / row).mkdir()
            save_step(tmp_path / row, state_of(short, 2, Meter(1, 0, {})), keep=1)
            pretrained = str(tmp_path / row / "checkpoint.pt")
        run, before = trained(table, row, video_folder, tmp_path / "run", pretrained)
        changed = {key for key, value in run.network.state_dict().items() if not torch.equal(before[key], value)}
        places = run.config.block.places.get(f"r{run.config.model.depth}", [])
        gains = block_gains(run.network)
        assert list(gains) == places and all(gain > 0 for gain in gains.values()), (row, gains)
        blocks = [name for name, module in run.network.named_modules() if hasattr(module, "last_weight")]
        assert len(blocks) == len(places)
        assert all(any(key.startswith(name) for key in changed) for name in ["conv1", "fc", *blocks]), row
