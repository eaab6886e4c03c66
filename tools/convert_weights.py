"""Converts another project's weights to an nlvideo checkpoint.

    python tools/convert_weights.py pyslowfast I3D_NLN_8x8_R50.pyth out.pt model=i3d_r50_8x8 block=nl5 data.num_frames=8
    python tools/convert_weights.py caffe2 i3d_nonlocal_32x2_IN_pretrain_400k.pkl out.pt model=i3d_r50 block=nl5
    nlvideo-evaluate checkpoint=out.pt data.root=/data/kinetics400

What the weights do not contain is given as overrides, as for nlvideo-train. What differs between projects (strides,
where keys are pooled, scaled logits) is set by the source, and can be overridden too.
"""

import argparse
from pathlib import Path

from nlvideo.config.compose import to_container
from nlvideo.data.lists.class_file import read_classes
from nlvideo.runtime.errors import UserError, UserFileExistsError, reporting_errors
from nlvideo.runtime.files import make_folder
from nlvideo.weights.checkpoint_file import save_checkpoint
from nlvideo.weights.importers import SOURCES, import_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=list(SOURCES), help="the project")
    parser.add_argument("weights", type=Path, help="its file")
    parser.add_argument("checkpoint", type=Path, help="the file to write")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for nlvideo-train")
    parser.add_argument("--classes", type=Path, help="file with the class names in the order of the logits, one a line")
    arguments = parser.parse_args()
    with reporting_errors():
        convert(arguments)


def convert(arguments: argparse.Namespace) -> None:
    checkpoint = arguments.checkpoint
    if checkpoint.exists():
        raise UserFileExistsError(f"{checkpoint} exists already; remove it or give another name.")
    network, config = import_weights(arguments.weights, arguments.source, arguments.overrides)
    classes = [str(i) for i in range(network.num_classes)]
    if arguments.classes:
        classes = read_classes(arguments.classes)
        if len(classes) != network.num_classes:
            raise UserError(
                f"--classes {arguments.classes} has {len(classes)} names, but {arguments.weights} has "
                f"{network.num_classes} classes."
            )
    content = {"model": network.state_dict(), "step": 0, "config": to_container(config), "classes": classes}
    make_folder(checkpoint.parent, str(checkpoint))
    save_checkpoint(checkpoint, content)
    print(f"{checkpoint}: {config.model.layout} R{config.model.depth}, {len(classes)} classes, blocks after")
    print(f"  {', '.join(network.places) or 'none'}")


if __name__ == "__main__":
    main()
