"""Prints the gain of each context block of trained networks; a new block has gain 0.

    python tools/block_gains.py outputs/ablation/*/checkpoint.pt

The gain is the root mean square of the weights that start at zero: those of the batch norm after W_z, of W_z itself
where there is no norm, of the last layer in GCNet's blocks.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nlvideo.models.resnet import block_gains
from nlvideo.runtime.errors import reporting_errors
from nlvideo.runtime.progress import progress_bar
from nlvideo.weights.trained_network import read_trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    arguments = parser.parse_args()
    table = Table("run", "smallest", "each block", title="gains")
    with reporting_errors():
        for path in progress_bar(arguments.checkpoints, unit="file", delay=2):
            trained = read_trained(path)
            gains = block_gains(trained.build_network())
            if gains:
                listed = "  ".join(f"{place} {gain:.3f}" for place, gain in gains.items())
                table.add_row(trained.path.parent.name, f"{min(gains.values()):.3f}", listed)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
