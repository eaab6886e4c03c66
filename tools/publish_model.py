"""Makes one folder of a trained network, which travels: weights, config, class names and a model card.

    python tools/publish_model.py outputs/NAME published --license apache-2.0
    hf upload owner/name published                       # or copy the folder; nlvideo takes either

The folder is laid out as the Hugging Face hub lays models out. It holds the weights that an evaluation would use and
nothing else of the checkpoint, and no path of this machine. Wherever a checkpoint is taken, the folder can be given.
"""

import argparse
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nlvideo.config.compose import to_container
from nlvideo.config.schema import TrainConfig
from nlvideo.data.lists.class_file import has_names
from nlvideo.evaluation.result_files import RESULT_FILE, interval_cell, read_results, shown_metrics
from nlvideo.runtime.errors import UserError, UserFileNotFoundError, reporting_errors
from nlvideo.runtime.files import PARTIAL_FILE, make_folder, new_folder, reporting_disk_errors
from nlvideo.runtime.folder_lock import lock_if_possible
from nlvideo.training.run_status import FINISHED, read_status
from nlvideo.weights.checkpoint_file import NEWEST_FILE, evaluation_weights
from nlvideo.weights.hub import WEIGHTS_ENDINGS, is_pinned, is_repository
from nlvideo.weights.published import published_values, write_network
from nlvideo.weights.trained_network import TrainedCheckpoint, read_trained

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
        RunFailed: the disk is full; nothing is left behind.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license_name):
        raise UserError(
            f"--license {license_name}: the hub writes licences as apache-2.0, cc-by-nc-4.0, other, unknown."
        )
    trained = _finished(run)
    _refuse_undecodable_names(trained.classes)
    results = _evaluations(trained)
    content = {
        "config": published_values(trained.config),
        "step": trained.step,
        "classes": trained.classes,
        "state": evaluation_weights(trained.content),
        "precise": bool(trained.content.get("precise_bn")),
        "checkpoint_sha256": trained.sha256,
    }
    make_folder(folder.absolute().parent, str(folder))
    _remove_what_was_killed(folder)
    text = card(trained, name or trained.config.name, license_name, results)
    with (
        reporting_disk_errors(folder),
        new_folder(folder) as partial,
        open(partial / CARD, "w", encoding="utf-8") as file,
    ):
        lock_if_possible(file.fileno())
        write_network(partial, content)
        file.write(text)
    scores = f"{len(results)} evaluation{'s' * (len(results) > 1)}" if results else "no evaluation"
    print(f"{folder}: step {trained.step}, {len(trained.classes)} classes, {scores} in its {CARD}")
    if not has_names(trained.classes):
        print("  its classes are numbers; train with data.classes=FILE to name them")


def _remove_what_was_killed(folder: Path) -> None:
    """Removes what killed processes left of this folder beside it."""
    for path in folder.absolute().parent.iterdir():
        found = PARTIAL_FILE.fullmatch(path.name)
        if found is not None and found[1] == folder.name and path.is_dir() and not _is_held(path / CARD):
            shutil.rmtree(path, ignore_errors=True)


def _is_held(file: Path) -> bool:
    """Returns whether a process has a file locked, or may have: another user's, or where there are no locks."""
    try:
        with open(file, "r+b") as opened:
            return not lock_if_possible(opened.fileno())
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _refuse_undecodable_names(classes: Sequence[str]) -> None:
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"The class {name!r} is no valid text; name the classes with data.classes=FILE.") from None


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


def _evaluations(trained: TrainedCheckpoint) -> list[dict[str, Any]]:
    """Returns the results of finished evaluations of this checkpoint that lie beside it; says which cannot be read."""
    found = []
    for file in sorted(trained.path.parent.glob(f"*/{RESULT_FILE}")):
        try:
            result = read_results(file.parent).result
            if result.get("checkpoint_sha256") == trained.sha256:
                _rows(result)
                found.append(result)
        except UserError as error:
            print(f"left out of the card: {error}")
        except (KeyError, TypeError, ValueError) as error:
            print(f"left out of the card: {file} is not what nlvideo-evaluate writes: {error!r}")
    return found


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
        *_history(trained),
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
    lines = ["| list | videos | views | frames | pixels | score | % | interval |", "|---|---|---|---|---|---|---|---|"]
    lines += [row for result in results for row in _rows(result)]
    intervals = dict.fromkeys(result["interval"] for result in results)
    return [*lines, "", f"Interval: {'; '.join(intervals)}."]


def _rows(result: Mapping[str, Any]) -> list[str]:
    """Returns the table's rows of an evaluation: what was evaluated, and a row for each metric."""
    views, undecodable = result["views"], result["num_undecodable"]
    where = f"{Path(result['list'].partition('?')[0]).name} `{result['list_sha256'][:16]}`"
    videos = f"{result['num_videos']}" + (f", {undecodable} undecodable" if undecodable else "")
    pooling = "" if views["pooling"] == "mean" else f", {views['pooling']}"
    seen = f"{views['num_clips']} x {views['num_crops']} {views['clip_sampling']}{pooling}"
    rate = f" at {result['clip_fps']:g}/s" if result.get("clip_fps") else ""
    frames = f"{result['num_frames']} x {result['frame_stride']}{rate}"
    pixels = f"{views['crop_size'] or 'all'} of {views['short_side']}, {result['precision']}"
    lines = []
    for key, title in shown_metrics(dict(result)).items():
        value = "-" if result[key] is None else f"{100 * result[key]:.2f}"
        between = interval_cell(result, key)
        lines.append(f"| {where} | {videos} | {seen} | {frames} | {pixels} | {title} | {value} | {between} |")
    return lines


def _history(trained: TrainedCheckpoint) -> list[str]:
    """Returns what is known of how the weights came about, and nothing that a config only states."""
    checkpoint = f"SHA-256 of the checkpoint's content: `{trained.sha256}`."
    if trained.origin is not None:
        return [f"None by nlvideo: these are {trained.origin}, converted. {checkpoint}"]
    if "list_sha256" not in trained.content:
        return [f"Step {trained.step}; not recorded: no run wrote this checkpoint. {checkpoint}"]
    return [
        f"Step {trained.step}; started from {_start(trained.config.model.pretrained)}. SHA-256 of the training list's "
        f"paths and labels: `{trained.content['list_sha256']}`. {checkpoint}",
        "",
        "```yaml",
        yaml.safe_dump(_recipe(trained.config), sort_keys=False).rstrip(),
        "```",
    ]


def _start(pretrained: str | None) -> str:
    """Returns what the weights started from, without a path."""
    if pretrained is None:
        return "random weights"
    if pretrained == "imagenet":
        return "torchvision's ImageNet weights (IMAGENET1K_V1), inflated"
    if is_pinned(pretrained):  # as training records a repository of the hub, and no path
        return f"`{pretrained}` of the Hugging Face hub"
    named = f", `{Path(pretrained).name}`" if pretrained.endswith(WEIGHTS_ENDINGS) else ""
    return f"other weights{named}"


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
