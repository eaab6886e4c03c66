"""A checkpoint of ours as another project's file.

The names are those of the reading direction, and what is about to be written is read back: a network that would come
back as another one is one that the project does not have.
"""

import pprint
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import Tensor

from nlvideo.config.compose import to_container
from nlvideo.config.schema import TrainConfig
from nlvideo.data.lists.class_file import has_names
from nlvideo.models.resnet import DEPTHS, LAYOUTS, STAGES
from nlvideo.runtime.errors import UserError
from nlvideo.weights.adoption import shown
from nlvideo.weights.checkpoint_file import evaluation_weights
from nlvideo.weights.foreign_metadata import ARCHS_OF_ALL_FRAMES, INSTANTIATIONS, STEMS_2D, STEMS_3D
from nlvideo.weights.function_keys import function_values
from nlvideo.weights.importers import import_weights
from nlvideo.weights.sources import SOURCES
from nlvideo.weights.trained_network import TrainedCheckpoint

_PAPER_PLACES = ("res3.1", "res3.3", "res4.1", "res4.3", "res4.5")


@dataclass(frozen=True)
class _Limits:
    """What a project's code can build, where reading a file of it does not tell.

    Attributes:
        modes: of its blocks, which all end with a norm.
        flat: layouts that it has as 2D networks, with 2D kernels, one width, and no blocks.
        one_network: it has R50 of width 64 alone, with blocks at _PAPER_PLACES or none.
        out_bias: its blocks have a bias before that norm.
    """

    modes: tuple[str, ...]
    flat: tuple[str, ...] = ()
    one_network: bool = False
    out_bias: bool = True


_LIMITS = {
    "pyslowfast": _Limits(modes=tuple(INSTANTIATIONS.values())),
    "mmaction2": _Limits(
        modes=("gaussian", "embedded_gaussian", "dot_product", "concatenation"), flat=("c2d",), out_bias=False
    ),
    "pytorch_resnet3d": _Limits(modes=("embedded_gaussian",), one_network=True),
}
WRITTEN_PROJECTS = tuple(_LIMITS)


def foreign_content(trained: TrainedCheckpoint, project: str) -> tuple[Any, list[str]]:
    """Returns what a project's file of this network holds, and notes on what is not as in ours.

    Args:
        trained: a checkpoint; its weights for evaluation are taken.
        project: one of WRITTEN_PROJECTS.

    Raises:
        UserError: the project does not have this network; says what it lacks.
    """
    config = trained.config
    _refuse_what_is_lacking(config, project)
    state, notes = _their_state(evaluation_weights(trained.content), config, project)
    content: Any = state
    if project == "pyslowfast":
        content = {"model_state": state, "cfg": yaml.safe_dump(_config_of_pyslowfast(trained))}
    elif project == "mmaction2":
        meta = {"cfg": _config_of_mmaction2(trained), "dataset_meta": {"classes": list(trained.classes)}}
        content = {"state_dict": state, "meta": meta}
    if has_names(trained.classes) and project != "mmaction2":
        notes.append("its class names are not in the file: they come back as numbers, or are given again by --classes")
    return content, notes + _compare(content, config, project)


def _refuse_what_is_lacking(config: TrainConfig, project: str) -> None:
    title, source, limits = SOURCES[project].title, SOURCES[project], _LIMITS[project]
    model, block = config.model, config.block
    places = block.places.get(f"r{model.depth}", []) if block.kind != "none" else []

    def refuse(key: str, value: Any, has: str) -> None:
        raise UserError(f"{title} has no {key}={shown(value)}; it has {has}.")

    if model.layout not in source.stems:
        refuse("model.layout", model.layout, ", ".join(source.stems))
    if block.kind not in ("none", "non_local"):
        refuse("block.kind", block.kind, "none, non_local")
    if block.kind == "non_local" and model.layout in limits.flat:
        refuse("block.kind", block.kind, f"no blocks in its {model.layout}, which is a 2D network")
    if block.kind == "non_local" and block.mode not in limits.modes:
        refuse("block.mode", block.mode, ", ".join(limits.modes))
    if block.kind == "non_local" and block.inside:
        refuse("block.inside", True, "its blocks behind the residual block")
    if block.kind == "non_local" and not block.norm:
        refuse("block.norm", False, "a norm at the end of every block")
    if limits.one_network and model.depth != 50:
        refuse("model.depth", model.depth, "50")
    if (limits.one_network or model.layout in limits.flat) and model.width != 64:
        refuse("model.width", model.width, "64")
    if limits.one_network and tuple(places) not in ((), _PAPER_PLACES):
        refuse(f"block.places.r{model.depth}", places, f"[{','.join(_PAPER_PLACES)}]")


