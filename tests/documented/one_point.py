"""Runs nlvideo-train or nlvideo-evaluate with what the scripts of the study give them, each sweep cut to one point."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from documented.small_forms import small_bash


def main() -> None:
    name, *words = sys.argv[1:]
    words = [word for word in words if not word.startswith(("optim.max_steps=", "data.synthetic.num_train="))]
    words = [re.sub(r"^(experiment|block|seed)=([^,]+),.*", r"\1=\2", word) for word in words]
    start = next((word.partition("=")[2] for word in words if word.startswith("model.pretrained=")), "")
    if start and not Path(start.replace("${seed}", "1")).exists():
        print(f"left out: it starts from {start}, a point that is left out itself")
        return
    command = small_bash(shlex.join([name, *words]))
    if name == "nlvideo-train":
        command = re.sub(r"'experiment=([^,']+),[^']*'", r"experiment=\1", command)
    folder = Path(os.environ["PATH"].split(os.pathsep)[0])  # of this stand-in
    path = os.environ["PATH"].removeprefix(f"{folder}{os.pathsep}")
    assert shutil.which(name, path=path)
    os.execve("/bin/bash", ["bash", "-c", f"exec {command}"], os.environ | {"PATH": path})


if __name__ == "__main__":
    main()
