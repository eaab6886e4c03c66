"""The way from Hydra, the command line and checkpoints to the dataclasses of config.py, and what a mistake says."""

import dataclasses
import difflib
import functools
import importlib.resources
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nlvideo.config.schema import EvaluateConfig, PredictConfig, TrainConfig
from nlvideo.runtime.errors import REPORTED_ERRORS, UserError, error_line


def store_schemas() -> None:
    """Makes the dataclasses known to Hydra, as the base that train.yaml, evaluate.yaml and predict.yaml start from."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="predict_schema", node=PredictConfig)


def to_dataclass(config: DictConfig) -> Any:
    """Returns the composed config as its dataclass, checked.

    Raises:
        UserError: a missing value, an unknown key, or a value that is not allowed; says which.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{missing[0]} has no value; give it as {missing[0]}=... on the command line.")
    made = OmegaConf.to_object(config)
    _refuse_unknown_keys(made, "")
    return made


def from_container(cls: type, container: dict) -> Any:
    """Returns the dataclass of a plain dict, as a checkpoint holds it."""
    return to_dataclass(OmegaConf.merge(OmegaConf.structured(cls), container))


def to_container(config: Any) -> dict:
    """Returns the config as plain dicts, lists, strings and numbers."""
    return dataclasses.asdict(config)


def to_yaml(config: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(to_container(config)))


def command_line_keys(config: DictConfig) -> dict[str, Any]:
    """Returns {key: value} for what the command line set; a chosen group file counts as the keys it states."""
    given = {}
    for override in OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task)):
        key, value = override.key_or_group, override.value()
        chosen = OmegaConf.is_config(OmegaConf.select(config, key)) and isinstance(value, str)
        stated = _group_file(key, value) if chosen else OmegaConf.create(value) if isinstance(value, dict) else None
        keys = [key] if stated is None else [f"{key}.{name}" for name in _leaves(stated)]
        for name in keys:
            node = OmegaConf.select(config, name)
            given[name] = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return given


def _group_file(group: str, choice: str) -> DictConfig:
    """Returns what the file of a chosen group states, wherever on Hydra's search path it lies."""
    for source in HydraConfig.get().runtime.config_sources:
        if source.schema == "pkg":
            folder = Path(str(importlib.resources.files(source.path)))
        else:
            folder = Path(source.path)
        if (folder / group / f"{choice}.yaml").is_file():
            return OmegaConf.load(folder / group / f"{choice}.yaml")
    raise UserError(f"{group}={choice}: no such file on the search path.")


def _leaves(config: DictConfig, prefix: str = "") -> list[str]:
    """Returns the dotted keys of all values that are not groups of others; an empty group is a value."""
    names = []
    for key in config:
        node = config._get_node(key)
        if isinstance(node, DictConfig) and len(node):
            names += _leaves(node, f"{prefix}{key}.")
        elif key != "defaults":
            names.append(f"{prefix}{key}")
    return names


def run_command(function: Callable[[DictConfig], Any], config_name: str) -> None:
    """Composes the config from the command line and calls `function` with it; a mistake of the user is one message."""

    @functools.wraps(function)
    def guarded(config: DictConfig) -> Any:
        try:
            return function(config)
        except REPORTED_ERRORS as error:
            sys.exit(error_line(error))

    store_schemas()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # so that its errors reach the lines below
    try:
        hydra.main(version_base="1.3", config_path="pkg://nlvideo.configs", config_name=config_name)(guarded)()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain(error)}")


def explain(error: Exception) -> str:
    """Returns Hydra's or OmegaConf's message, with the allowed keys where a key is unknown."""
    lines, cause = [], error
    while cause is not None:
        lines += [
            line for line in str(cause).splitlines() if line.strip() and not line.strip().startswith("reference_")
        ]
        cause, known = cause.__cause__, _known_keys(cause)
        if known:
            lines.append(known)
    return "\n".join(dict.fromkeys(line.strip() for line in lines if "object_type" not in line))


def _known_keys(error: BaseException) -> str | None:
    if getattr(error, "key", None) is None or not dataclasses.is_dataclass(getattr(error, "object_type", None)):
        return None
    names = [f.name for f in dataclasses.fields(error.object_type)]
    if str(error.key) in names:
        return None
    close = difflib.get_close_matches(str(error.key), names, 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"Known keys there: {', '.join(names)}.{hint}"


def _refuse_unknown_keys(config: Any, path: str) -> None:
    names = {f.name for f in dataclasses.fields(config)}
    for key, value in vars(config).items():
        if key not in names:
            raise UserError(f"{path}{key}={value!r} is no known key. Choose from: {', '.join(sorted(names))}.")
        if dataclasses.is_dataclass(value):
            _refuse_unknown_keys(value, f"{path}{key}.")
