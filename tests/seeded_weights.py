"""Weights and clips that follow from their names, with which other projects' code has computed logits."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import torch

PARITY = Path(__file__).parent / "parity"
SHARED = Path(os.environ.get("NLVIDEO_PARITY", Path(__file__).parents[2] / "shared" / "parity"))


def seeded_tensor(key: str, shape: list[int], kind: str) -> torch.Tensor:
    """A tensor that follows from its key: normal numbers from PCG64 seeded with the key's CRC-32, scaled by kind."""
    if kind == "count":
        return torch.zeros(shape, dtype=torch.int64)
    n = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape)
    fan_in = float(np.prod(shape[1:])) if len(shape) > 1 else 1.0
    scaled = {
        "conv": lambda: n * np.sqrt(2 / fan_in),
        "embed": lambda: 0.1 * n * np.sqrt(2 / fan_in),
        "gain": lambda: 0.6 + 0.1 * n,
        "bias": lambda: 0.1 * n,
        "mean": lambda: 0.1 * n,
        "var": lambda: 1 + 0.1 * abs(n),
    }[kind]()
    return torch.from_numpy(scaled.astype(np.float32))


def seeded_clip(shape: list[int]) -> torch.Tensor:
    numbers = np.random.Generator(np.random.PCG64(0)).standard_normal(shape)
    return torch.from_numpy(numbers.astype(np.float32))


def seeded_state(name: str, folder: Path = PARITY) -> dict[str, torch.Tensor]:
    entries = json.loads((folder / f"{name}.json").read_text())["entries"]
    return {key: seeded_tensor(key, shape, kind) for key, shape, kind in entries}
