"""What the documents call /data/kinetics400, DIR, run/checkpoint.pt, A or I3D_NLN_8x8_R50.pyth, made small."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from documented.commands import ROOT
from documented.small_forms import small_bash

CHECKOUT = ("nlvideo", "configs", "tools", "scripts", "tests", "docs", "pyproject.toml", "README.md", "LICENSE")
RUNS = (("a", "nl1", "A"), ("b", "nl1_gaussian", "B"))  # a run, its block, its evaluation
OTHERS = {  # a file of another project: the project, and the config of its network
    "I3D_NLN_8x8_R50.pyth": ("pyslowfast", ["model=i3d_r50_8x8", "model.stem=pyslowfast", "block=nl5"]),
    "c2d_nopool.pyth": ("pyslowfast", ["model=c2d_r50_8x8", "model.stem=all_frames", "block=none"]),
    "i3d_r50_nl_kinetics.pth": ("pytorch_resnet3d", ["model=i3d_r50", "model.stem=released_32x2", "block=nl5"]),
    "i3d_r50_kinetics.pth": ("pytorch_resnet3d", ["model=i3d_r50", "model.stem=released_32x2", "block=none"]),
}
OURS = {  # a checkpoint whose network another project has: the config of the network
    "for_pyslowfast.pt": ["model=i3d_r50_8x8", "model.stem=pyslowfast", "block=nl5", "block.scale=true"],
    "for_mmaction2.pt": ["model=i3d_r50", "model.stem=mmaction2", "block=nl5", "block.pool=after"],
    "for_resnet3d.pt": ["model=i3d_r50", "model.stem=released_32x2", "block=nl5", "block.scale=true", "model.width=64"],
}
BEFORE = {  # a document: what the others have its reader do before
    "weights.md": ["nlvideo-train experiment=c2d_r50 data.root=/data/kinetics400 output_dir=c2d_r50"],
    "protocols.md": [
        "nlvideo-train experiment=charades_i3d_r101 data.root=/data/charades model.pretrained=null "
        "model.frozen_bn=false output_dir=outputs/charades_trainval"
    ],
}


def prepare(folder: Path) -> None:
    """Creates a folder that looks like a checkout, with videos in the layout of each data set and others' weights."""
    from conftest import write_grey_video

    copy_checkout(folder)
    videos = [write_grey_video(folder / f"videos/v{i}.mp4", 80, 80, 96) for i in range(6)]
    for name in ("video.mp4", "long.mp4", "a.mkv"):
        shutil.copy(videos[0], folder / name)
    write_collections(folder / "data", videos)
    for name in ("DIR", "SRC", "clips"):
        (folder / name).symlink_to("data/kinetics400")
    write_crimes(folder / "UCF_Crime", videos)
    write_fights(folder / "fight-detection-surv-dataset")
    write_coco(folder / "data/coco")
    shutil.copytree(folder / "data/coco/train2017", folder / "data/own/pictures")
    for name in ("train", "val"):
        shutil.copy(folder / "data/coco/annotations/instances_train2017.json", folder / f"data/own/{name}.json")
    write_picture(folder / "picture.png")
    for name, (project, config) in OTHERS.items():
        write_other(folder / name, project, config)


def copy_checkout(folder: Path) -> None:
    """Copies what is installed and tested, with the environment that runs this program as .venv."""
    folder.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "parity")
    for name in CHECKOUT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)


def train_runs(folder: Path, shell: Callable[[str, Path], None]) -> None:
    """Trains what the documents call run, a and b, and evaluates them as A, B and C.

    Args:
        folder: the folder of prepare().
        shell: runs a command in a folder, and ends the program where it fails.
    """
    for name, block, evaluation in RUNS:
        given = f"data=list data.root=data/kinetics400 data.num_frames=16 block={block} output_dir={name}"
        shell(small_bash(f"nlvideo-train {given}"), folder)
        shell(f"nlvideo-evaluate checkpoint={name}/checkpoint.pt output_dir={evaluation}", folder)
    shutil.copytree(folder / "B", folder / "C")
    shutil.copytree(folder / "a", folder / "outputs/NAME")
    for name, target in (("run", "a"), ("run_a", "a"), ("run_b", "b")):
        (folder / name).symlink_to(target)


