"""Makes one folder of a trained network, which travels: weights, config, class names and a model card.

    python tools/publish_model.py outputs/NAME published --license apache-2.0
    hf upload owner/name published                       # or copy the folder; nlvideo takes either

The folder is laid out as the Hugging Face hub lays models out. It holds the weights that an evaluation would use and
nothing else of the checkpoint, and no path of this machine. Wherever a checkpoint is taken, the folder can be given.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nlvideo.config.compose import to_container
from nlvideo.config.schema import TrainConfig
from nlvideo.data.lists.class_file import has_names
from nlvideo.evaluation.result_files import RESULT_FILE, shown_metrics
from nlvideo.runtime.errors import UserError, UserFileNotFoundError, reporting_errors
from nlvideo.runtime.files import make_folder, new_folder
from nlvideo.training.run_status import FINISHED, read_status
from nlvideo.weights.checkpoint_file import NEWEST_FILE, evaluation_weights
from nlvideo.weights.hub import is_repository
from nlvideo.weights.published import write_network
from nlvideo.weights.trained_network import TrainedCheckpoint, read_trained
from nlvideo.weights.weights_file import FUNCTION_KEYS, function_values

CARD = "README.md"
# What training did besides the function of the network, for the card; none of them holds a path.
RECIPE = {
    "": "seed precision sync_bn precise_bn_steps",
    "model": "dropout frozen_bn train freeze",
    "data": "crop crop_area flip augment augment_strength erasing clips_per_video balance",
    "optim": "*",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run's folder, for its newest checkpoint, or a checkpoint")
    parser.add_argument("folder", type=Path, help="the folder to write; must not exist")
    parser.add_argument("--license", default="unknown", help="as the hub writes it, such as apache-2.0")
    parser.add_argument("--name", help="the network's title; by default the run's name")
    arguments = parser.parse_args()
    with reporting_errors():
        publish(arguments.run, arguments.folder, arguments.license, arguments.name)


def publish(run: Path, folder: Path, license_name: str = "unknown", name: str | None = None) -> None:
    """Writes a network's folder whole.

    Raises:
        UserError: the run is unfinished or none of ours, the folder exists, or the licence is no identifier.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license_name):
        raise UserError(
            f"--license {license_name}: the hub writes licences as apache-2.0, cc-by-nc-4.0, other, unknown."
        )
    trained = _finished(run)
    results = _evaluations(trained)
    config = _portable(trained.config)
    content = {
        "config": config,
        "step": trained.step,
        "classes": trained.classes,
        "state": evaluation_weights(trained.content),
        "precise": bool(trained.content.get("precise_bn")),
        "checkpoint_sha256": trained.sha256,
    }
    make_folder(folder.absolute().parent, str(folder))
    with new_folder(folder) as partial:
        write_network(partial, content)
        (partial / CARD).write_text(card(trained, name or trained.config.name, license_name, results), encoding="utf-8")
    scores = f"{len(results)} evaluations" if results else "no evaluation"
    print(f"{folder}: step {trained.step}, {len(trained.classes)} classes, {scores} in its {CARD}")
    if not has_names(trained.classes):
        print("  its classes are numbers; train with data.classes=FILE to name them")


def _finished(run: Path) -> TrainedCheckpoint:
    if is_repository(run):
        raise UserFileNotFoundError(f"The run {run} does not exist.")
    if run.is_dir():
        if not (run / NEWEST_FILE).is_file():
            raise UserFileNotFoundError(f"{run} is no folder of nlvideo-train: it holds no {NEWEST_FILE}.")
        state = read_status(run).get("state", "still running, or killed")
        if state != FINISHED:
            raise UserError(f"The run {run} is not finished ({state}); resume it, or name the checkpoint to publish.")
    trained = read_trained(run)
    if trained.note is not None:
        raise UserError(f"{run} is another project's file; make a checkpoint of it first: tools/convert_weights.py.")
    return trained


def _portable(config: TrainConfig) -> dict[str, Any]:
    """Returns what the network computes and how its clips are made, as plain values."""
    container = to_container(config)
    found: dict[str, Any] = {"precision": config.precision, "model": {}, "block": {}, "data": {}}
    for key, value in function_values(container).items():
        part, _, name = key.partition(".")
        if "." not in name:
            found[part][name] = value
    assert all(key.partition(".")[0] in found for key in FUNCTION_KEYS)
    found["data"] |= {"multi_label": config.data.is_multi_label, "test": container["data"]["test"]}
    return found


