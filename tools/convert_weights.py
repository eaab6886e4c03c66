"""Converts another project's weights to an nlvideo checkpoint, with what its file does not tell, and back.

    python tools/convert_weights.py I3D_NLN_8x8_R50.pyth out.pt --classes kinetics.txt
    python tools/convert_weights.py i3d_r50_nl.pth out.pt block.mode=dot_product data.num_frames=16
    nlvideo-evaluate checkpoint=out.pt data.root=/data/kinetics400
    python tools/convert_weights.py run/checkpoint.pt theirs.pth --to pyslowfast

Such files are read directly too: convert one to give it class names, or keys that it does not tell. The project is
recognised by the names of the weights. What differs between projects (strides, where keys are pooled, scaled logits)
is set by the project, and can be overridden like what the file tells.

--to writes a file that the other project's own code loads, with the part of its config that makes the network. It
refuses a network that the project does not have.
"""

import argparse
import sys
from pathlib import Path

from nlvideo.data.lists.class_file import read_classes
from nlvideo.runtime.errors import UserError, UserFileExistsError, reporting_errors
from nlvideo.runtime.files import make_place, reporting_disk_errors
from nlvideo.weights.checkpoint_file import ORIGIN, save_checkpoint, save_tensors
from nlvideo.weights.foreign_writing import WRITTEN_PROJECTS, foreign_content
from nlvideo.weights.sources import SOURCES
from nlvideo.weights.trained_network import read_imported, read_trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="the project's file; with --to, a checkpoint")
    parser.add_argument("checkpoint", type=Path, help="the file to write")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for nlvideo-train")
    parser.add_argument("--classes", type=Path, help="file with the class names in the order of the logits, one a line")
    parser.add_argument("--source", choices=list(SOURCES), help="the project, if it is not to be recognised")
    projects = [name.replace("_", "-") for name in WRITTEN_PROJECTS]
    parser.add_argument("--to", choices=projects, help="the project to write a file for")
    words = sys.argv[1:]
    if words[:1] and words[0] in SOURCES:  # the project came first once
        words[:1] = ["--source", words[0]]
    arguments = parser.parse_args(words)
    with reporting_errors():
        (convert_back if arguments.to else convert)(arguments)


def convert(arguments: argparse.Namespace) -> None:
    checkpoint = arguments.checkpoint
    if checkpoint.exists():
        raise UserFileExistsError(f"{checkpoint} exists already; remove it or give another name.")
    trained = read_imported(arguments.weights, arguments.source, arguments.overrides)
    config, classes = trained.config, trained.classes
    if arguments.classes:
        classes = read_classes(arguments.classes)
        if len(classes) != len(trained.classes):
            raise UserError(
                f"--classes {arguments.classes} has {len(classes)} names, but {arguments.weights} has "
                f"{len(trained.classes)} classes."
            )
    content = {key: trained.content[key] for key in ("model", "step", "config")} | {"classes": classes}
    content[ORIGIN] = trained.origin
    make_place(checkpoint, str(checkpoint))
    with reporting_disk_errors(checkpoint):
        save_checkpoint(checkpoint, content)
    print(trained.note)
    print(f"{checkpoint}: {config.model.layout} R{config.model.depth}, {len(classes)} classes, blocks after")
    print(f"  {', '.join(trained.build_network().places) or 'none'}")


def convert_back(arguments: argparse.Namespace) -> None:
    out = arguments.checkpoint
    if out.exists():
        raise UserFileExistsError(f"{out} exists already; remove it or give another name.")
    if arguments.overrides or arguments.classes or arguments.source:
        raise UserError(f"--to {arguments.to}: a checkpoint brings its config and classes; leave the others out.")
    trained = read_trained(arguments.weights)
    project = arguments.to.replace("-", "_")
    content, notes = foreign_content(trained, project)
    make_place(out, str(out))
    with reporting_disk_errors(out):
        save_tensors(out, content)
    print(f"{out}: {SOURCES[project].title} weights, {trained.config.model.layout} R{trained.config.model.depth}")
    for note in notes:
        print(f"  {note}")


if __name__ == "__main__":
    main()
