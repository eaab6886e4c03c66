"""Which keys a command line states: by name, or through the files of the groups that it chooses.

A chosen file states the keys that stand in it, and those of the files that its defaults list names: `model=c2d_r50`
states model.layout, and so does `experiment=c2d_r50_nl5`, whose file overrides the group model. What train.yaml chooses
by itself is stated by nobody.
"""

import importlib.resources
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from nlvideo.runtime.errors import UserError

_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)
# An entry of a defaults list: an optional word, the group, and a package behind an @
_ENTRY = re.compile(r"(?:(?:override|optional)\s+)*(?P<group>[^@\s]+)(?:@(?P<package>\S+))?")


def stated_keys(config: DictConfig, hydra: Any) -> dict[str, Any]:
    """Returns {dotted key: value} of what the command line states.

    Args:
        config: as composed, of which the values are taken.
        hydra: Hydra's own part of the composed config, with the overrides, the chosen groups and the search path.

    Raises:
        UserError: a chosen group has no file on the search path.
    """
    names: list[str] = []
    for override in OverridesParser.create().parse_overrides(list(hydra.overrides.task)):
        key, value = override.key_or_group, override.value()
        if key in hydra.runtime.choices:
            if value is not None:
                names += _keys_of_group(key, str(hydra.runtime.choices[key]), hydra)
        elif isinstance(value, dict) and value:
            names += [f"{key}.{leaf}" for leaf in _leaves(value)]
        else:
            names.append(key)
    stated = {}
    for name in names:
        node = OmegaConf.select(config, name)
        stated[name] = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return stated


def prefer_named_steps(config: DictConfig, overrides: Sequence[str]) -> None:
    """Drops a length in epochs that a file gives where the command line names one in steps.

    Raises:
        UserError: the command line names both.
    """
    named = {override.key_or_group for override in OverridesParser.create().parse_overrides(list(overrides))}
    for in_steps, in_epochs in (
        ("optim.max_steps", "optim.max_epochs"),
        ("validate_every_steps", "validate_every_epochs"),
    ):
        if in_steps in named and OmegaConf.select(config, in_epochs) is not None:
            if in_epochs in named:
                raise UserError(f"{in_steps} and {in_epochs} say the same in two ways; give one of them.")
            OmegaConf.update(config, in_epochs, None)


def is_stated(key: str, stated: Collection[str]) -> bool:
    """Returns whether a key, one below it or one above it is among those stated."""
    return any(name == key or name.startswith(f"{key}.") or key.startswith(f"{name}.") for name in stated)


def _keys_of_group(group: str, choice: str, hydra: Any, package: str | None = None) -> list[str]:
    """Returns the keys that a chosen file states, those of its defaults list first."""
    text = _group_file(group, choice, hydra).read_text()
    found = _PACKAGE.search(text)
    package = package or (found[1] if found else "_group_")
    package = {"_group_": group.replace("/", "."), "_global_": ""}.get(package, package)
    content = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    assert isinstance(content, dict), f"{group}/{choice}.yaml is no mapping"
    names = []
    for entry in content.pop("defaults", ()):
        for of_group, chosen, placed in _defaults_entry(entry, group):
            chosen = hydra.runtime.choices.get(of_group, chosen) if of_group != group else chosen
            if chosen is not None and not of_group.startswith("hydra"):
                names += _keys_of_group(of_group, str(chosen), hydra, placed)
    prefix = f"{package}." if package else ""
    return names + [f"{prefix}{leaf}" for leaf in _leaves(content) if not leaf.startswith("hydra.")]


def _defaults_entry(entry: Any, group: str) -> Iterator[tuple[str, Any, str | None]]:
    """Yields (group, choice, package) of an entry of a defaults list; a bare name is a file of the same group."""
    if isinstance(entry, str):
        if entry != "_self_":
            folder, _, name = entry.rpartition("/")
            yield folder.lstrip("/") or group, name, None
        return
    for key, choice in entry.items():
        match = _ENTRY.fullmatch(key)
        if match is not None:
            name = match["group"]
            yield name.lstrip("/") if name.startswith("/") else f"{group}/{name}", choice, match["package"]


def _group_file(group: str, choice: str, hydra: Any) -> Path:
    """Returns the file of a chosen group, wherever it lies on Hydra's search path."""
    for source in hydra.runtime.config_sources:
        if source.schema not in ("pkg", "file"):
            continue
        in_package = source.schema == "pkg"
        folder = Path(str(importlib.resources.files(source.path))) if in_package else Path(source.path)
        file = folder / group / f"{choice.removesuffix('.yaml')}.yaml"
        if file.is_file():
            return file
    raise UserError(f"{group}={choice}: no such file on the search path.")


def _leaves(stated: Mapping[Any, Any], prefix: str = "") -> list[str]:
    """Returns the dotted keys of all values that are not groups of others; an empty group is a value."""
    names = []
    for key, value in stated.items():
        if isinstance(value, Mapping) and value:
            names += _leaves(value, f"{prefix}{key}.")
        else:
            names.append(f"{prefix}{key}")
    return names
