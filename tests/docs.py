"""Runs every command of README.md and docs/*.md in a scratch folder, on small stand-ins for data and runs.

    python tests/docs.py FOLDER                  # all documents
    python tests/docs.py FOLDER --only data.md   # one document

The commands are those in ```bash blocks, in the order of the documents. This program creates what the documents call
/data/kinetics400, DIR, run/checkpoint.pt, A or video.mp4 in FOLDER, and adds overrides that make training commands
small (`fitted`). NOT_RUN lists what cannot be run, with the reason. The exit code is 1 if a command failed.
"""

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
ORDER = (
    "getting_started training data own_data options protocols ablations weights features extending study performance"
).split()
TIME_LIMIT = 1200  # seconds, for one command

NOT_RUN = {  # part of a command: why such commands are not run
    "scripts/quickstart.sh": "installs, then trains for minutes",
    "scripts/install.sh": "installs packages",
    "pip install": "installs packages",
    "scripts/test.sh": "runs this project's tests",
    "python -m pytest": "runs this project's tests",
    "python tests/": "runs this project's tests",
    "scripts/study.sh": "takes hours",
    "outputs/study": "needs the runs of scripts/study.sh",
    "torchrun": "needs eight devices, or several nodes",
    "sbatch ": "needs SLURM",
    "srun ": "needs SLURM",
    "submitit_slurm": "needs SLURM",
    "tensorboard ": "serves until stopped",
    "convert_weights.py": "needs another project's weights",
    "checkpoint=out.pt": "needs another project's weights",
    ".pyth": "needs another project's weights",
    "i3d_r50_nl_kinetics.pth": "needs another project's weights",
    "model.pretrained=imagenet": "downloads weights",
    "c2d_r50/checkpoint.pt": "needs a trained baseline; tests/weights/test_adoption.py has a small one",
    "logger=": "needs a package that is not among the tests'",
    "git ": "changes a checkout",
    "s3://": "needs a store; tests/training/test_training_from_stores.py has some",
    "gs://": "needs a store",
    "data.root=https://": "needs a store",
    "benchmark_model.py": "takes minutes",
    "benchmark_features.py": "takes minutes",
    "UCF_Crime": "needs the data set",
    "rtsp://": "needs a camera",
    "udp://": "needs a sender; tests/prediction/test_streams.py has one",
    "/dev/video0": "needs a camera",
    "ffmpeg -re": "needs the program ffmpeg",
    "check_gpu.py": "takes minutes; tests/tools/test_check_gpu.py runs it",
}
RUNNABLE = re.compile(
    r"(nlvideo-(train|evaluate|predict|extract|doctor)|python (tools|scripts)/\w+\.py|cat|head|tail|ls|mkdir)\b"
)
PLACES = (  # what names in a command become in FOLDER
    (r"/data/", "data/"),
    (r"checkpoint=\.\.\.", "checkpoint=run/checkpoint.pt"),
    (r"evaluation_\.\.\.", "evaluation_step2_2x3_uniform"),
    (r"num_devices=8", "num_devices=1"),
    (r"precise_bn_steps=200", "precise_bn_steps=2"),
    (r"pretrained=FILE", "pretrained=run/checkpoint.pt"),
    (r"patience=5", "patience=1 validate_every_steps=1 optim.max_steps=3"),
)
SMALL = [
    "model.width=4",
    "data.num_frames=8",
    "data.frame_stride=1",
    "data.scale_range=[64,64]",
    "data.crop_size=64",
    "data.num_workers=0",
    "data.test={num_clips: 2, short_side: 64, crop_size: 64}",
    "optim.batch_size=2",
    "optim.max_steps=2",
    "optim.warmup_steps=0",
    "precision=float32",
]
SMALL_SET = ["data.synthetic.num_train=24", "data.synthetic.num_val=8"]
SYNTHETIC = re.compile(r"=(quickstart|stills_|synthetic|long_range|short_range|stills)")


def documents() -> list[Path]:
    """Returns README.md and the documents, in reading order."""
    known = [ROOT / "docs" / f"{name}.md" for name in ("README", *ORDER)]
    others = sorted(set((ROOT / "docs").glob("*.md")) - {*known})
    return [ROOT / "README.md", *(file for file in known if file.exists()), *others]