def write_collections(data: Path, videos: list[Path]) -> None:
    """Writes small Kinetics, Charades, UCF101, HMDB51 and Something-Something, with their lists."""

    def place(name: str) -> None:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos[int(re.findall(r"\d", name)[-1]) % 6], data / name)

    def write(name: str, text: str) -> None:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(text)

    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        for i in numbers:
            place(f"kinetics400/{split}/class_{i % 2}/v{i}.mp4")
        rows = "".join(f"{split}/class_{i % 2}/v{i}.mp4 {i % 2}\n" for i in numbers)
        write(f"kinetics400/{split}.csv", rows)
        official = "".join(f"class {k},v{i},0,3,{split}\n" for k, i in zip(range(400), [*numbers] * 200, strict=False))
        write(f"kinetics400/kinetics-400_{split}.csv", f"label,youtube_id,time_start,time_end,split\n{official}")
        actions = "".join(f"V{i},c00{i % 2} 0.00 1.00,3.20\n" for i in numbers)
        write(f"charades/Charades/Charades_v1_{'train' if split == 'train' else 'test'}.csv",
              f"id,actions,length\n{actions}")  # fmt: skip
        part = "trainlist01" if split == "train" else "testlist01"
        write(f"ucf101/ucfTrainTestlist/{part}.txt", "".join(f"C0/v{i}.avi 1\n" for i in numbers))
        entries = [{"id": str(i), "template": f"Doing [{i % 2}]"} for i in numbers]
        write(f"something/labels/{'train' if split == 'train' else 'validation'}.json", json.dumps(entries))
    for i in range(6):
        place(f"charades/Charades_v1_480/V{i}.mp4")
        place(f"ucf101/UCF-101/C0/v{i}.avi")
        place(f"something/20bn-something-something-v2/{i}.webm")
    write("kinetics400/classes.txt", "".join(f"class {i}\n" for i in range(2)))
    write("../kinetics.txt", "".join(f"class {i}\n" for i in range(2)))
    write("charades/Charades/Charades_v1_classes.txt", "".join(f"c{i:03} Action {i}\n" for i in range(157)))
    write("ucf101/ucfTrainTestlist/classInd.txt", "".join(f"{i + 1} C{i}\n" for i in range(101)))
    names = [f"Doing {i}" for i in range(174)]
    write("something/labels/labels.json", json.dumps({name: str(i) for i, name in enumerate(names)}))
    for k in range(51):
        for i in (0, 4):
            place(f"hmdb51/videos/C{k}/v{i}.avi")
        write(f"hmdb51/testTrainMulti_7030_splits/C{k}_test_split1.txt", "v0.avi 1\nv4.avi 2\n")


def write_crimes(folder: Path, videos: list[Path]) -> None:
    names = ["Abuse/Abuse001_x264.mp4", "Arson/Arson001_x264.mp4"]
    for name, video in zip(names, videos, strict=False):
        (folder / "videos" / name).parent.mkdir(parents=True)
        shutil.copy(video, folder / "videos" / name)
    (folder / "Anomaly_Train.txt").write_text("".join(f"{name}\n" for name in names))


def write_fights(folder: Path) -> None:
    """Writes a video of each class in five sizes, which scripts/fights_folds.py takes for five recordings."""
    from conftest import write_grey_video

    for i in range(10):
        kind = ("fight", "noFight")[i % 2]
        write_grey_video(folder / f"{kind}/{kind}{i:03}.mp4", 40, 80, 96 + 16 * (i // 2))


def write_coco(folder: Path) -> None:
    """Writes four training and two validation images in COCO's layout."""
    import runpy

    writing = runpy.run_path(str(ROOT / "tools/write_shapes.py"))
    (folder / "annotations").mkdir(parents=True)
    for seed, (split, number) in enumerate({"train2017": 4, "val2017": 2}.items()):
        writing["write_split"](folder, split, number, seed, lamps=True)


def write_picture(path: Path) -> None:
    import numpy as np
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)).save(path)


def write_other(path: Path, project: str, config: list[str]) -> None:
    """Writes a small network of two classes as another project writes it."""
    from conftest import composed
    from other_projects import file_of

    from nlvideo.build.model import build_model

    made = composed(*config, "model.width=4", "data.num_frames=8", "data.root=x")
    network = build_model(made.model, made.block, made.data, 2)
    file_of(path.parent, project, network).rename(path)


def write_ours(folder: Path) -> None:
    """Writes checkpoints of ours, with two classes."""
    from conftest import composed

    from nlvideo.build.model import build_model
    from nlvideo.config.compose import to_container
    from nlvideo.weights.checkpoint_file import save_checkpoint

    for name, config in OURS.items():
        made = composed("model.width=8", "data.num_frames=8", "data.frame_stride=8", "data.root=x", *config)
        network = build_model(made.model, made.block, made.data, 2)
        content = {"model": network.state_dict(), "step": 1, "config": to_container(made), "classes": ["a", "b"]}
        save_checkpoint(folder / name, content)


def write_resnets(folder: Path) -> None:
    """Writes random weights by the names that docs/detection.md has for torchvision's."""
    import torch
    from torchvision.models import resnet50, resnet101

    for name, network in (("resnet50", resnet50), ("resnet101", resnet101)):
        torch.save(network().state_dict(), folder / f"{name}.pth")


def write_imagenet_weights(torch_home: Path) -> None:
    """Writes random weights where torch.hub keeps torchvision's of ImageNet."""
    import torch
    from torchvision.models import ResNet50_Weights, resnet50

    name = ResNet50_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    (torch_home / "hub/checkpoints").mkdir(parents=True)
    torch.save(resnet50().state_dict(), torch_home / "hub/checkpoints" / name)
