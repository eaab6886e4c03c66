"""Prints how much each context block of trained networks says: 0 is a new block, which changes nothing.

    python tools/block_gains.py outputs/ablation/*/checkpoint.pt

The gain is the root mean square of the weights that a new block has at zero: the batch norm's behind W_z, W_z's where
there is no norm, the last convolution's of GCNet's blocks.
"""

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from nlvideo.build.model import build_model
from nlvideo.config.compose import from_container
from nlvideo.config.schema import TrainConfig
from nlvideo.models.resnet import block_gains
from nlvideo.weights.checkpoint_file import check_content, read_tensor_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    arguments = parser.parse_args()
    table = Table("run", "smallest", "each block", title="gains")
    try:
        for path in tqdm(arguments.checkpoints, unit="file", delay=2):
            gains = read_gains(path)
            if gains:
                listed = "  ".join(f"{place} {gain:.3f}" for place, gain in gains.items())
                table.add_row(path.parent.name, f"{min(gains.values()):.3f}", listed)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    Console(width=140).print(table)


def read_gains(path: Path) -> dict[str, float]:
    """Returns {place: gain} of a checkpoint's network, {} if it has no blocks."""
    content = read_tensor_file(str(path))
    check_content(content, str(path))
    config = from_container(TrainConfig, content["config"])
    with torch.device("meta"):
        network = build_model(config.model, config.block, config.data, len(content["classes"]))
    network.load_state_dict(content["model"], assign=True)
    return block_gains(network)


if __name__ == "__main__":
    main()
