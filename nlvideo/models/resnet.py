"""C2D and I3D ResNets for video, with torchvision's parameter names.

N batch, C channels, T frames, H height, W width. Configuration names the stages as the paper does (res2..res5), the
state dict as torchvision does (layer1..layer4).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nlvideo.models.batch_norm import VideoBatchNorm3d
from nlvideo.models.stem_conv import StemConv
from nlvideo.models.temporal_conv import TemporalConv
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.torch_private import BatchNorm

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # residual blocks in res2..res5
STAGES = ("res2", "res3", "res4", "res5")
PARTS = ("stem", *STAGES, "head")  # what can be frozen

BlockMaker = Callable[[int], nn.Module]  # from the number of channels to a context block


@dataclass(frozen=True)
class Layout:
    """The temporal kernel sizes of a network's convolutions.

    Attributes:
        conv1: temporal size of conv1.
        inflated: (first, step) for each stage: one convolution of residual blocks first, first + step, ... has temporal
            size 3. None: all of the stage's have size 1.
        inflate_3x3: the inflated convolution is the 3x3; otherwise it is the first 1x1.
    """

    conv1: int
    inflated: tuple[tuple[int, int] | None, ...]
    inflate_3x3: bool = False

    def block_kernels(self, stage: int, num_blocks: int) -> list[tuple[int, int]]:
        """Returns the temporal sizes of the first 1x1 and of the 3x3 for each residual block of a stage (0 is res2)."""
        first, step = self.inflated[stage] or (num_blocks, 1)
        sizes = [3 if i >= first and (i - first) % step == 0 else 1 for i in range(num_blocks)]
        return [(1, size) if self.inflate_3x3 else (size, 1) for size in sizes]


LAYOUTS = {
    # Table 1: no temporal convolutions.
    "c2d": Layout(conv1=1, inflated=(None, None, None, None)),
    # Sec. 4, "3x1x1", in the blocks that the authors' code inflates (resnet_video.py): all of res2, every other block
    # of res3 and res4 starting with the first, the second block of res5.
    "i3d": Layout(conv1=5, inflated=((0, 1), (0, 2), (0, 2), (1, 2))),
    # Sec. 4, "3x3x3". The paper does not list the blocks; the same ones reproduce Table 2e's 1.5x and 1.8x.
    "i3d_333": Layout(conv1=5, inflated=((0, 1), (0, 2), (0, 2), (1, 2)), inflate_3x3=True),
    # SlowFast's slow pathway alone, GCNet's Kinetics baseline: temporal convolutions in res4 and res5 only.
    "slow": Layout(conv1=1, inflated=(None, None, (0, 1), (0, 1))),
}


@dataclass(frozen=True)
class Pool:
    """A max-pool; kernel, stride and padding in T, H, W."""

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: tuple[int, int, int]


@dataclass(frozen=True)
class Stem:
    """How a clip is downsampled before res3: conv1's temporal stride, the pool after it, the pool after res2."""

    conv1_stride: int
    pool1: Pool
    pool2: Pool


STEMS = {
    # Table 1, for 32 and 128 frames; padded as torchvision pads, so that res2 is 56x56 as the table says.
    "paper": Stem(2, Pool((3, 3, 3), (2, 2, 2), (1, 1, 1)), Pool((3, 1, 1), (2, 1, 1), (1, 0, 0))),
    # The authors' code for 32x2 and 128x1 clips (resnet_video_org.py); without padding res2 is 55x55.
    "released_32x2": Stem(2, Pool((2, 3, 3), (2, 2, 2), (0, 0, 0)), Pool((2, 1, 1), (2, 1, 1), (0, 0, 0))),
    # The authors' code for 8x8 and 32x4 clips (resnet_video.py).
    "released_8x8": Stem(1, Pool((1, 3, 3), (1, 2, 2), (0, 0, 0)), Pool((2, 1, 1), (2, 1, 1), (0, 0, 0))),
    # PySlowFast's C2D and I3D: the latter, padded.
    "pyslowfast": Stem(1, Pool((1, 3, 3), (1, 2, 2), (0, 1, 1)), Pool((2, 1, 1), (2, 1, 1), (0, 0, 0))),
    # mmaction2's I3D for 32x2 clips (resnet3d.py): pool1 has temporal kernel 1 and stride 2.
    "mmaction2": Stem(2, Pool((1, 3, 3), (2, 2, 2), (0, 1, 1)), Pool((2, 1, 1), (2, 1, 1), (0, 0, 0))),
    # Slow, and C2D without temporal pooling: no temporal downsampling at all.
    "all_frames": Stem(1, Pool((1, 3, 3), (1, 2, 2), (0, 1, 1)), Pool((1, 1, 1), (1, 1, 1), (0, 0, 0))),
}


