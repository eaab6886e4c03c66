"""The settings of an evaluation or prediction: the checkpoint's own, under what the user gave."""

from typing import Any, TypeVar

from nlvideo.config.compose import from_container, to_container
from nlvideo.config.schema import DataConfig, TrainConfig
from nlvideo.data.stores.addresses import joined
from nlvideo.data.stores.local_copy import is_there

Settings = TypeVar("Settings")


def merge_settings(cls: type[Settings], trained: TrainConfig, given: dict[str, Any]) -> Settings:
    """Returns a config of class `cls` with the data settings of a trained network, under the keys given.

    Prints each data setting that the keys replace.
    """
    container: dict[str, Any] = {"data": to_container(trained.data), "precision": trained.precision}
    # The checkpoint knows its class names. If the list's own class file exists, the two are compared.
    container["data"]["num_classes"] = None
    for key in ("num_workers", "index", "cache_dir"):
        container["data"][key] = None  # of the machine that it was trained on
    container["data"]["cache_gb"] = DataConfig().cache_gb
    names = container["data"]["classes"]
    if names is not None and not is_there(joined(given.get("data.root", trained.data.root), names)):
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
