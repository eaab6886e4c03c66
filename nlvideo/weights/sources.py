"""Other projects: how their keys become ours, by what they are recognised, and what their files do not tell.

Each project is one row of SOURCES. What its files do not tell (strides, where keys are pooled, whether logits are
scaled, colours, sampling) is its preset: what the project's own published models have.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from nlvideo.weights.key_names import KeyNames

IMAGENET_COLOURS = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
GREY_COLOURS = ([0.45] * 3, [0.225] * 3)  # in Caffe2's files 114.75 and 57.375 of 255


class Source(NamedTuple):
    """One project: how its keys are named, and the choices that its files do not tell."""

    title: str
    rename: Callable[[str], str | None]  # our key, None where it is unknown
    names: KeyNames | None = None  # in both directions, where files for the project can be written
    clips: dict[str, tuple[int, int]] = {}  # frames and stride that each layout is published for
    stems: dict[str, str] = {}  # model.stem
    modes: dict[str, str] = {}  # block.mode of blocks with theta and phi, where only one is published
    pool: str = "before"  # block.pool
    scaled: tuple[str, ...] = ()  # layouts whose embedded-gaussian blocks scale their logits
    subsampled: str | None = None  # a key that only blocks which subsample have; None: all do
    skipped: str = r"(?!)"  # keys that hold no weights
    sampling: str = "uniform"  # data.test.clip_sampling
    colours: tuple[list[float], list[float]] = IMAGENET_COLOURS  # mean and deviation
    flat: bool = False  # a 2D network's weights, which have no layout of ours

    def preset(self, layout: str, mode: str | None) -> dict[str, Any]:
        """Returns {key: value} for a network of this layout, whose blocks have this mode; None: it has no blocks."""
        found: dict[str, Any] = {"data.mean": self.colours[0], "data.std": self.colours[1]}
        if self.flat:
            return found
        found |= {"model.stem": self.stems.get(layout, "paper"), "data.test.clip_sampling": self.sampling}
        if layout in self.clips:
            found["data.num_frames"], found["data.frame_stride"] = self.clips[layout]
        if mode is not None:
            found["block.pool"] = self.pool
            found["block.scale"] = mode == "embedded_gaussian" and layout in self.scaled
        return found


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """Returns the key in SOURCES of the project that wrote weights of these names; None: no project that is known."""
    if any(key.startswith("s1.pathway0_stem.") for key in state):
        return "pyslowfast"
    if "backbone.conv1.conv.weight" in state:
        return "mmaction2"
    if "conv1_w" in state:
        return "caffe2"
    stem = state.get("conv1.weight")
    if stem is None or "layer1.0.conv1.weight" not in state or any("_nl." in key for key in state):
        return None  # with _nl, the bare weights of a network of ours, which do not tell their stem
    if stem.ndim == 4:
        return "torchvision"
    return "pytorch_resnet3d" if stem.ndim == 5 and stem.shape[2] > 1 else None


PYSLOWFAST_NAMES = KeyNames(
    ("s1.pathway0_stem.conv.{kind}", "conv1.{kind}"),
    ("s1.pathway0_stem.bn.{kind}", "bn1.{kind}"),
    ("s{stage}.pathway0_res{block}.branch1.{kind}", "layer{stage}.{block}.downsample.0.{kind}"),
    ("s{stage}.pathway0_res{block}.branch1_bn.{kind}", "layer{stage}.{block}.downsample.1.{kind}"),
    ("s{stage}.pathway0_res{block}.branch2.{branch}.{kind}", "layer{stage}.{block}.conv{branch}.{kind}"),
    ("s{stage}.pathway0_res{block}.branch2.{branch}_bn.{kind}", "layer{stage}.{block}.bn{branch}.{kind}"),
    ("s{stage}.pathway0_nonlocal{block}.conv_{part}.{kind}", "layer{stage}.{block}_nl.{part}.{kind}"),
    ("s{stage}.pathway0_nonlocal{block}.bn.{kind}", "layer{stage}.{block}_nl.bn.{kind}"),
    ("head.projection.{kind}", "fc.{kind}"),
)
MMACTION2_NAMES = KeyNames(
    ("backbone.conv1.conv.{kind}", "conv1.{kind}"),
    ("backbone.conv1.bn.{kind}", "bn1.{kind}"),
    ("backbone.layer{layer}.{block}.conv{number}.conv.{kind}", "layer{layer}.{block}.conv{number}.{kind}"),
    ("backbone.layer{layer}.{block}.conv{number}.bn.{kind}", "layer{layer}.{block}.bn{number}.{kind}"),
    ("backbone.layer{layer}.{block}.downsample.conv.{kind}", "layer{layer}.{block}.downsample.0.{kind}"),
    ("backbone.layer{layer}.{block}.downsample.bn.{kind}", "layer{layer}.{block}.downsample.1.{kind}"),
    # in a block that subsamples
    ("backbone.layer{layer}.{block}.non_local_block.{pooled}.0.conv.{kind}", "layer{layer}.{block}_nl.{pooled}.{kind}"),
    ("backbone.layer{layer}.{block}.non_local_block.{inner}.conv.{kind}", "layer{layer}.{block}_nl.{inner}.{kind}"),
    ("backbone.layer{layer}.{block}.non_local_block.concat_project.conv.{kind}", "layer{layer}.{block}_nl.w_f.{kind}"),
    ("backbone.layer{layer}.{block}.non_local_block.conv_out.conv.{kind}", "layer{layer}.{block}_nl.out.{kind}"),
    ("backbone.layer{layer}.{block}.non_local_block.conv_out.bn.{kind}", "layer{layer}.{block}_nl.bn.{kind}"),
    ("cls_head.fc_cls.{kind}", "fc.{kind}"),
)
PYTORCH_RESNET3D_NAMES = KeyNames(
    ("conv1.{kind}", "conv1.{kind}"),
    ("bn1.{kind}", "bn1.{kind}"),
    ("layer{layer}.{block}.conv{number}.{kind}", "layer{layer}.{block}.conv{number}.{kind}"),
    ("layer{layer}.{block}.bn{number}.{kind}", "layer{layer}.{block}.bn{number}.{kind}"),
    ("layer{layer}.{block}.downsample.{number}.{kind}", "layer{layer}.{block}.downsample.{number}.{kind}"),
    ("layer{layer}.{block}.nl.{part}.{kind}", "layer{layer}.{block}_nl.{part}.{kind}"),
    ("layer{layer}.{block}.nl.bn.{kind}", "layer{layer}.{block}_nl.bn.{kind}"),
    ("fc.{kind}", "fc.{kind}"),
    # of its frozen norms
    ("bn1.scale", "bn1.weight"),
    ("layer{layer}.{block}.bn{number}.scale", "layer{layer}.{block}.bn{number}.weight"),
    ("layer{layer}.{block}.downsample.1.scale", "layer{layer}.{block}.downsample.1.weight"),
)


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


SOURCES = {
    # C2D and I3D 8x8, Slow; the block subsamples first and scales its logits (nonlocal_helper.py). Its published C2D
    # and I3D have softmax blocks, its Slow has dot products.
    "pyslowfast": Source(
        "PySlowFast",
        PYSLOWFAST_NAMES.ours,
        PYSLOWFAST_NAMES,
        clips=dict.fromkeys(("c2d", "i3d", "slow"), (8, 8)),
        stems={"c2d": "pyslowfast", "i3d": "pyslowfast", "slow": "all_frames"},
        modes={"c2d": "embedded_gaussian", "i3d": "embedded_gaussian", "slow": "dot_product"},
        scaled=("c2d", "i3d", "slow"),
        skipped=r".*\.pathway\d_fuse\..*",
        sampling="slowfast",
        colours=GREY_COLOURS,
    ),
    # I3D 32x2, Slow, C2D (its variant without temporal pooling is a 2D network); the block subsamples after its
    # convolutions and scales its logits in the configs of Slow alone. Every mode is published.
    "mmaction2": Source(
        "mmaction2",
        MMACTION2_NAMES.ours,
        MMACTION2_NAMES,
        clips={"c2d": (8, 8), "i3d": (32, 2), "slow": (8, 8)},
        stems={"c2d": "released_8x8", "i3d": "mmaction2", "slow": "all_frames"},
        pool="after",
        scaled=("slow",),
        subsampled=r".*\.non_local_block\.g\.0\..*",
        skipped=r"data_preprocessor\..*",
        sampling="mmaction",
    ),
    # The paper's released models (resnet_video_org.py); 8x8 and 32x4 models want model.stem=released_8x8.
    "caffe2": Source(
        "Caffe2",
        _rename_caffe2,
        clips=dict.fromkeys(("c2d", "i3d"), (32, 2)),
        stems={"c2d": "released_32x2", "i3d": "released_32x2"},
        modes={"c2d": "embedded_gaussian", "i3d": "embedded_gaussian"},
        scaled=("c2d", "i3d"),
        skipped=r".*_momentum|lr|model_iter|epoch|.*_bn_(sm|siv)",
        sampling="vnl",
        colours=GREY_COLOURS,
    ),
    # The widely used conversion of the paper's released I3D for 32x2 clips (Tushar-N/pytorch-resnet3d).
    "pytorch_resnet3d": Source(
        "pytorch-resnet3d",
        PYTORCH_RESNET3D_NAMES.ours,
        PYTORCH_RESNET3D_NAMES,
        clips={"i3d": (32, 2)},
        stems={"i3d": "released_32x2"},
        modes={"i3d": "embedded_gaussian"},
        scaled=("i3d",),
        sampling="vnl",
        colours=GREY_COLOURS,
    ),
    # torchvision's and timm's 2D ResNets share our names, and cannot be told apart; they are inflated.
    "torchvision": Source("torchvision or timm", lambda key: key, flat=True),
    "timm": Source("timm", lambda key: key, flat=True),
}
