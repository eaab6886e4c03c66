"""The commands of the documents in a form that takes seconds, with the names of what stands in for data and devices."""

import re

from documented.commands import Command

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
SYNTHETIC = re.compile(r"=(quickstart|stills_|synthetic|long_range|short_range|stills)|quickstart\.sh")
FEW_VIEWS = ["data.test.num_clips=1", "data.test.num_crops=1"]
TRAINS = re.compile(
    r"\bnlvideo-train|-m nlvideo\.train|(train|sweep)\.sbatch|show_samples\.py|benchmark_freezing\.py|quickstart\.sh"
)
KNOWS_ITS_START = re.compile(r"pretrained|table_2g|scale=small")
# The only command with torchvision's weights, whose stand-in has the whole width.
FROM_IMAGENET = "nlvideo-train experiment=i3d_r50_nl5 data.root=data/kinetics400 dry_run=true"
PLACES = (  # what names in a command become
    (r"/data/", "data/"),
    (r"/scratch/", "scratch/"),
    (r"checkpoint=\.\.\.", "checkpoint=run/checkpoint.pt"),
    (r"(nlvideo-train -m .*num_devices=)\d", r"\g<1>1"),
    (r"num_devices=[48]", "num_devices=2"),
    (r"--nproc-per-node=8", "--nproc-per-node=2"),
    (r"precise_bn_steps=200", "precise_bn_steps=2"),
    (r"(pretrained|checkpoint)=FILE", r"\1=run/checkpoint.pt"),
    (r"patience=5", "patience=1 validate_every_steps=1 optim.max_steps=3"),
    (r"block=none,nl1,nl5", "block=none,nl5"),
    (r"model\.width=64", "model.width=4"),
    (r"experiment=c2d_r50,c2d_r50_nl1_gaussian,\S+", "experiment=c2d_r50,c2d_r50_nl1_gaussian"),
    (r"(table_2[cfg] .*)seed=1,2,3", r"\1seed=1"),
    (r"seed=1,2,3", "seed=1,2"),
    (r"run/checkpoint\.pt theirs\.pth", "for_pyslowfast.pt theirs.pth"),
    (r"(study|fights)\.sh( fight\S+)? FOLDER", r"\1.sh\2 ."),
    (r"\bFOLDER/", "./"),
    (r"(benchmark_\w+\.py) (FOLDER|DIR)\b", r"\1 videos"),
    (r"CHECKPOINT VIDEO \.\.\.", "run/checkpoint.pt video.mp4"),
    (r"videos=DIR( .*preset=rtfm)", r"videos=DIR/val\1"),  # two videos: ten crops of each take long
    (r"s3://bucket/k400", "s3://videos/set"),  # the bucket that tests/store_servers.py fills
)
SHORT_FORMS = {  # a part of a command: arguments for a short form
    "benchmark_decoders.py": "--rounds 1",
    "benchmark_features.py changes": "",
    "benchmark_features.py cost": "--seconds 10 --crops 1",
    "benchmark_features.py rate": "--seconds 2 --videos 2 --at-once 1 --width 4",
    "benchmark_freezing.py": "--batch 2 --steps 1 --rounds 1",
    "benchmark_index.py": "--videos 2400 --frames 30 --workers 1 --samples 400",
    "benchmark_load.py": "--pairs 1 --seconds 0.01 --cases c2d_r50_nl5 dot_product",
    "benchmark_loader.py": "--rounds 1",
    "benchmark_long.py --clips-only": "--minutes 1 --rounds 1",
    "benchmark_long.py --memory-only": "--minutes 0.2 --rounds 1",
    "benchmark_model.py ops": "--width 8 --positions 64 --keys 16 --repeats 1",
    "benchmark_model.py step": "--batch 1 --rounds 1",
    "benchmark_preparing.py": "--rounds 1",
    "benchmark_stream.py": "--minutes 0.1",
    "check_gpu.py --parts": "--quick --minutes 30",
    "check_gpu.py --quick": "--minutes 30",
    "check_gpu.py": "--quick --parts A --minutes 30",
    "denoise.py": "--max-side 32",
    "simulate_coverage.py": "--repeats 2",
    "write_shapes.py": "--train 4 --val 2",
    "train_detector.py": "--min-size 64 --batch-size 2 --max-steps 1 --workers 0",
    "scripts/test.sh": "--collect-only",
}
WITHOUT = {  # what a document's Python takes from its reader
    "np.save(f": "import numpy as np\nfolder, name, features = '.', 'video', np.zeros((3, 10, 8))\n",
    "Frames(frames, fps=25)": "import numpy as np\nframes = np.zeros((80, 64, 64, 3), np.uint8)\n",
    "request.content": "import numpy as np, nlvideo\nfrom types import SimpleNamespace\n"
    "array = np.zeros((80, 64, 64, 3), np.uint8)\ncamera = lambda: iter(array)\n"
    "request = SimpleNamespace(content=open('video.mp4', 'rb').read())\n",
}


