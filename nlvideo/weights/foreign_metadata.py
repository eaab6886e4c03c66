"""What other projects write beside their weights: the configs of PySlowFast and mmengine, and class names.

A config is read as text, YAML or Python, and never run. What cannot be read there is as good as absent.
"""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

# PySlowFast's NONLOCAL.INSTANTIATION
INSTANTIATIONS = {"softmax": "embedded_gaussian", "dot_product": "dot_product"}
# PySlowFast's MODEL.ARCH of networks that keep every frame: as it calls them now, and as it once did
ARCHS_OF_ALL_FRAMES = ("slow_c2d", "slow_i3d", "c2d_nopool", "i3d_nopool")
# mmaction2's (conv1_stride_t, pool1_stride_t, with_pool2) of a 3D ResNet
STEMS_3D = {
    (2, 2, True): "mmaction2",
    (1, 1, True): "pyslowfast",
    (1, 1, False): "all_frames",
}
STEMS_2D = {"C2D": "released_8x8", "ResNet": "all_frames"}  # mmaction2's backbones, the latter frame by frame


def metadata_values(source: str, content: Any) -> dict[str, Any]:
    """Returns {key: value} that a file's metadata states; {} where it has none.

    Args:
        source: a key of SOURCES.
        content: everything the file holds.
    """
    if not isinstance(content, Mapping):
        return {}
    if source == "pyslowfast":
        return _of_pyslowfast(content.get("cfg"))
    if source == "mmaction2" and isinstance(content.get("meta"), Mapping):
        meta = content["meta"]
        return _of_mmaction2(meta.get("cfg", meta.get("config")))  # the latter before version 1
    return {}


def metadata_classes(content: Any) -> list[str] | None:
    """Returns the class names that mmengine keeps with its data set, None where there are none."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        return None
    dataset = meta.get("dataset_meta")
    names = dataset.get("classes") if isinstance(dataset, Mapping) else meta.get("CLASSES")
    return [str(name) for name in names] if isinstance(names, list | tuple) and names else None


def _of_pyslowfast(text: Any) -> dict[str, Any]:
    try:
        config = yaml.safe_load(text) if isinstance(text, str) else None
    except (yaml.YAMLError, ValueError, RecursionError):  # an impossible date is a ValueError
        return {}
    values: dict[str, Any] = {}
    data, block = _part(config, "DATA"), _part(config, "NONLOCAL")
    if _part(config, "MODEL").get("ARCH") in ARCHS_OF_ALL_FRAMES:
        values["model.stem"] = "all_frames"
    if block.get("INSTANTIATION") in INSTANTIATIONS:
        values["block.mode"] = INSTANTIATIONS[block["INSTANTIATION"]]
    for theirs, ours in (("NUM_FRAMES", "num_frames"), ("SAMPLING_RATE", "frame_stride")):
        if isinstance(data.get(theirs), int):
            values[f"data.{ours}"] = data[theirs]
    for theirs, ours in (("MEAN", "mean"), ("STD", "std")):
        if _are_colours(data.get(theirs)):
            values[f"data.{ours}"] = list(map(float, data[theirs]))
    if data.get("MULTI_LABEL") is True:
        values["data.multi_label"] = True
    return values


def _of_mmaction2(text: Any) -> dict[str, Any]:
    try:
        tree = ast.parse(text) if isinstance(text, str) else ast.Module([], [])
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return {}
    config = {
        node.targets[0].id: _plain(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    model = _part(config, "model")
    values = _stem_of_mmaction2(_part(model, "backbone"))
    block = _part(_part(model, "backbone"), "non_local_cfg")
    if isinstance(block.get("mode"), str):
        values["block.mode"] = block["mode"]
        if isinstance(block.get("use_scale"), bool):
            values["block.scale"] = block["use_scale"] and block["mode"] == "embedded_gaussian"
    for step in _steps(config.get("train_pipeline")):
        if step.get("type") == "SampleFrames":
            for theirs, ours in (("clip_len", "num_frames"), ("frame_interval", "frame_stride")):
                if isinstance(step.get(theirs), int):
                    values[f"data.{ours}"] = step[theirs]
    if _part(model, "cls_head").get("multi_class") is True:
        values["data.multi_label"] = True
    for theirs in ("mean", "std"):
        numbers = _part(model, "data_preprocessor").get(theirs)
        if isinstance(numbers, list) and _are_colours(numbers):
            values[f"data.{theirs}"] = [round(number / 255, 6) for number in numbers]
    return values


def _stem_of_mmaction2(backbone: Mapping[str, Any]) -> dict[str, Any]:
    stem = None
    if backbone.get("type") == "ResNet3d":
        strides = backbone.get("conv1_stride_t", 2), backbone.get("pool1_stride_t", 2), backbone.get("with_pool2", True)
        stem = STEMS_3D.get(strides) if all(isinstance(value, int) for value in strides) else None
    elif isinstance(backbone.get("type"), str):
        stem = STEMS_2D.get(backbone["type"])
    return {} if stem is None else {"model.stem": stem}


def _steps(pipeline: Any) -> Iterator[Mapping[str, Any]]:
    for step in pipeline if isinstance(pipeline, list) else ():
        if isinstance(step, Mapping):
            yield step


def _part(config: Any, key: str) -> Mapping[str, Any]:
    found = config.get(key) if isinstance(config, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _are_colours(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(v, int | float) for v in value)


def _plain(node: ast.expr) -> Any:
    """Returns the value of an expression of literals and dict(...); None for any other."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _plain(keyword.value) for keyword in node.keywords if keyword.arg is not None}
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {key.value: _plain(value) for key, value in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_plain(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
