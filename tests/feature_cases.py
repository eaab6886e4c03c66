"""A thin network with fixed weights as a checkpoint, and small moving videos."""

from pathlib import Path

import numpy as np
import torch
from conftest import composed

from nlvideo.build.model import build_model
from nlvideo.config.compose import to_container
from nlvideo.runtime.video_writer import VideoWriter
from nlvideo.weights.checkpoint_file import FORMAT, digest

SMALL = ["crops=1", "crop_size=32", "short_side=32", "snippet.frames=4", "snippet.stride=1", "snippet.step=4"]
SETTINGS = {key: int(value) for key, value in (item.split("=") for item in SMALL)}


def write_checkpoint(path: Path, seed: int, *overrides: str) -> Path:
    """Writes a checkpoint with random weights and statistics."""
    config = composed(
        *["experiment=i3d_r50_nl5", "model.pretrained=null", "model.width=4", "block=nl1", "data.root=x"],
        *["data.num_frames=8", "data.frame_stride=2", "data.num_workers=0", "precision=float32", *overrides],
    )
    generator = torch.Generator().manual_seed(seed)
    network = build_model(config.model, config.block, config.data, 5)
    state = network.state_dict()
    for name, value in state.items():
        if value.is_floating_point():  # statistics and gains near those of a trained network
            noise = torch.rand(value.shape, generator=generator)
            state[name] = value + 0.1 * noise if name.endswith("running_var") else value + 0.2 * (noise - 0.5)
    content = {
        "format": FORMAT,
        "model": state,
        "step": 0,
        "config": to_container(config),
        "classes": [f"class {k}" for k in range(5)],
    }
    torch.save(content | {"sha256": digest(content)}, path)
    return path


def write_moving(path: Path, num_frames: int, height: int = 72, width: int = 96) -> Path:
    """Writes a video in which every frame and every place differs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:height, :width]
    with VideoWriter(path, 25, {"crf": "10", "g": "12", "threads": "1"}) as writer:
        for i in range(num_frames):
            waves = [128 + 120 * np.sin((columns * (k + 1) + 2 * rows + 9 * i) / 17) for k in range(3)]
            writer.write(np.ascontiguousarray(np.stack(waves, 2).astype(np.uint8)))
    return path


def arrays_in(folder: Path) -> dict[str, np.ndarray]:
    return {str(file.relative_to(folder)): np.load(file) for file in sorted(folder.rglob("*.npy"))}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)
