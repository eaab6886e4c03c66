"""The settings of an evaluation or prediction: the checkpoint's own, under what the user gave."""

from collections.abc import Container
from typing import Any, TypeVar

from nlvideo.config.compose import from_container, to_container
from nlvideo.config.schema import DataConfig, EvaluateConfig, TrainConfig
from nlvideo.data.stores.addresses import is_address, joined
from nlvideo.data.stores.local_copy import is_there
from nlvideo.runtime.errors import UserError

Settings = TypeVar("Settings")
UNNAMED = {"root": ".", "videos": "", "val": ""}  # in place of addresses; without a class file


def merge_settings(cls: type[Settings], trained: TrainConfig, given: dict[str, Any]) -> Settings:
    """Returns a config of class `cls` with the data settings of a trained network, under the keys given.

    Prints each data setting that the keys replace.

    Raises:
        UserError: an evaluation whose data only the checkpoint names, at an address.
    """
    container: dict[str, Any] = {"data": to_container(trained.data), "precision": trained.precision}
    if cls is EvaluateConfig:
        refuse_stored_addresses(trained.data, given)
    else:  # which reads no list of the checkpoint's
        container["data"] |= {key: UNNAMED.get(key) for key in stored_addresses(trained.data, given)}
    # The checkpoint knows its class names. If the list's own class file exists, the two are compared.
    container["data"]["num_classes"] = None
    for key in ("num_workers", "index", "cache_dir"):
        container["data"][key] = None  # of the machine that it was trained on
    container["data"]["cache_gb"] = DataConfig().cache_gb
    names = container["data"]["classes"]
    if names is not None and not is_there(joined(given.get("data.root", container["data"]["root"]), names)):
        container["data"]["classes"] = None
    if "data.root" in given and not any(key.startswith("data.synthetic") for key in given):
        container["data"]["synthetic"] = None  # nothing is written into a folder that the user names
    for key, value in given.items():
        *path, name = key.split(".")
        node: dict[str, Any] = container
        for part in path:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        if key.startswith(("data.", "precision")) and node.get(name) != value:
            print(f"{key}: {node.get(name)} in the checkpoint, {value} on the command line")
        node[name] = value
    return from_container(cls, container)


def refuse_stored_addresses(data: DataConfig, given: Container[str]) -> None:
    """Raises UserError if a checkpoint names data at an address that the user has not given.

    A checkpoint may come from anyone, and asking an address tells its owner.

    Args:
        given: keys that the user has given.
    """
    for key in stored_addresses(data, given):
        raise UserError(
            f"data.{key}={getattr(data, key)} is the checkpoint's, and no address is opened that you have not named: "
            f"give data.{key} yourself."
        )


def stored_addresses(data: DataConfig, given: Container[str]) -> list[str]:
    """Returns which places of what an evaluation reads are addresses that the user has not given."""
    keys = ("root", "videos", "val", "classes")
    return [key for key in keys if f"data.{key}" not in given and is_address(getattr(data, key) or "")]