def temporal_size(stem: Stem, num_frames: int) -> int:
    """Returns T in res3..res5 for a clip of num_frames, 0 if the clip is too short for the stem."""
    t = (num_frames - 1) // stem.conv1_stride + 1
    for pool in (stem.pool1, stem.pool2):
        t = (t + 2 * pool.padding[0] - pool.kernel[0]) // pool.stride[0] + 1
    return max(t, 0)


class Bottleneck(nn.Module):
    """A residual block of 1x1, 3x3 and 1x1 convolutions; the 3x3 has the stride (authors' code, resnet_helper.py).

    Args:
        in_channels: C of the input.
        channels: of the first 1x1 and the 3x3; the output has `expansion` times as many.
        stride: spatial.
        kernels: temporal sizes of the first 1x1 and of the 3x3.
        context: block at the end of the residual branch, before the shortcut is added (GCNet's "after 1x1").
    """

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, stride: int, kernels: tuple[int, int], context: nn.Module | None = None
    ):
        super().__init__()
        out_channels = channels * self.expansion
        t1, t2 = kernels
        self.conv1 = TemporalConv(in_channels, channels, (t1, 1, 1), padding=(t1 // 2, 0, 0), bias=False)
        self.bn1 = VideoBatchNorm3d(channels)
        self.conv2 = TemporalConv(channels, channels, (t2, 3, 3), (1, stride, stride), (t2 // 2, 1, 1), bias=False)
        self.bn2 = VideoBatchNorm3d(channels)
        self.conv3 = nn.Conv3d(channels, out_channels, 1, bias=False)
        self.bn3 = VideoBatchNorm3d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.context = context
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, (1, stride, stride), bias=False),
                VideoBatchNorm3d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.context is not None:
            y = self.context(y)
        return self.relu(y + shortcut)


class VideoResNet(nn.Module):
    """A ResNet for clips (N, 3, T, H, W) with context blocks after chosen residual blocks.

    Args:
        layout: a key of LAYOUTS.
        depth: a key of DEPTHS.
        stem: a key of STEMS.
        num_classes: outputs of fc.
        width: channels of conv1 (64 in the paper); all other widths scale with it.
        dropout: probability before fc.
        frozen_bn: batch norm uses its running statistics and trains neither them nor its gain and bias (Sec. 5.1,
            128 frames; the authors' AffineNd).
        head_window: height and width of res5 for the training crop (7 for 224). position_logits averages over windows
            of this size.
        blocks: {residual block, such as "res4.1", counted from 0: function from the number of channels to its context
            block}.
        inside: put the context blocks at the end of the residual branch, before the shortcut is added, instead of after
            the residual block.
        activation_checkpointing: stages of STAGES that in training keep only the inputs of their blocks and recompute
            the rest in the backward pass.
        frozen: parts of PARTS, with their context blocks, that train() leaves in eval mode and without gradients.

    Raises:
        UserError: an unknown layout, depth or stem, or a block at a place that the network does not have.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        layout: str,
        depth: int,
        stem: str,
        num_classes: int,
        *,
        width: int = 64,
        dropout: float = 0.0,
        frozen_bn: bool = False,
        head_window: int = 7,
        blocks: Mapping[str, BlockMaker] | None = None,
        inside: bool = False,
        activation_checkpointing: Sequence[str] = (),
        frozen: Sequence[str] = (),
    ):
        super().__init__()
        blocks = blocks or {}
        _check_choices(layout, depth, stem, blocks)
        kernels, sampling = LAYOUTS[layout], STEMS[stem]
        self.num_classes, self.head_window, self.frozen_bn = num_classes, head_window, frozen_bn
        self.places, self.activation_checkpointing = tuple(blocks), tuple(activation_checkpointing)
        self.frozen = tuple(frozen)
        self.conv1 = StemConv(width, kernels.conv1, sampling.conv1_stride)
        self.bn1 = VideoBatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = _max_pool(sampling.pool1)
        in_channels = width
        for s, (stage, num_blocks) in enumerate(zip(STAGES, DEPTHS[depth], strict=True)):
            channels = width * 2**s
            layer = _build_stage(stage, in_channels, channels, kernels.block_kernels(s, num_blocks), blocks, inside)
            setattr(self, f"layer{s + 1}", layer)
            in_channels = channels * Bottleneck.expansion
        self.pool2 = _max_pool(sampling.pool2)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels, num_classes)
        self._init_weights()
        self.train(self.training)

    def _init_weights(self) -> None:
        """He et al. for convolutions, zero gain for the last norm of each residual branch, N(0, 0.01) for fc."""
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
                projection = [] if module.downsample is None else [module.downsample[0].weight]
                for weight in (module.conv1.weight, module.conv2.weight, module.conv3.weight, *projection):
                    assert isinstance(weight, Tensor)
                    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def train(self, mode: bool = True) -> "VideoResNet":
        super().train(mode)
        if self.frozen_bn:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm3d):
                    module.eval().requires_grad_(False)
        for part in self.frozen:
            for module in self.part(part):
                module.eval().requires_grad_(False)
        return self

    def part(self, name: str) -> list[nn.Module]:
        """Returns the modules of one of PARTS that have weights or depend on the mode."""
        if name == "stem":
            return [self.conv1, self.bn1]
        if name == "head":
            return [self.dropout, self.fc]
        return [self.get_submodule(f"layer{STAGES.index(name) + 1}")]

    def features(self, clips: Tensor, stage: str = "res5") -> Tensor:
        """Returns the output of a stage for normalised clips (N, 3, T, H, W).

        That of res5 is (N, 32 * width, T', H / 32, W / 32), that of res4 (N, 16 * width, T', H / 16, W / 16).

        Args:
            stage: res3, res4 or res5; later ones are not computed.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(clips))))
        x = self.pool2(self._run_stage("res2", self.layer1, x))
        for name, layer in zip(STAGES[1:], (self.layer2, self.layer3, self.layer4), strict=True):
            x = self._run_stage(name, layer, x)
            if name == stage:
                break
        return x

    def _run_stage(self, stage: str, layer: nn.Sequential, x: Tensor) -> Tensor:
        if (
            not (self.training and stage in self.activation_checkpointing)
            or stage in self.frozen
            and not x.requires_grad
        ):
            return layer(x)
        for block in layer:
            contexts = partial(_recompute_contexts, block)
            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        return x

    def forward(self, clips: Tensor) -> Tensor:
        """Returns logits (N, num_classes) of normalised clips (N, 3, T, H, W), from the average over all positions."""
        return self._classify(self.features(clips).mean((2, 3, 4)))

    def position_logits(self, clips: Tensor) -> Tensor:
        """Returns logits (N, positions, num_classes), fully convolutional in space (Sec. 4.1).

        Each position averages over all frames and a head_window x head_window window of res5. Clips of the training
        crop's size have one position, and its logits equal forward's.
        """
        x = self.features(clips)
        window = (x.shape[2], min(self.head_window, x.shape[3]), min(self.head_window, x.shape[4]))
        averages = F.avg_pool3d(x, window, stride=1).flatten(2).transpose(1, 2)  # (N, positions, C)
        return self._classify(averages)

    def _classify(self, x: Tensor) -> Tensor:
        """Returns logits (..., num_classes) of features (..., 32 * width), float32 even under autocast.

        16-bit logits have many ties, which top-k would break by class index.
        """
        if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
            return self.fc(self.dropout(x))
        with torch.autocast(x.device.type, enabled=False):
            return self.fc(self.dropout(x.to(self.fc.weight.dtype)))


