"""Other projects' weights: their files read without running code, their names turned into ours.

Each project is one row of SOURCES: how its keys are renamed, and what its files cannot tell (strides, where keys are
pooled, whether logits are scaled) as the overrides that nlvideo-train takes.
"""

import io
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor

from nlvideo.build.model import build_model
from nlvideo.config.compose import from_container, store_schemas, to_dataclass
from nlvideo.config.schema import TrainConfig
from nlvideo.models.resnet import VideoResNet
from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.weights.checkpoint_file import KEYS, evaluation_weights, load_checkpoint
from nlvideo.weights.inflate import inflate_state_dict

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class Source(NamedTuple):
    """One project: how its keys are named, and the choices that its files do not tell, for each layout."""

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
        UserError: no such file.
        UserError: an unknown source; a file that is damaged, holds objects other than numbers and containers, or is
            of another network than the config says. Names every kind of mismatch with its first keys.
    """
    if source == "nlvideo":
        if config:
            raise UserError("config: an nlvideo checkpoint brings its own; leave it out.")
        checkpoint = load_checkpoint(path)
        trained = from_container(TrainConfig, checkpoint["config"])
        network = build_model(trained.model, trained.block, trained.data, len(checkpoint["classes"]))
        network.load_state_dict(evaluation_weights(checkpoint))
        return network.eval()
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
    """Returns the composed config of the source's preset and the overrides given."""
    store_schemas()
    fixed = ["model.pretrained=null", "data.root=none"]
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    with initialize_config_module("nlvideo.configs", version_base="1.3"):
        groups = [item for item in config if "." not in item.split("=")[0]]
        keys = [item for item in config if item not in groups]
        named = to_dataclass(compose("train", [*groups, *fixed, *keys]))
        return to_dataclass(compose("train", [*groups, *fixed, *SOURCES[source].preset(named), *keys]))


def _load(network: VideoResNet, state: dict[str, Tensor], unknown: list[str], path: Any, source: str) -> None:
    """Loads the renamed state strictly; what other projects do not have is filled with what it stands for."""
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


def read_foreign(path: str | Path, source: str) -> dict[str, Tensor]:
    """Returns the weights in another project's file by that project's names.

    Raises:
        UserError: no such file, or none that can be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserFileNotFoundError(f"The file {path} does not exist.")
    try:
        content = _read_caffe2(path) if source == "caffe2" else _read_torch(path)
        if source == "pyslowfast" and isinstance(content, Mapping):
            content = content.get("model_state", content)
        for name in ("state_dict", "blobs"):
            if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
                content = content[name]
        state = {key.removeprefix("module."): torch.as_tensor(value) for key, value in _arrays(content).items()}
    except Exception as error:  # a damaged file fails in as many ways as pickle and zip have
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
        raise UserError(f"{path} is no {source} checkpoint that can be read ({reason}).") from error
    if not state:
        raise UserError(f"{path} holds no weights.")
    if set(KEYS) <= state.keys():
        raise UserError(f"{path} is an nlvideo checkpoint; load it with source='nlvideo'.")
    return state


def _arrays(content: Any) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise UserError(f"it holds {type(content).__name__}, not named weights")
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor | np.ndarray) and not isinstance(v, str)}


def _read_torch(path: Path) -> Any:
    """Returns what torch.save or safetensors wrote. Classes unknown to torch become inert stubs instead of running."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path):
            raise
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_InertPickle)


class _Inert:
    """Stands for an object of an unknown class: takes anything, does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass

    def __setitem__(self, key, value):
        pass


class _InertUnpickler(pickle.Unpickler):
    """Finds what tensors and plain containers are made of, and a stub in place of everything else.

    Nothing from the file runs; what only an attack asks for is refused with its name all the same.
    """

    REFUSED = {
        *("os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "runpy", "importlib", "ctypes", "pty", "code"),
        *(("builtins", name) for name in ("eval", "exec", "compile", "open", "__import__")),
    }

    ALLOWED = {
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch", "Size"),
        *(("torch", f"{kind}Storage") for kind in "Float Double Half BFloat16 Long Int Bool Byte".split()),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        if module.split(".")[0] in self.REFUSED or (module, name) in self.REFUSED:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}, which no file of weights needs")
        return type(name, (_Inert,), {})


class _InertPickle:
    """What torch.load wants of a pickle module."""

    Unpickler = _InertUnpickler
    load = staticmethod(lambda file, **options: _InertUnpickler(file, **options).load())
    UnpicklingError = pickle.UnpicklingError
    __name__ = "pickle"


class _ArrayUnpickler(pickle.Unpickler):
    """Admits NumPy arrays and plain containers, and nothing that could run code."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a file of weights")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read_caffe2(path: Path) -> Any:
    return _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
