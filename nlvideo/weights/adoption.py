"""A checkpoint brings its function along: what a new run takes over from its pretrained weights.

The command line wins: a key that it states, by itself or through a file that it chooses, is left as it is.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from nlvideo.config.compose import from_container, to_container
from nlvideo.config.schema import TrainConfig
from nlvideo.config.stated_keys import is_stated
from nlvideo.runtime.errors import UserError
from nlvideo.weights.function_keys import BLOCK_KEYS, PICTURE_KEYS, function_values
from nlvideo.weights.hub import pinned
from nlvideo.weights.weights_file import WeightsFile, read_weights


def take_from_pretrained(
    config: TrainConfig, stated: Mapping[str, Any], begun: Mapping[str, Any] | None = None
) -> TrainConfig:
    """Returns the config with the values that its model.pretrained brings along.

    A repository of the hub is pinned to the commit that its name stands for now, so that the weights which are loaded
    later, on every rank, are those that the values come from.

    Args:
        config: as composed.
        stated: {key: value} of what the command line states.
        begun: the stored config of the run that is resumed, if one is: the values are taken from it, as the file of
            weights may be gone.

    Raises:
        UserError: the file cannot be used, or has blocks that have no place in this network.
    """
    pretrained = config.model.pretrained
    if begun is not None:
        before = begun.get("model", {}).get("pretrained")
        if pretrained is None and before is None:  # without pretrained weights, then as now
            return config
        config = take(config, stated, function_values(begun))
        same = pretrained is not None and before is not None and before.startswith(f"{pretrained}@")
        return with_pretrained(config, before) if same else config
    if pretrained is None or pretrained == "imagenet":
        return config
    pretrained = pinned(pretrained)
    config = with_pretrained(config, pretrained)
    file = read_weights(pretrained, stated.get("block.mode"), lazily=True)
    config = take(config, stated, file.values)
    refuse_blocks_without_place(config, file)
    return config


def with_pretrained(config: TrainConfig, name: str) -> TrainConfig:
    return replace(config, model=replace(config.model, pretrained=name))


def take(config: TrainConfig, stated: Collection[str], values: Mapping[str, Any]) -> TrainConfig:
    """Returns the config with the values of all keys that are not stated, and go together with those that are."""
    container = to_container(config)
    for key, value in _admitted(config, stated, values).items():
        *path, name = key.split(".")
        node = container
        for part in path:
            node = node[part]
        node[name] = value
    return from_container(TrainConfig, container)


def _admitted(config: TrainConfig, stated: Collection[str], values: Mapping[str, Any]) -> dict[str, Any]:
    left = {key for key in values if is_stated(key, stated)}
    if "model.layout" in left and config.model.layout != values["model.layout"]:
        left.add("model.stem")  # a stem is made for a layout
    other_kind = "block.kind" in left and config.block.kind != values["block.kind"]
    other_mode = "block.mode" in left and config.block.mode != values["block.mode"]
    if other_kind or (other_mode and "block.kind" in left):
        left.update(BLOCK_KEYS)  # another block, whose options are its own
    elif other_mode:
        left.add("block.scale")  # only one of the modes has it
    if left.intersection(PICTURE_KEYS):
        left.update(PICTURE_KEYS)
    return {key: value for key, value in values.items() if key not in left}


def refuse_blocks_without_place(config: TrainConfig, file: WeightsFile) -> None:
    """Raises UserError if the file has blocks where the network has none of their kind."""
    block, depth = config.block, f"r{config.model.depth}"
    if not file.places or config.model.depth != file.values.get("model.depth"):
        return
    kind, inside = file.values["block.kind"], file.values.get("block.inside", False)
    ours = block.places.get(depth, []) if block.kind != "none" else []
    same = block.kind == kind and block.inside == inside
    lost = file.places if not same else [place for place in file.places if place not in ours]
    if lost:
        has = f"{block.kind} blocks after {', '.join(ours) or 'none'}" if ours else "no blocks"
        side = "" if block.inside == inside or block.kind != kind else f" with block.inside={str(block.inside).lower()}"
        raise UserError(
            f"model.pretrained={file.name} has {kind} blocks after {', '.join(lost)}, which have no place here: this "
            f"network has {has}{side}. Leave the keys of block out to take the checkpoint's, or give block.kind={kind} "
            f"++block.places.{depth}=[{','.join(file.places)}]."
        )


def differing(config: TrainConfig, file: WeightsFile) -> list[str]:
    """Returns "key=value (checkpoint: its value)" for each value in which the config differs from the file."""
    ours = function_values(to_container(config))
    values = dict(file.values)
    depth = f"r{config.model.depth}"
    if values.get("block.kind", "none") == "none" or values.get("block.kind") != config.block.kind:
        values = {key: value for key, value in values.items() if key not in BLOCK_KEYS or key == "block.kind"}
    if "block.places" in values:
        values[f"block.places.{depth}"] = values.pop("block.places").get(depth)
        ours[f"block.places.{depth}"] = config.block.places.get(depth)
    return [
        f"{key}={shown(ours[key])} ({'assumed' if key in file.assumed else 'checkpoint'}: {shown(value)})"
        for key, value in values.items()
        if ours[key] != value
    ]


def assumptions(config: TrainConfig, file: WeightsFile) -> list[str]:
    """Returns "key=value" of what the config has because it was assumed of the file."""
    ours = function_values(to_container(config))
    return [f"{key}={shown(ours[key])}" for key in file.assumed if ours[key] == file.values[key]]


def shown(value: Any) -> str:
    """Returns a value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}: {shown(inner)}" for key, inner in value.items()) + "}"
    return str(value)