def _check_choices(layout: str, depth: int, stem: str, blocks: Mapping[str, BlockMaker]) -> None:
    choices: tuple[tuple[str, object, Iterable], ...] = (
        ("layout", layout, LAYOUTS),
        ("depth", depth, DEPTHS),
        ("stem", stem, STEMS),
    )
    for name, value, allowed in choices:
        if value not in allowed:
            raise UserError(f"{name}={value!r} is unknown. Choose from: {', '.join(map(str, allowed))}.")
    sizes = dict(zip(STAGES, DEPTHS[depth], strict=True))
    known = {f"{stage}.{i}" for stage, size in sizes.items() for i in range(size)}
    for place in blocks:
        if place not in known:
            ranges = ", ".join(f"{stage}.0 to {stage}.{size - 1}" for stage, size in sizes.items())
            raise UserError(f"{place!r} is not a residual block of depth {depth}: {ranges}.")


def _build_stage(
    stage: str,
    in_channels: int,
    channels: int,
    kernels: Sequence[tuple[int, int]],
    blocks: Mapping[str, BlockMaker],
    inside: bool,
) -> nn.Sequential:
    """Returns a stage: a Bottleneck for each pair of temporal sizes, with the context blocks chosen for it.

    Blocks between the Bottlenecks have names of their own, "1_nl", so that the keys of "0", "1", ... are torchvision's.
    """
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for i, sizes in enumerate(kernels):
        make = blocks.get(f"{stage}.{i}")
        block = None if make is None else make(channels * Bottleneck.expansion)
        stride = 2 if i == 0 and stage != STAGES[0] else 1
        children[str(i)] = Bottleneck(in_channels, channels, stride, sizes, block if inside else None)
        if block is not None and not inside:
            children[f"{i}_nl"] = block
        in_channels = channels * Bottleneck.expansion
    return nn.Sequential(children)