def _evaluations(trained: TrainedCheckpoint) -> list[dict[str, Any]]:
    """Returns the results of finished evaluations of this checkpoint that lie beside it."""
    found = [json.loads(file.read_text()) for file in sorted(trained.path.parent.glob(f"*/{RESULT_FILE}"))]
    return [result for result in found if result.get("checkpoint_sha256") == trained.sha256]


def card(trained: TrainedCheckpoint, name: str, license_name: str, results: list[dict[str, Any]]) -> str:
    """Returns the model card."""
    config = trained.config
    model, block, data, test = config.model, config.block, config.data, config.data.test
    front = {
        "license": license_name,
        "library_name": "nlvideo",
        "pipeline_tag": "video-classification",
        "tags": ["video-classification", "action-recognition", f"{model.layout}-r{model.depth}", block.kind],
    }
    blocks = "no context blocks"
    if block.kind != "none":
        kind = f"{block.kind} ({block.mode})" if block.kind == "non_local" else block.kind
        blocks = f"{kind} blocks after {', '.join(block.places[f'r{model.depth}'])}"
    rate = "" if data.clip_fps is None else f" at {data.clip_fps:g} frames a second"
    lines = [
        f"# {name}",
        "",
        f"{model.layout} ResNet-{model.depth}, width {model.width}, stem {model.stem}, with {blocks}; "
        f"{len(trained.classes)} classes. Clips of {data.num_frames} frames, stride {data.frame_stride}{rate}; "
        f"tested with short side {test.short_side}, crop {test.crop_size or 'none'}, "
        f"{test.num_clips} x {test.num_crops} views ({test.clip_sampling}).",
        "",
        *_usage(),
        "## Scores",
        "",
        *(_scores(results) if results else ["None: the checkpoint was not evaluated before it was published."]),
        "",
        "## Training",
        "",
        f"Step {trained.step}; started from {_start(config)}. SHA-256 of the training list's paths and labels: "
        f"`{trained.content.get('list_sha256', 'not recorded')}`. SHA-256 of the checkpoint's content: "
        f"`{trained.sha256}`.",
        "",
        "```yaml",
        yaml.safe_dump(_recipe(config), sort_keys=False).rstrip(),
        "```",
    ]
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n" + "\n".join(lines) + "\n"


def _usage() -> list[str]:
    return [
        "## Use",
        "",
        "```python",
        "import nlvideo  # pip install 'nlvideo[hub]'",
        "",
        'network = nlvideo.load_model("owner/name")  # or this folder; "owner/name@revision" pins a revision',
        'predictor = nlvideo.Predictor("owner/name")',
        'print(predictor("video.mp4"))',
        "```",
        "",
        "`nlvideo-evaluate`, `nlvideo-predict` and `model.pretrained=` take the same names. `config.json` says what",
        "the network is and how its clips are made, `classes.json` names its outputs, `model.safetensors` holds its",
        "weights.",
        "",
    ]


def _scores(results: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| list | videos | views | score | % | interval |", "|---|---|---|---|---|---|"]
    for result in results:
        views = result["views"]
        where = f"{Path(result['list']).name} `{result['list_sha256'][:16]}`"
        seen = f"{views['num_clips']} x {views['num_crops']} {views['clip_sampling']}"
        for key, title in shown_metrics(dict(result)).items():
            ends = result.get(f"{key}_interval")
            between = "{:.2f} to {:.2f}".format(*(100 * end for end in ends)) if ends else ""
            value = "-" if result[key] is None else f"{100 * result[key]:.2f}"
            lines.append(f"| {where} | {result['num_videos']} | {seen} | {title} | {value} | {between} |")
    return [*lines, "", f"Interval: {results[0]['interval']}."]


def _start(config: TrainConfig) -> str:
    """Returns what the weights started from, without a path."""
    start = config.model.pretrained
    if start is None:
        return "random weights"
    if start == "imagenet":
        return "torchvision's ImageNet weights (IMAGENET1K_V1), inflated"
    return f"`{start}`" if is_repository(start) else f"the weights of a file, `{Path(start).name}`"


def _recipe(config: TrainConfig) -> dict[str, Any]:
    container = to_container(config)
    found: dict[str, Any] = {}
    for part, names in RECIPE.items():
        values = container[part] if part else container
        kept = {name: values[name] for name in (values if names == "*" else names.split())}
        found |= {part: kept} if part else kept
    return found


if __name__ == "__main__":
    main()
