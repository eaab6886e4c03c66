"""Other projects' weights under our names.

Each project is one row of SOURCES: how its keys are renamed, and what its files do not tell (strides, where keys are
pooled, whether logits are scaled), as overrides of nlvideo-train.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nlvideo.build.model import build_model
from nlvideo.config.compose import compose_train_config
from nlvideo.config.schema import TrainConfig
from nlvideo.models.resnet import VideoResNet
from nlvideo.runtime.errors import UserError
from nlvideo.weights.foreign_files import read_foreign
from nlvideo.weights.inflate import inflate_state_dict
from nlvideo.weights.trained_network import read_trained

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class Source(NamedTuple):
    """One project: how its keys are named, and the choices that its files do not tell."""

    rename: Callable[[str], str | None]  # our key, None where it is unknown
    stems: dict[str, str] = {}  # model.stem; a layout that is not named keeps its own
    pool: str = "before"  # block.pool
    scaled: tuple[str, ...] = ()  # layouts whose embedded-gaussian blocks scale their logits
    skipped: str = r"(?!)"  # keys that hold no weights
    sampling: str = "uniform"  # data.test.clip_sampling
    colours: tuple[float, float] | None = None  # mean and deviation of each colour; None: torchvision's

    def preset(self, trained: TrainConfig) -> list[str]:
        """Returns the overrides for a network like the one composed."""
        layout, block = trained.model.layout, trained.block
        found = [f"model.stem={self.stems[layout]}"] if layout in self.stems else []
        found.append(f"data.test.clip_sampling={self.sampling}")
        if self.colours is not None:
            mean, deviation = self.colours
            found += [f"data.mean={[mean] * 3}", f"data.std={[deviation] * 3}"]
        if block.kind == "non_local":
            found.append(f"block.pool={self.pool}")
            if block.mode == "embedded_gaussian" and layout in self.scaled:
                found.append("block.scale=true")
        return found


def _rename_pyslowfast(key: str) -> str | None:
    patterns = (
        (r"s1\.pathway0_stem\.conv\.(\w+)", r"conv1.\1"),
        (r"s1\.pathway0_stem\.bn\.(\w+)", r"bn1.\1"),
        (r"s(\d)\.pathway0_res(\d+)\.branch1\.(\w+)", r"layer<\1>.\2.downsample.0.\3"),
        (r"s(\d)\.pathway0_res(\d+)\.branch1_bn\.(\w+)", r"layer<\1>.\2.downsample.1.\3"),
        (r"s(\d)\.pathway0_res(\d+)\.branch2\.([abc])\.(\w+)", r"layer<\1>.\2.conv{\3}.\4"),
        (r"s(\d)\.pathway0_res(\d+)\.branch2\.([abc])_bn\.(\w+)", r"layer<\1>.\2.bn{\3}.\4"),
        (r"s(\d)\.pathway0_nonlocal(\d+)\.conv_(theta|phi|g|out)\.(\w+)", r"layer<\1>.\2_nl.\3.\4"),
        (r"s(\d)\.pathway0_nonlocal(\d+)\.bn\.(\w+)", r"layer<\1>.\2_nl.bn.\3"),
        (r"head\.projection\.(\w+)", r"fc.\1"),
    )
    return _substitute(patterns, key)


def _rename_mmaction2(key: str) -> str | None:
    patterns = (
        (r"backbone\.conv1\.conv\.(\w+)", r"conv1.\1"),
        (r"backbone\.conv1\.bn\.(\w+)", r"bn1.\1"),
        (r"backbone\.layer(\d)\.(\d+)\.conv(\d)\.conv\.(\w+)", r"layer\1.\2.conv\3.\4"),
        (r"backbone\.layer(\d)\.(\d+)\.conv(\d)\.bn\.(\w+)", r"layer\1.\2.bn\3.\4"),
        (r"backbone\.layer(\d)\.(\d+)\.downsample\.conv\.(\w+)", r"layer\1.\2.downsample.0.\3"),
        (r"backbone\.layer(\d)\.(\d+)\.downsample\.bn\.(\w+)", r"layer\1.\2.downsample.1.\3"),
        (r"backbone\.layer(\d)\.(\d+)\.non_local_block\.(theta|phi|g)(?:\.0)?\.conv\.(\w+)", r"layer\1.\2_nl.\3.\4"),
        (r"backbone\.layer(\d)\.(\d+)\.non_local_block\.concat_project\.conv\.(\w+)", r"layer\1.\2_nl.w_f.\3"),
        (r"backbone\.layer(\d)\.(\d+)\.non_local_block\.conv_out\.conv\.(\w+)", r"layer\1.\2_nl.out.\3"),
        (r"backbone\.layer(\d)\.(\d+)\.non_local_block\.conv_out\.bn\.(\w+)", r"layer\1.\2_nl.bn.\3"),
        (r"cls_head\.fc_cls\.(\w+)", r"fc.\1"),
    )
    return _substitute(patterns, key)


def _rename_caffe2(key: str) -> str | None:
    kinds = {"w": "weight", "b": "bias"}
    norms = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}  # riv is the variance itself
    if match := re.fullmatch(r"(?:conv1|pred)_([wb])", key):
        return ("conv1." if key.startswith("conv1") else "fc.") + kinds[match[1]]
    if match := re.fullmatch(r"res_conv1_bn_(s|b|rm|riv)", key):
        return f"bn1.{norms[match[1]]}"
    if match := re.fullmatch(r"res(\d)_(\d+)_branch(1|2[abc])(_bn)?_(w|s|b|rm|riv)", key):
        stage, block, branch, norm, kind = match.groups()
        where = f"layer{int(stage) - 1}.{block}."
        if branch == "1":
            where += "downsample.1." if norm else "downsample.0."
        else:
            where += f"{'bn' if norm else 'conv'}{'abc'.index(branch[1]) + 1}."
        return where + (norms if norm else kinds)[kind]
    if match := re.fullmatch(r"nonlocal_conv(\d)_(\d+)_(theta|phi|g|out|bn)_(w|s|b|rm|riv)", key):
        stage, block, part, kind = match.groups()
        return f"layer{int(stage) - 1}.{block}_nl.{part}.{(norms if part == 'bn' else kinds)[kind]}"
    return None


def _substitute(patterns: Sequence[tuple[str, str]], key: str) -> str | None:
    for pattern, ours in patterns:
        if match := re.fullmatch(pattern, key):
            name = match.expand(ours)
            name = re.sub(r"<(\d)>", lambda m: str(int(m[1]) - 1), name)  # s2..s5 are layer1..layer4
            return re.sub(r"\{([abc])\}", lambda m: str("abc".index(m[1]) + 1), name)
    return None


SOURCES = {
    # C2D and I3D 8x8, Slow; the block subsamples first and scales its logits (nonlocal_helper.py).
    "pyslowfast": Source(
        _rename_pyslowfast,
        {"c2d": "pyslowfast", "i3d": "pyslowfast", "slow": "all_frames"},
        scaled=("c2d", "i3d", "slow"),
        skipped=r".*\.pathway\d_fuse\..*",
        sampling="slowfast",
        colours=(0.45, 0.225),
    ),
    # I3D 32x2, Slow, C2D (its variant without temporal pooling wants model.stem=all_frames); the block subsamples
    # after its convolutions and scales its logits in the configs of Slow alone.
    "mmaction2": Source(
        _rename_mmaction2,
        {"c2d": "released_8x8", "i3d": "mmaction2", "slow": "all_frames"},
        pool="after",
        scaled=("slow",),
        skipped=r"data_preprocessor\..*",
        sampling="mmaction",
    ),
    # The paper's released models (resnet_video_org.py); 8x8 and 32x4 models want model.stem=released_8x8.
    "caffe2": Source(
        _rename_caffe2,
        {"c2d": "released_32x2", "i3d": "released_32x2"},
        scaled=("c2d", "i3d"),
        skipped=r".*_momentum|lr|model_iter|epoch|.*_bn_(sm|siv)",
        sampling="vnl",
        colours=(0.45, 0.225),  # 114.75 and 57.375 of 255
    ),
    # torchvision's and timm's 2D ResNets share our names; they are inflated. timm's files are .pth or .safetensors.
    "torchvision": Source(lambda key: key),
    "timm": Source(lambda key: key),
}


def load_model(path: str | Path, *, source: str = "nlvideo", config: Sequence[str] = ()) -> VideoResNet:
    """Returns a network in evaluation mode with the weights of a file, every one of them accounted for.

    Args:
        path: the checkpoint.
        source: the project that wrote it: "nlvideo", whose files need no config, or a key of SOURCES.
        config: what the weights cannot tell, as the overrides of nlvideo-train, such as ["model=i3d_r50_8x8",
            "block=nl5"]; they follow the source's preset and win over it.

    Raises:
        UserError: no such file; an unknown source; a file that is corrupt, holds objects other than numbers and
            containers, or does not fit the config. Names every kind of mismatch with its first keys.
    """
    if source == "nlvideo":
        if config:
            raise UserError("config: an nlvideo checkpoint brings its own; leave it out.")
        return read_trained(path).build_network().eval()
    network, _ = import_weights(path, source, config)
    return network


def import_weights(path: str | Path, source: str, config: Sequence[str]) -> tuple[VideoResNet, TrainConfig]:
    """Returns the network of load_model and its config, for one of SOURCES."""
    if source not in SOURCES:
        raise UserError(f"source={source!r} is unknown. Choose from: nlvideo, {', '.join(SOURCES)}.")
    rename, skipped = SOURCES[source].rename, SOURCES[source].skipped
    trained = compose_config(source, config)
    state, unknown = {}, []
    for key, value in read_foreign(path, source).items():
        ours = None if re.fullmatch(skipped, key) else rename(key)
        if ours is not None:
            state[ours] = value
        elif not re.fullmatch(skipped, key):
            unknown.append(key)
    if "fc.weight" not in state:
        raise UserError(f"{path} has no classifier under the name that {source} gives it: {_first(unknown)}.")
    state["fc.weight"] = state["fc.weight"].flatten(1)  # Caffe2's test network has a 1x1x1 convolution
    network = build_model(trained.model, trained.block, trained.data, len(state["fc.weight"]))
    _load(network, state, unknown, path, source)
    return network.eval(), trained


def compose_config(source: str, config: Sequence[str]) -> TrainConfig:
    """Returns the config of the source's preset under the overrides given."""
    groups = [item for item in config if "." not in item.split("=")[0]]
    keys = [item for item in config if item not in groups]
    fixed = ["model.pretrained=null", "data.root=none"]
    named = compose_train_config([*groups, *fixed, *keys])
    return compose_train_config([*groups, *fixed, *SOURCES[source].preset(named), *keys])


