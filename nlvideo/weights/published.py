"""A published network: a folder that holds what it computes, and nothing of the machine that it was trained on.

config.json says what the network is and how its clips are made, classes.json names its outputs, model.safetensors
holds its weights for evaluation. None of them can run code.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

import nlvideo
from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.weights.checkpoint_file import FORMAT_WITHOUT_EMA, NEWEST_FILE, NewerFormat, digest, refuse_unreadable

PUBLISHED_FORMAT = 1  # raised when an older program could misread a newer folder
PUBLISHED_CONFIG, PUBLISHED_CLASSES, PUBLISHED_WEIGHTS = "config.json", "classes.json", "model.safetensors"
PUBLISHED_FILES = (PUBLISHED_CONFIG, PUBLISHED_CLASSES, PUBLISHED_WEIGHTS)
_PARTS = ("model", "block", "data", "precision")  # of a run's config


def is_published(path: Path) -> bool:
    """Returns whether a path is a published network's folder; a run's, which has a checkpoint, is none."""
    return (path / PUBLISHED_CONFIG).is_file() and not (path / NEWEST_FILE).exists()


def write_network(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes a network's files into a folder.

    Args:
        content: {"config": config as plain values, which name no path, "step": int, "classes": names, "state": weights
            for evaluation, "precise": whether their batch-norm statistics are precise, "checkpoint_sha256": of the
            checkpoint that they come from}.
    """
    state = {key: value.contiguous() for key, value in content["state"].items()}
    described: dict[str, Any] = {
        "library_name": "nlvideo",
        "nlvideo_format": PUBLISHED_FORMAT,
        "nlvideo_version": nlvideo.__version__,
        **{part: content["config"][part] for part in _PARTS},
        "num_classes": len(content["classes"]),
        "step": content["step"],
        "batch_norm": "precise" if content["precise"] else "running",
        "checkpoint_sha256": content["checkpoint_sha256"],
    }
    described["sha256"] = digest(_checkpoint(described, content["classes"], state))
    for name, value in ((PUBLISHED_CONFIG, described), (PUBLISHED_CLASSES, content["classes"])):
        (folder / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    # save_file() makes files that nobody else may read
    (folder / PUBLISHED_WEIGHTS).write_bytes(safetensors.torch.save(state, {"format": "pt"}))


def published_content(folder: Path) -> dict[str, Any]:
    """Returns what a published network's folder holds, as a checkpoint of ours would hold it; not verified.

    Raises:
        UserError: a file is missing or cannot be read, or config.json is not ours.
    """
    missing = [name for name in PUBLISHED_FILES if not (folder / name).is_file()]
    if missing:
        raise UserFileNotFoundError(f"{folder} lacks {', '.join(missing)} of a published network's files.")
    described = published_config(folder / PUBLISHED_CONFIG)
    classes = _read_json(folder / PUBLISHED_CLASSES)
    if not isinstance(classes, list) or len(classes) != described["num_classes"]:
        raise UserError(f"{folder / PUBLISHED_CLASSES} is not a list of {described['num_classes']} class names.")
    try:
        state = safetensors.torch.load_file(folder / PUBLISHED_WEIGHTS)
    except Exception as error:
        refuse_unreadable(folder / PUBLISHED_WEIGHTS, error)
    return _checkpoint(described, [str(name) for name in classes], state) | {"sha256": described["sha256"]}


def published_config(path: Path) -> dict[str, Any]:
    """Returns the content of a published network's config.json.

    Raises:
        UserError: it cannot be read, or is not ours; says whose it is.
        NewerFormat: a UserError too.
    """
    described = _read_json(path)
    if not isinstance(described, dict) or not isinstance(described.get("nlvideo_format"), int):
        kind = described.get("model_type") if isinstance(described, dict) else None
        raise UserError(f"{path} does not describe a network of nlvideo's{f', but a {kind} model' if kind else ''}.")
    if described["nlvideo_format"] > PUBLISHED_FORMAT:
        raise NewerFormat(
            f"{path} was written by a newer nlvideo (format {described['nlvideo_format']}, known up to "
            f"{PUBLISHED_FORMAT})."
        )
    lacking = [key for key in (*_PARTS, "num_classes", "step", "batch_norm", "sha256") if key not in described]
    if lacking or not isinstance(described["data"], dict):
        raise UserError(f"{path} is incomplete: {', '.join(lacking) or 'data'}.")
    return described


def _checkpoint(described: Mapping[str, Any], classes: list[str], state: Mapping[str, Tensor]) -> dict[str, Any]:
    config = {part: described[part] for part in _PARTS}
    content = {
        "format": FORMAT_WITHOUT_EMA,
        "model": {key: state[key] for key in sorted(state)},  # the digest depends on their order
        "step": described["step"],
        "config": config | {"data": {"root": ".", **described["data"]}},
        "classes": classes,
    }
    if described["batch_norm"] == "precise":
        content["precise_bn"] = {key: value for key, value in content["model"].items() if ".running_" in key}
    return content


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a json file that can be read: {error}.") from None