def _their_state(ours: Mapping[str, Tensor], config: TrainConfig, project: str) -> tuple[dict[str, Tensor], list[str]]:
    limits, names = _LIMITS[project], SOURCES[project].names
    assert names is not None
    state, notes = _with_their_biases(dict(ours), limits.out_bias)
    found = {}
    for key, value in state.items():
        choices = names.theirs(key)
        assert choices, f"{key} has no name in {project}"
        # mmcv's concatenation has a 2D convolution in its 3D blocks too
        flat = value.ndim == 5 and (config.model.layout in limits.flat or key.endswith("_nl.w_f.weight"))
        # Where a project names a key in two ways, the second is that of blocks that do not subsample.
        found[choices[0 if config.block.subsample else -1]] = (value.squeeze(2) if flat else value).clone()
    return found, notes


def _with_their_biases(state: dict[str, Tensor], out_bias: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the state with the biases that the project's blocks have, and no others, and what was done."""
    notes, parts = [], ("theta", "phi", "g", *(["out"] if out_bias else []))
    added = [
        key.replace("weight", "bias")
        for key in state
        if key.endswith(tuple(f"_nl.{part}.weight" for part in parts)) and key.replace("weight", "bias") not in state
    ]
    for key in added:
        state[key] = torch.zeros(len(state[key.replace("bias", "weight")]))
    if added:
        notes.append(f"{len(added)} biases, which the project's blocks have, are written as zeros")
    folded = 0
    for key in [key for key in state if key.endswith("_nl.out.bias") and not out_bias]:
        bias = state.pop(key)
        if bias.any():
            mean = key.replace("out.bias", "bn.running_mean")
            state[mean] = state[mean] - bias
            folded += 1
    if folded:
        notes.append(f"{folded} biases before a norm, which the project's blocks lack, are folded into running means")
    return state, notes


def _compare(content: Any, config: TrainConfig, project: str) -> list[str]:
    """Returns notes on clips, pictures, colours and labels that the file does not tell.

    Raises:
        UserError: read back, the file is another network.
    """
    title, depth = SOURCES[project].title, f"r{config.model.depth}"
    theirs = _values_of(TrainConfig()) | import_weights(content, project).values
    ours, lost = _values_of(config), []
    if config.block.kind == "none":
        ours = {key: value for key, value in ours.items() if not key.startswith("block.") or key == "block.kind"}
    for key, value in ours.items():
        if key in ("block.bias", "block.init"):  # how it began is no matter of weights
            continue
        found = theirs[key]
        if key == "block.places":
            value, found = sorted(value[depth]), sorted(found[depth])
        if key in ("data.mean", "data.std"):
            value, found = [round(v, 4) for v in value], [round(v, 4) for v in found]
        if value == found:
            continue
        if not key.startswith("data."):
            raise UserError(f"{title} has no {key}={shown(value)} in this network; it has {shown(found)}.")
        lost.append(f"{key}={shown(value)} ({shown(found)})")
    said = f"nlvideo does not find these in the file, and takes what is in brackets: {', '.join(lost)}"
    return [said] if lost else []


def _values_of(config: TrainConfig) -> dict[str, Any]:
    return function_values(to_container(config)) | {"data.multi_label": config.data.is_multi_label}


def _config_of_pyslowfast(trained: TrainedCheckpoint) -> dict[str, Any]:
    """Returns the keys of PySlowFast's config that make this network and its clips."""
    model, block, data = trained.config.model, trained.config.block, trained.config.data
    slow = f"slow_{model.layout}"
    sizes = DEPTHS[model.depth]
    places = block.places.get(f"r{model.depth}", []) if block.kind != "none" else []
    at = [[int(place.split(".")[1]) for place in places if place.startswith(f"{stage}.")] for stage in STAGES]
    instantiations = {ours: theirs for theirs, ours in INSTANTIATIONS.items()}
    return {
        "MODEL": {
            "ARCH": slow if model.stem == "all_frames" and slow in ARCHS_OF_ALL_FRAMES else model.layout,
            "MODEL_NAME": "ResNet",
            "NUM_CLASSES": len(trained.classes),
            # its tests apply HEAD_ACT, a softmax by default
            **({"HEAD_ACT": "sigmoid"} if data.is_multi_label else {}),
        },
        "RESNET": {
            "DEPTH": model.depth,
            "WIDTH_PER_GROUP": model.width,
            "NUM_BLOCK_TEMP_KERNEL": [[size] for size in sizes],
        },
        "NONLOCAL": {
            "LOCATION": [[numbers] for numbers in at],
            "GROUP": [[1]] * 4,
            "INSTANTIATION": instantiations.get(block.mode, "softmax"),
            "POOL": [[[1, 2, 2], [1, 2, 2]]] * 4,
        },
        "DATA": {
            "NUM_FRAMES": data.num_frames,
            "SAMPLING_RATE": data.frame_stride,
            "TRAIN_CROP_SIZE": data.crop_size,
            "TEST_CROP_SIZE": data.test.crop_size or data.test.short_side,
            "INPUT_CHANNEL_NUM": [3],
            "MEAN": list(data.mean),
            "STD": list(data.std),
            "MULTI_LABEL": data.is_multi_label,
        },
    }


def _config_of_mmaction2(trained: TrainedCheckpoint) -> str:
    """Returns the part of an mmaction2 config, Python, that makes this network and its clips."""
    config, data = trained.config, trained.config.data
    backbone = _backbone_of_mmaction2(config)
    frame_by_frame = backbone["type"] == "ResNet"  # the config of its own such models starts from its tsn_r50.py
    head: dict[str, Any] = {"type": "TSNHead" if frame_by_frame else "I3DHead", "spatial_type": "avg"}
    head |= {"num_classes": len(trained.classes), "in_channels": 32 * config.model.width}
    if frame_by_frame:
        head["consensus"] = {"type": "AvgConsensus", "dim": 1}
    if data.is_multi_label:
        head |= {"multi_class": True, "loss_cls": {"type": "BCELossWithLogits"}}
    processor: dict[str, Any] = {
        "type": "ActionDataPreprocessor",
        "format_shape": "NCHW" if frame_by_frame else "NCTHW",
        **{key: [255 * value for value in values] for key, values in (("mean", data.mean), ("std", data.std))},
    }
    model = {
        "type": "Recognizer2D" if frame_by_frame else "Recognizer3D",
        "backbone": backbone,
        "cls_head": head,
        "data_preprocessor": processor,
    }
    sample = {"type": "SampleFrames", "clip_len": data.num_frames, "frame_interval": data.frame_stride, "num_clips": 1}
    return f"model = {pprint.pformat(model)}\ntrain_pipeline = {pprint.pformat([sample])}\n"


def _backbone_of_mmaction2(config: TrainConfig) -> dict[str, Any]:
    model, block = config.model, config.block
    if model.layout == "c2d":
        kinds = {stem: kind for kind, stem in STEMS_2D.items()}
        return {"type": kinds.get(model.stem, "C2D"), "depth": model.depth, "norm_eval": False}
    layout, sizes = LAYOUTS[model.layout], DEPTHS[model.depth]
    strides = {stem: key for key, stem in STEMS_3D.items()}.get(model.stem, (2, 2, True))
    backbone: dict[str, Any] = {
        "type": "ResNet3d" if model.layout == "i3d" else "ResNet3dSlowOnly",
        "depth": model.depth,
        "pretrained": None,
        "base_channels": model.width,
        "conv1_kernel": (layout.conv1, 7, 7),
        "inflate": tuple(
            tuple(int(first > 1) for first, _ in layout.block_kernels(s, size)) for s, size in enumerate(sizes)
        ),
        "norm_eval": False,
    }
    if model.layout == "i3d":
        backbone |= dict(zip(("conv1_stride_t", "pool1_stride_t", "with_pool2"), strides, strict=True))
    if block.kind != "none":
        places = block.places[f"r{model.depth}"]
        at = [[int(f"{stage}.{i}" in places) for i in range(n)] for stage, n in zip(STAGES, sizes, strict=True)]
        backbone["non_local"] = tuple(map(tuple, at))
        norm = {"type": "BN3d", "requires_grad": True}
        scaled = block.scale if block.mode == "embedded_gaussian" else False
        options = {"mode": block.mode, "use_scale": scaled, "sub_sample": block.subsample, "norm_cfg": norm}
        backbone["non_local_cfg"] = options
    return backbone