def _load(network: VideoResNet, state: dict[str, Tensor], unknown: list[str], path: Any, source: str) -> None:
    """Loads the renamed state strictly; keys that a project leaves out get their implied values."""
    target = network.state_dict()
    wrong = []
    for key, value in list(state.items()):
        if key in target and value.shape != target[key].shape:
            try:
                state |= inflate_state_dict({key: value}, target)
            except ValueError:
                wrong.append(f"{key} {tuple(value.shape)} instead of {tuple(target[key].shape)}")
    for key in target.keys() - state.keys():
        if key.endswith("num_batches_tracked"):
            state[key] = target[key]
        elif key.endswith("_nl.out.bias") and source == "mmaction2":  # mmcv leaves the bias out before a norm
            state[key] = torch.zeros_like(target[key])
    missing, surplus = sorted(target.keys() - state.keys()), sorted(state.keys() - target.keys())
    report = [
        f"{len(keys)} {what}: {_first(keys)}"
        for what, keys in (
            ("keys have another shape", wrong),
            ("keys of the network are not in the file", missing),
            ("keys of the file are not in the network", surplus),
            (f"keys are unknown for {source}", unknown),
        )
        if keys
    ]
    if report:
        raise UserError(f"{path} does not fit the network that the config describes:\n  " + "\n  ".join(report))
    network.load_state_dict(state)


def _first(keys: Sequence[str]) -> str:
    return ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