def small(command: Command) -> str:
    """Returns what is run for a command: bash, or the text of a Python program."""
    return small_python(command.text) if command.language == "python" else small_bash(command.text)


def small_bash(command: str) -> str:
    command = re.sub(r"\s+#\s.*$", "", command)  # a comment would hide what is appended
    for found, instead in PLACES:
        command = re.sub(found, instead, command)
    if "--cfg" in command:  # prints only
        return command
    added = overrides_for(command)
    quoted = " ".join(f"'{text}'" for text in added)
    if re.search(r"benchmark_(freezing|model)\.py", command):  # argparse wants these beside the experiment
        command = re.sub(r"( i3d\w+)", rf"\1 {quoted}", command)
    else:
        command = f"{command} {quoted}"
    short = next((text for part, text in SHORT_FORMS.items() if part in command), "")
    return on_both_nodes(f"{command} {short}".strip())


def overrides_for(command: str) -> list[str]:
    """Returns overrides that make a training small, of keys that the command does not give; none for other commands."""
    if command == FROM_IMAGENET:
        return SMALL[1:]
    added = []
    if TRAINS.search(command) or "benchmark_model.py step" in command:
        added = [*SMALL, *(SMALL_SET if SYNTHETIC.search(command) else ())]
        added += [] if KNOWS_ITS_START.search(command) else ["model.pretrained=null"]
        added += small_sweep(command) if "+ablation=" in command else []
    elif re.search(r"nlvideo-(evaluate|predict).*=\S*(\.pyth|kinetics\.pth|out\.pt)\b", command):
        added = FEW_VIEWS
    given = {word.strip("'\"").split("=")[0] for word in command.split()}
    if "data.crop_size" in given:  # test clips that are smaller would be refused
        given.add("data.test")
    return [text for text in added if text.split("=")[0] not in given]


def small_sweep(command: str) -> list[str]:
    """Returns overrides that keep the first two rows of a table, with one seed unless the command gives some."""
    from nlvideo.experiments.paper import TABLES

    name = re.search(r"\+ablation=(\w+)", command)[1].removeprefix("table_")
    rows = ",".join(row.experiment for row in TABLES[name].rows[:2])
    return ["seed=1", *([] if "experiment=" in command else [f"experiment={rows}"])]


def on_both_nodes(command: str) -> str:
    """Returns a command of two nodes as two commands at once, on this machine; others as they are."""
    if "--nnodes=2" not in command or not command.startswith("torchrun"):
        return command
    here = command.replace("node-a", "127.0.0.1").replace("--nproc-per-node=2", "--nproc-per-node=1")
    there = here.replace("--node-rank=0", "--node-rank=1")
    return f"{here} & {there}; second=$?; wait $! && exit $second"


def small_python(program: str) -> str:
    given = ", ".join(repr(text) for text in SMALL)
    program = program.replace("nlvideo.train([", f"nlvideo.train([{given}, ")
    program = program.replace("model.pretrained=FILE", "model.pretrained=run/checkpoint.pt")
    return "".join(before for part, before in WITHOUT.items() if part in program) + program