def _max_pool(pool: Pool) -> nn.MaxPool3d:
    return nn.MaxPool3d(pool.kernel, pool.stride, pool.padding)


def _recompute_contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Returns the contexts of a checkpointed block's forward pass and of its recomputation."""
    return nullcontext(), _untracked(block)


@contextmanager
def _untracked(block: nn.Module) -> Iterator[None]:
    """Makes batch norms normalise by batch statistics, as in training, without updating their running statistics.

    The recomputation sees the same batch a second time, which must not count twice.
    """
    norms = [module for module in block.modules() if isinstance(module, BatchNorm) and module.training]
    momenta = [norm.momentum for norm in norms]
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    counts = [counter.clone() for counter in counters]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for counter, count in zip(counters, counts, strict=True):
            counter.copy_(count)


def context_names(network: VideoResNet) -> list[str]:
    """Returns the module names of the context blocks, in the order of network.places."""
    names = []
    for place in network.places:
        stage, i = place.split(".")
        block = f"layer{STAGES.index(stage) + 1}.{i}"
        names.append(f"{block}.context" if network.get_submodule(block).context is not None else f"{block}_nl")
    return names


@torch.no_grad()
def block_gains(network: VideoResNet) -> dict[str, float]:
    """Returns {place: gain}: the root mean square of each block's `last_weight`, which is zero in a new block.

    New blocks whose fusion is "add" are the identity at gain 0.
    """
    gains = {}
    for place, name in zip(network.places, context_names(network), strict=True):
        weight = network.get_submodule(name).last_weight
        assert isinstance(weight, Tensor), f"{name} has no last_weight"
        gains[place] = weight.square().mean().sqrt().item()
    return gains
