"""Prints parameters, multiply-adds and activation memory of experiments, for one clip.

python tools/count_flops.py                                      # every experiment, at its own clip size
python tools/count_flops.py i3d_r50_nl5 c2d_r50 --crop-size 256
"""

import argparse
from importlib.resources import files

import torch
from rich.console import Console
from rich.table import Table

from nlvideo.build.model import build_model
from nlvideo.config.compose import compose_train_config
from nlvideo.models.cost import count_cost


def main() -> None:
    known = sorted(p.name.removesuffix(".yaml") for p in (files("nlvideo.configs") / "experiment").iterdir())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=f"one of: {', '.join(known)}")
    parser.add_argument("--num-classes", type=int, default=400)
    parser.add_argument("--num-frames", type=int, help="instead of the experiment's")
    parser.add_argument("--crop-size", type=int, help="instead of the experiment's")
    arguments = parser.parse_args()
    for name in arguments.experiments:
        if name not in known:
            parser.error(f"{name} is not an experiment. Choose from: {', '.join(known)}.")

    table = Table(
        "experiment", "clip", "blocks", "M parameters", "G multiply-adds", "as computed", "MB activations",
        caption="multiply-adds: with the matrix of all pairs, as in the paper; as computed: without it where possible",
    )  # fmt: skip
    for name in arguments.experiments or known:
        config = compose_train_config([f"experiment={name}", "data.root=none", "model.pretrained=null"])
        with torch.device("meta"):
            network = build_model(config.model, config.block, config.data, arguments.num_classes)
        frames, size = arguments.num_frames or config.data.num_frames, arguments.crop_size or config.data.crop_size
        cost = count_cost(network, frames, size, size)
        table.add_row(
            name,
            f"{frames} x {size} x {size}",
            str(len(network.places)),
            f"{cost.params / 1e6:.2f}",
            f"{cost.multiply_adds / 1e9:.2f}",
            f"{cost.multiply_adds_computed / 1e9:.2f}",
            f"{cost.activation_bytes / 1e6:.0f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
