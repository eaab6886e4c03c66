"""A published network: a folder that holds what it computes, and nothing of the machine that it was trained on.

config.json says what the network is and how its clips are made, classes.json names its outputs, model.safetensors
holds its weights for evaluation. None of them can run code, and config.json states what a network computes and nothing
else: it comes from others, and must not choose what is read, written or asked for here.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

import nlvideo
from nlvideo.config.compose import to_container
from nlvideo.config.schema import TrainConfig, ViewsConfig
from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.weights.bounds import distinct_names
from nlvideo.weights.checkpoint_file import (
    FORMAT_WITHOUT_EMA,
    NEWEST_FILE,
    NewerFormat,
    digest,
    naming,
    refuse_unreadable,
)
from nlvideo.weights.function_keys import FUNCTION_KEYS

PUBLISHED_FORMAT = 1  # raised when an older program could misread a newer folder
PUBLISHED_CONFIG, PUBLISHED_CLASSES, PUBLISHED_WEIGHTS = "config.json", "classes.json", "model.safetensors"
PUBLISHED_FILES = (PUBLISHED_CONFIG, PUBLISHED_CLASSES, PUBLISHED_WEIGHTS)
STATISTICS = ("precise", "running")  # of batch norm
# In the weights' file, so that they are known for what they are without the others. The hub's tools want "format".
WEIGHTS_MARK = {"format": "pt", "library": "nlvideo"}
_PARTS = ("model", "block", "data", "precision")  # of a run's config
_VIEWS = [f"data.test.{option.name}" for option in dataclasses.fields(ViewsConfig)]
_KEYS = {"precision", "data.multi_label", *FUNCTION_KEYS, *_VIEWS}


def is_published(path: Path) -> bool:
    """Returns whether a path is a published network's folder, be it half; a run's, which has a checkpoint, is none."""
    held = any((path / name).is_file() for name in (PUBLISHED_CONFIG, PUBLISHED_WEIGHTS))
    return held and not (path / NEWEST_FILE).exists()


def published_values(config: TrainConfig) -> dict[str, Any]:
    """Returns what config.json holds of a run's config: what the network computes and how its clips are made."""
    container = to_container(config)
    container["data"]["multi_label"] = config.data.is_multi_label
    return _kept({part: container[part] for part in _PARTS}, "")


def _kept(node: Mapping[str, Any], above: str) -> dict[str, Any]:
    """Returns the keys of a config that are published; `above` is what comes before theirs."""
    inner = {key: _kept(value, f"{above}{key}.") for key, value in node.items() if _is_node(f"{above}{key}")}
    return {key: inner.get(key, node[key]) for key in node if key in inner or f"{above}{key}" in _KEYS}


def _is_node(name: str) -> bool:
    return any(key.startswith(f"{name}.") for key in _KEYS)


def write_network(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes a network's files into a folder.

    Args:
        content: {"config": of published_values(), "step": int, "classes": names, "state": weights for evaluation,
            "precise": whether their batch-norm statistics are precise, "checkpoint_sha256": of the checkpoint that
            they come from}.
    """
    state = {key: value.contiguous() for key, value in content["state"].items()}
    described: dict[str, Any] = {
        "library_name": "nlvideo",
        "nlvideo_format": PUBLISHED_FORMAT,
        "nlvideo_version": nlvideo.__version__,
        **{part: content["config"][part] for part in _PARTS},
        "num_classes": len(content["classes"]),
        "step": content["step"],
        "batch_norm": STATISTICS[0 if content["precise"] else 1],
        "checkpoint_sha256": content["checkpoint_sha256"],
    }
    described["sha256"] = digest(_checkpoint(described, content["classes"], state))
    for name, value in ((PUBLISHED_CONFIG, described), (PUBLISHED_CLASSES, content["classes"])):
        (folder / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    # save_file() makes files that nobody else may read
    (folder / PUBLISHED_WEIGHTS).write_bytes(safetensors.torch.save(state, WEIGHTS_MARK))


def published_content(folder: Path) -> dict[str, Any]:
    """Returns what a published network's folder holds, as a checkpoint of ours would hold it; not verified.

    Raises:
        UserError: a file is missing or cannot be read, or config.json is not ours.
    """
    missing = [name for name in PUBLISHED_FILES if not (folder / name).is_file()]
    described = {} if PUBLISHED_CONFIG in missing else published_config(folder / PUBLISHED_CONFIG)
    if missing:
        raise UserFileNotFoundError(f"{folder} lacks {', '.join(missing)} of a published network's files.")
    classes = _read_json(folder / PUBLISHED_CLASSES)
    if not isinstance(classes, list) or len(classes) != described["num_classes"]:
        raise UserError(f"{folder / PUBLISHED_CLASSES} is not a list of {described['num_classes']} class names.")
    try:
        state = safetensors.torch.load_file(folder / PUBLISHED_WEIGHTS)
    except Exception as error:
        refuse_unreadable(folder / PUBLISHED_WEIGHTS, error)
    with naming(folder / PUBLISHED_CLASSES):
        names = distinct_names(classes)
    return _checkpoint(described, names, state) | {"sha256": described["sha256"]}


def published_config(path: Path) -> dict[str, Any]:
    """Returns the content of a published network's config.json.

    Raises:
        UserError: it cannot be read, is not ours, in which case it says whose it is, or states what no published
            network states.
        NewerFormat: a UserError too.
    """
    described = _read_json(path)
    if not isinstance(described, dict) or not _is_count(described.get("nlvideo_format")):
        kind = described.get("model_type") if isinstance(described, dict) else None
        raise UserError(f"{path} does not describe a network of nlvideo's{f', but a {kind} model' if kind else ''}.")
    if described["nlvideo_format"] > PUBLISHED_FORMAT:
        raise NewerFormat(
            f"{path} was written by a newer nlvideo (format {described['nlvideo_format']}, known up to "
            f"{PUBLISHED_FORMAT})."
        )
    lacking = [key for key in (*_PARTS, "num_classes", "step", "batch_norm", "sha256") if key not in described]
    if lacking:
        raise UserError(f"{path} is incomplete: {', '.join(lacking)}.")
    _refuse_what_is_not_published(described, path)
    return described


def _refuse_what_is_not_published(described: Mapping[str, Any], path: Path) -> None:
    for key, valid in (
        ("nlvideo_format", described["nlvideo_format"] >= 1),
        ("step", _is_count(described["step"])),
        ("num_classes", _is_count(described["num_classes"])),
        ("batch_norm", described["batch_norm"] in STATISTICS),
    ):
        if not valid:
            raise UserError(f"{path}: {key}={described[key]!r} is not what tools/publish_model.py writes.")
    foreign = [key for part in _PARTS for key in _names(described[part], part) if key not in _KEYS]
    if foreign:
        raise UserError(f"{path} states {str(foreign[:4])[1:-1]}, which no published network does; it is not read.")


def _names(node: Any, name: str) -> list[str]:
    """Returns the full names of the keys in a part of config.json."""
    if name in _KEYS or not isinstance(node, Mapping) or not _is_node(name):
        return [name]
    return [found for key, inner in node.items() for found in _names(inner, f"{name}.{key}")]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0  # a bool is an int too


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
