"""From Hydra, the command line and checkpoints to the dataclasses of schema.py, and what a mistake prints."""

import dataclasses
import difflib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import hydra
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nlvideo.config.checks import check_config
from nlvideo.config.schema import EvaluateConfig, ExtractConfig, PredictConfig, TrainConfig
from nlvideo.config.stated_keys import prefer_named_steps, stated_keys
from nlvideo.runtime.errors import UserError, reporting_errors

CONFIG_MODULE = "nlvideo.configs"
PLACES = "root train val videos classes index cache_dir cache_gb".split()  # of the data of one node

Config = TypeVar("Config")


def store_schemas() -> None:
    """Registers the dataclasses with Hydra, as the base of train.yaml, evaluate.yaml, predict.yaml and extract.yaml."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="predict_schema", node=PredictConfig)
    store.store(name="extract_schema", node=ExtractConfig)


def run_command(function: Callable[[DictConfig], Any], config_name: str) -> None:
    """Composes the config from the command line and calls `function` with it; a user's mistake becomes one line."""

    @functools.wraps(function)
    def guarded(config: DictConfig) -> Any:
        with reporting_errors():
            if config_name == "train":
                prefer_named_steps(config, HydraConfig.get().overrides.task)
            return function(config)

    store_schemas()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let Hydra's errors reach the lines below
    try:
        hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name=config_name)(guarded)()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain(error)}")


def compose_train_config(overrides: Sequence[str]) -> TrainConfig:
    """Returns the config that nlvideo-train gets from these overrides, such as ["experiment=i3d_r50", "seed=1"].

    Values that a file of pretrained weights brings along are not in it; see take_from_pretrained() in weights/adoption.

    Raises:
        UserError: an override that does not fit; the message is the one that the command prints.
    """
    with _explaining():
        return to_dataclass(compose_stated("train", overrides)[0])


def compose_stated(
    config_name: str, overrides: Sequence[str], *, one_run: bool = False
) -> tuple[DictConfig, dict[str, Any]]:
    """Returns what a program gets from these overrides: its composed config, and {key: value} of what they state.

    Args:
        config_name: "train", "evaluate", "predict" or "extract".
        overrides: as on the command line.
        one_run: refuse a config that stands for several, as the papers' tables do.

    Raises:
        UserError: an override that does not fit; the message is the one that the command prints.
    """
    store_schemas()
    with _explaining(), _outside_hydra(), initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        composed = compose(config_name, list(overrides), return_hydra_config=True)
        if one_run and composed.hydra.sweeper.get("params"):
            raise UserError("This config is a sweep over several runs, which nlvideo-train -m trains.")
        return without_hydra(composed)


def without_hydra(composed: DictConfig) -> tuple[DictConfig, dict[str, Any]]:
    """Takes Hydra's own part out of a composed config; returns the rest, and {key: value} of what was stated."""
    hydra_part = composed.hydra
    with open_dict(composed):
        del composed["hydra"]
    if "optim" in composed:
        prefer_named_steps(composed, hydra_part.overrides.task)
    return composed, stated_keys(composed, hydra_part)


@contextmanager
def _explaining() -> Iterator[None]:
    """Makes a UserError of what Hydra and OmegaConf refuse."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error


@contextmanager
def _outside_hydra() -> Iterator[None]:
    """Sets aside the Hydra program that this code may run in: Hydra composes for one program at a time."""
    state = GlobalHydra.instance()
    running = state.hydra
    state.hydra = None
    try:
        yield
    finally:
        state.hydra = running


def to_dataclass(config: DictConfig) -> Any:
    """Returns the composed config as its dataclass, checked.

    Raises:
        UserError: a missing value, an unknown key, or a value that is not allowed; names it.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{missing[0]} has no value; give it as {missing[0]}=... on the command line.")
    made = OmegaConf.to_object(config)
    _refuse_unknown_keys(made, "")
    check_config(made)
    return made


def from_container(cls: type[Config], container: dict[str, Any]) -> Config:
    """Returns the dataclass of a plain dict, as a checkpoint holds it.

    Raises:
        UserError: a key or value that this version does not know, or a reference: files of others must not read the
            environment, and what a run stores is resolved.
    """
    if "${" in repr(container):
        raise UserError("The stored config holds a reference (${...}), which no run stores; it is not resolved.")
    try:
        return to_dataclass(OmegaConf.merge(OmegaConf.structured(cls), container))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error


def to_container(config: Any) -> dict[str, Any]:
    """Returns the config as plain dicts, lists, strings and numbers."""
    return dataclasses.asdict(config)


def without_places(config: Config) -> Config:
    """Returns a config without where each node keeps its data: the lists' content is compared, not their place."""
    return _with_places(config, dict.fromkeys(PLACES))


def with_places_of(config: Config, own: Config) -> Config:
    """Returns a config, which may come from rank 0, with where this node keeps its data."""
    data: Any = own.data  # type: ignore[attr-defined]
    return _with_places(config, {name: getattr(data, name) for name in PLACES})


def _with_places(config: Config, places: dict[str, Any]) -> Config:
    data: Any = config.data  # type: ignore[attr-defined]
    return dataclasses.replace(config, data=dataclasses.replace(data, **places))  # type: ignore[type-var]


def to_yaml(config: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(to_container(config)))


def command_line_keys(config: DictConfig) -> dict[str, Any]:
    """Returns {key: value} of what the command line of the running program states; see stated_keys()."""
    return stated_keys(config, HydraConfig.get())


def explain(error: BaseException) -> str:
    """Returns the message of Hydra or OmegaConf, with the known keys where a key is unknown."""
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        lines += [line.strip() for line in str(cause).splitlines() if _tells_the_user(line)]
        known = _known_keys(cause)
        if known:
            lines.append(known)
        cause = cause.__cause__
    return "\n".join(dict.fromkeys(lines))


def _tells_the_user(line: str) -> bool:
    """Returns False for empty lines, OmegaConf's own types, and the advice to add an unknown key with `+`: such a key
    is refused too."""
    text = line.strip()
    internal = text.startswith(("reference_", "object_type")) or "object_type" in text
    return bool(text) and not internal and not text.startswith("To append to your config use")


def _known_keys(error: BaseException) -> str | None:
    kind = getattr(error, "object_type", None)
    key = getattr(error, "key", None)
    if key is None or not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return None
    names = [f.name for f in dataclasses.fields(kind)]
    return None if str(key) in names else f"Known keys there: {', '.join(names)}.{_did_you_mean(str(key), names)}"


def _refuse_unknown_keys(config: Any, path: str) -> None:
    """Raises UserError for a key that was added with `+`, which OmegaConf lets through."""
    names = [f.name for f in dataclasses.fields(config)]
    for key, value in vars(config).items():
        if key not in names:
            hint = _did_you_mean(key, names)
            raise UserError(f"{path}{key}={value!r} is not a key. Choose from: {', '.join(sorted(names))}.{hint}")
        if dataclasses.is_dataclass(value):
            _refuse_unknown_keys(value, f"{path}{key}.")


def _did_you_mean(key: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, names, 1)
    return f" Did you mean {close[0]}?" if close else ""