def blocks(file: Path, language: str) -> list[str]:
    """Returns the contents of a document's fenced blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", file.read_text(), re.MULTILINE | re.DOTALL)


def commands(file: Path) -> list[str]:
    """Returns the commands in a document's bash blocks, with continued lines joined."""
    lines = [line for block in blocks(file, "bash") for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def reason_not_to_run(command: str) -> str | None:
    return next((reason for part, reason in NOT_RUN.items() if part in command), None)


def fitted(command: str) -> str:
    """Returns a command with overrides that make it small, and with names that exist in FOLDER."""
    command = re.sub(r"\s+#\s.*$", "", command)  # a comment would hide what is appended
    for found, instead in PLACES:
        command = re.sub(found, instead, command)
    if "--cfg" in command:  # prints only
        return command
    added = []
    if command.startswith("nlvideo-train") or "show_samples.py" in command:
        added += [*SMALL, *(SMALL_SET if SYNTHETIC.search(command) else ())]
        given = {word.split("=")[0] for word in command.split()}
        added = [text for text in added if text.split("=")[0] not in given]
        known = re.search("pretrained|table_2g|scale=small", command)  # starts from weights that exist
        added += [] if known else ["model.pretrained=null"]
    if command.startswith("nlvideo-train"):
        added += small_sweep(command) if "+ablation=" in command else []
        alone = not {"-m", "dry_run=true"} & {*command.split()}
        added += ["resume=auto"] if alone and "resume=" not in command else []
        if "dry_run=true" in command and "output_dir=" not in command:
            added.append("output_dir=outputs/dry")
    if "benchmark_loader.py" in command:
        added += ["--rounds", "1"]
    return " ".join([command, *(f"'{text}'" for text in added)])


def small_sweep(command: str) -> list[str]:
    """Returns overrides that keep the first two rows of a table, with two seeds."""
    from nlvideo.experiments.paper import TABLES

    name = re.search(r"\+ablation=(\w+)", command)[1].removeprefix("table_")
    rows = ",".join(row.experiment for row in TABLES[name].rows[:2])
    return ([] if "experiment=" in command else [f"experiment={rows}"]) + ["seed=1,2"]


def prepare(folder: Path) -> None:
    """Creates what the commands name: videos in the layout of each data set, two runs and their evaluations."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import write_grey_video

    from nlvideo.data.synthetic.writing import write_set

    folder.mkdir(parents=True)
    for name in ("tools", "scripts", "configs", "nlvideo"):
        (folder / name).symlink_to(ROOT / name)
    videos = [write_grey_video(folder / f"videos/v{i}.mp4", 80, 80, 96) for i in range(6)]
    for name in ("video.mp4", "long.mp4", "a.mkv"):
        shutil.copy(videos[0], folder / name)
    data = folder / "data"

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
    write("charades/Charades/Charades_v1_classes.txt", "".join(f"c{i:03} Action {i}\n" for i in range(157)))
    write("ucf101/ucfTrainTestlist/classInd.txt", "".join(f"{i + 1} C{i}\n" for i in range(101)))
    names = [f"Doing {i}" for i in range(174)]
    write("something/labels/labels.json", json.dumps({name: str(i) for i, name in enumerate(names)}))
    for k in range(51):
        for i in (0, 4):
            place(f"hmdb51/videos/C{k}/v{i}.avi")
        write(f"hmdb51/testTrainMulti_7030_splits/C{k}_test_split1.txt", "v0.avi 1\nv4.avi 2\n")
    write_set("motions", folder / "own", num_train=16, num_val=8, num_frames=24, height=64, seed=0)
    for name in ("DIR", "SRC", "clips"):
        (folder / name).symlink_to(data / "kinetics400")
    for name, block, evaluation in (("a", "nl1", "A"), ("b", "nl1_gaussian", "B")):
        given = f"data=list data.root=data/kinetics400 data.num_frames=16 block={block} output_dir={name}"
        train = fitted(f"nlvideo-train {given}")
        for command in (train, f"nlvideo-evaluate checkpoint={name}/checkpoint.pt",
                        f"nlvideo-evaluate checkpoint={name}/checkpoint.pt output_dir={evaluation}"):  # fmt: skip
            done = shell(command, folder)
            if done.returncode:
                sys.exit(f"{command}\n{done.stdout}")
    shutil.copytree(folder / "B", folder / "C")
    shutil.copytree(folder / "a", folder / "outputs/NAME")
    for name, target in (("run", "a"), ("run_a", "a"), ("run_b", "b")):
        (folder / name).symlink_to(folder / target)


def shell(command: str, folder: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    try:
        return subprocess.run(
            ["bash", "-c", command], cwd=folder, env=os.environ | {"PATH": path}, text=True, timeout=TIME_LIMIT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(command, 124, str(error))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="created; must not exist")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="documents, such as data.md")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    if folder.exists():
        sys.exit(f"error: {folder} exists already.")
    prepare(folder)
    rows = []
    with open(folder / "commands.csv", "w", newline="") as file:
        writer = csv.writer(file)
        for document in documents():
            if arguments.only and document.name not in arguments.only:
                continue
            for command in commands(document):
                started, reason = time.monotonic(), reason_not_to_run(command)
                result, output = f"not run: {reason}", ""
                if reason is None:
                    done = shell(fitted(command), folder)
                    result, output = str(done.returncode), done.stdout
                seconds = f"{time.monotonic() - started:.0f}"
                print(f"[{result}] {document.name}: {command}", flush=True)
                if result != "0" and reason is None:
                    print(f"    ran as: {fitted(command)}\n{output[-2000:]}", flush=True)
                rows.append((document.name, command, result, seconds))
                writer.writerow(rows[-1])
                file.flush()
    table = Table("document", "command", "exit code", "s")
    for row in rows:
        table.add_row(*row)
    Console(width=160, markup=False).print(table)
    failed = [row for row in rows if row[2] != "0" and not row[2].startswith("not run")]
    sys.exit(f"{len(failed)} of {len(rows)} commands failed." if failed else None)


if __name__ == "__main__":
    main()
