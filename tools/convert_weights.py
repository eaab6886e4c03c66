"""Writes an nlvideo checkpoint from another project's weights.

    python tools/convert_weights.py pyslowfast I3D_NLN_8x8_R50.pyth out.pt model=i3d_r50_8x8 block=nl5 data.num_frames=8
    python tools/convert_weights.py caffe2 i3d_nonlocal_32x2_IN_pretrain_400k.pkl out.pt model=i3d_r50 block=nl5
    nlvideo-evaluate checkpoint=out.pt data.root=/data/kinetics400

What the weights cannot tell stands in the overrides, as nlvideo-train takes them; what differs from project to project
(strides, where keys are pooled, scaled logits) follows from the source and can be overridden too.
"""

import argparse
import sys
from pathlib import Path

from nlvideo.config.compose import to_container
from nlvideo.data.lists.path_list import read_classes
from nlvideo.runtime.errors import UserError, UserFileExistsError
from nlvideo.weights.checkpoint_file import save_checkpoint
from nlvideo.weights.importers import SOURCES, import_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=list(SOURCES))
    parser.add_argument("weights", type=Path)
    parser.add_argument("checkpoint", type=Path, help="the file to write")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--classes", type=Path, help="file with the class names, one a line, in the weights' order")
    arguments = parser.parse_args()
    try:
        if arguments.checkpoint.exists():
            raise UserFileExistsError(f"{arguments.checkpoint} exists already; nothing is overwritten.")
        network, config = import_weights(arguments.weights, arguments.source, arguments.overrides)
        classes = [str(i) for i in range(network.num_classes)]
        if arguments.classes:
            classes = read_classes(arguments.classes)
            if len(classes) != network.num_classes:
                raise UserError(
                    f"--classes {arguments.classes} names {len(classes)} classes, but {arguments.weights} has "
                    f"{network.num_classes}."
                )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    content = {"model": network.state_dict(), "step": 0, "config": to_container(config), "classes": classes}
    save_checkpoint(arguments.checkpoint, content)
    print(f"{arguments.checkpoint}: {config.model.layout} R{config.model.depth}, {len(classes)} classes, blocks after")
    print(f"  {', '.join(network.places) or 'none'}")


if __name__ == "__main__":
    main()
