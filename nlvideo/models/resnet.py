"""C2D and I3D ResNets for video, with torchvision's parameter names.

N batch, C channels, T frames, H height, W width. Stages are named as in the paper where they are chosen
(res2..res5) and as in torchvision where they are stored (layer1..layer4).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nlvideo.runtime.errors import UserError

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # residual blocks in res2..res5
STAGES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True)
class Layout:
    """Where a network looks along time: the temporal kernel sizes of its convolutions.

    `inflated` gives for each stage (first, step): in the residual blocks first, first + step, ... one kernel has 3
    planes in time, the first 1x1, or the 3x3 where `middle` says so; None for stages without.
    """

    conv1: int
    inflated: tuple[tuple[int, int] | None, ...]
    middle: bool = False


LAYOUTS = {
    # Table 1: convolutions never look along time.
    "c2d": Layout(conv1=1, inflated=(None, None, None, None)),
    # Sec. 4, "3x1x1", with the blocks that the authors' code inflates (resnet_video.py): all of res2, every
    # second of res3 and res4 from the first on, the second of res5.
    "i3d": Layout(conv1=5, inflated=((0, 1), (0, 2), (0, 2), (1, 2))),
    # Sec. 4, "3x3x3", in the same blocks, since the paper gives no others (Table 2e's 1.5x and 1.8x come out).
    "i3d_333": Layout(conv1=5, inflated=((0, 1), (0, 2), (0, 2), (1, 2)), middle=True),
    # SlowFast's slow pathway alone, GCNet's Kinetics baseline: time is looked along in res4 and res5 only.
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
    """How a clip is thinned out before res3: conv1's temporal stride, the pool after it, the pool after res2."""

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
    # mmaction2's I3D for 32x2 clips (resnet3d.py): pool1 looks at one frame but takes every second.
    "mmaction2": Stem(2, Pool((1, 3, 3), (2, 2, 2), (0, 1, 1)), Pool((2, 1, 1), (2, 1, 1), (0, 0, 0))),
    # Slow, and C2D without temporal pooling: every frame is kept to the end.
    "all_frames": Stem(1, Pool((1, 3, 3), (1, 2, 2), (0, 1, 1)), Pool((1, 1, 1), (1, 1, 1), (0, 0, 0))),
}


def temporal_size(stem: Stem, num_frames: int) -> int:
    """Returns T in res3..res5 for a clip of num_frames, 0 if the clip is too short for the stem."""
    t = (num_frames - 1) // stem.conv1_stride + 1
    for pool in (stem.pool1, stem.pool2):
        t = (t + 2 * pool.padding[0] - pool.kernel[0]) // pool.stride[0] + 1
    return max(t, 0)


class TemporalConv(nn.Conv3d):
    """A convolution over time that also has right gradients where the clip is shorter than its kernel.

    On CPUs oneDNN leaves the bfloat16 weight gradient uninitialised when 1 < T < kernel (seen with torch 2.15), unless
    the zeros are put around the clip first.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] >= self.kernel_size[0]:
            return super().forward(x)
        t, h, w = self.padding
        return F.conv3d(F.pad(x, (0, 0, 0, 0, t, t)), self.weight, self.bias, self.stride, (0, h, w))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; the spatial stride is on the 3x3 (authors' code, resnet_helper.py).

    Args:
        kernels: temporal sizes of the first 1x1 and of the 3x3.
        context: a block over the residual branch, before the shortcut is added (GCNet's "after 1x1").
    """

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, stride: int, kernels: tuple[int, int], context: nn.Module | None = None
    ):
        super().__init__()
        out_channels = channels * self.expansion
        t1, t2 = kernels
        self.conv1 = TemporalConv(in_channels, channels, (t1, 1, 1), padding=(t1 // 2, 0, 0), bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = TemporalConv(channels, channels, (t2, 3, 3), (1, stride, stride), (t2 // 2, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.conv3 = nn.Conv3d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.context = context
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, (1, stride, stride), bias=False), nn.BatchNorm3d(out_channels)
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
    """A ResNet over clips (N, 3, T, H, W), with context blocks after chosen residual blocks.

    Args:
        layout: a key of LAYOUTS.
        depth: a key of DEPTHS.
        stem: a key of STEMS.
        num_classes: outputs of fc.
        width: channels of conv1 (64 in the paper); every other width follows.
        dropout: probability before fc, in training.
        frozen_bn: batch norm uses its running statistics and learns nothing: neither statistics nor gain and
            bias (Sec. 5.1, 128 frames; the authors' AffineNd).
        head_window: height and width in res5 that one prediction averages over: the size of the map that the
            training crop gives (7 for 224). Used by position_logits.
        blocks: {residual block as "res4.1", counted from 0: what makes its context block from the number of channels}.
        inside: the context blocks stand in the residual branch, before the shortcut is added, not behind it.
        activation_checkpointing: stages of STAGES that keep only what goes into each of their blocks in training;
            the rest is computed again for the backward pass.

    Raises:
        UserError: a choice or a place that the network does not have.
    """

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
        blocks: Mapping[str, Callable[[int], nn.Module]] | None = None,
        inside: bool = False,
        activation_checkpointing: Sequence[str] = (),
    ):
        super().__init__()
        for name, value, allowed in (("layout", layout, LAYOUTS), ("depth", depth, DEPTHS), ("stem", stem, STEMS)):
            if value not in allowed:
                raise UserError(f"{name}={value!r} is unknown. Choose from: {', '.join(map(str, allowed))}.")
        rows, thinning = LAYOUTS[layout], STEMS[stem]
        all_places = [f"{stage}.{i}" for stage, n in zip(STAGES, DEPTHS[depth], strict=True) for i in range(n)]
        blocks = blocks or {}
        for place in blocks:
            if place not in all_places:
                raise UserError(f"{place!r} is not a residual block of depth {depth}: {_ranges(depth)}.")

        self.num_classes, self.head_window, self.frozen_bn = num_classes, head_window, frozen_bn
        self.places, self.activation_checkpointing = tuple(blocks), tuple(activation_checkpointing)
        self.conv1 = TemporalConv(
            3, width, (rows.conv1, 7, 7), (thinning.conv1_stride, 2, 2), (rows.conv1 // 2, 3, 3), bias=False
        )
        self.bn1 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = _max_pool(thinning.pool1)
        channels_in = width
        for s, (stage, num_blocks) in enumerate(zip(STAGES, DEPTHS[depth], strict=True)):
            first, step = rows.inflated[s] or (num_blocks, 1)
            channels_out = width * 2**s * Bottleneck.expansion
            children = OrderedDict()
            for i in range(num_blocks):
                kernel = 3 if i >= first and (i - first) % step == 0 else 1
                kernels = (1, kernel) if rows.middle else (kernel, 1)
                stride = 2 if i == 0 and s > 0 else 1
                block = blocks[f"{stage}.{i}"](channels_out) if f"{stage}.{i}" in blocks else None
                children[str(i)] = Bottleneck(channels_in, width * 2**s, stride, kernels, block if inside else None)
                if block is not None and not inside:
                    children[f"{i}_nl"] = block
                channels_in = channels_out
            setattr(self, f"layer{s + 1}", nn.Sequential(children))
        self.pool2 = _max_pool(thinning.pool2)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels_in, num_classes)
        self._init_weights()
        self.train(self.training)

    def _init_weights(self) -> None:
        """He et al. for the residual convolutions, zero gain for the last norm of each branch, N(0, 0.01) for fc."""
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
                for conv in (module.conv1, module.conv2, module.conv3, module.downsample and module.downsample[0]):
                    if conv is not None:
                        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def train(self, mode: bool = True) -> "VideoResNet":
        super().train(mode)
        if self.frozen_bn:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm3d):
                    module.eval().requires_grad_(False)
        return self

    def features(self, clips: Tensor) -> Tensor:
        """Returns res5's output (N, 32 * width, T', H / 32, W / 32) for normalised clips (N, 3, T, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(clips))))
        x = self.pool2(self._stage("res2", self.layer1, x))
        for stage, layer in zip(STAGES[1:], (self.layer2, self.layer3, self.layer4), strict=True):
            x = self._stage(stage, layer, x)
        return x

    def _stage(self, stage: str, layer: nn.Sequential, x: Tensor) -> Tensor:
        if not (self.training and stage in self.activation_checkpointing):
            return layer(x)
        for block in layer:
            contexts = partial(_again_without_statistics, block)
            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        return x

    def forward(self, clips: Tensor) -> Tensor:
        """Returns logits (N, num_classes): one prediction from the average over all positions."""
        return self._classify(self.features(clips).mean((2, 3, 4)))

    def position_logits(self, clips: Tensor) -> Tensor:
        """Returns logits (N, positions, num_classes), fully convolutional in space (Sec. 4.1).

        Each position averages over all frames and head_window x head_window of res5, so that for clips of the
        training crop's size there is one position and it equals forward.
        """
        x = self.features(clips)
        window = (x.shape[2], min(self.head_window, x.shape[3]), min(self.head_window, x.shape[4]))
        return self._classify(F.avg_pool3d(x, window, stride=1).flatten(2).transpose(1, 2))  # of (N, positions, C)

    def _classify(self, x: Tensor) -> Tensor:
        """Returns logits (..., num_classes) of features (..., 32 * width), of 32 bits also under autocast: among 16-bit
        logits many are equal, and their order would be that of the classes."""
        if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
            return self.fc(self.dropout(x))
        with torch.autocast(x.device.type, enabled=False):
            return self.fc(self.dropout(x.to(self.fc.weight.dtype)))


def _again_without_statistics(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Returns the contexts of a block's forward pass and of its repetition, which must not count as a second batch."""
    return nullcontext(), _untracked(block)


@contextmanager
def _untracked(block: nn.Module) -> Iterator[None]:
    """Lets the batch norms use the statistics of their batch, as in training, without remembering them."""
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


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
    """Returns {place: root mean square of the weights that a new block has at zero}: how much each block says."""
    blocks = [network.get_submodule(name) for name in context_names(network)]
    gains = [block.last_weight.square().mean().sqrt().item() for block in blocks]
    return dict(zip(network.places, gains, strict=True))


def _max_pool(pool: Pool) -> nn.MaxPool3d:
    return nn.MaxPool3d(pool.kernel, pool.stride, pool.padding)


def _ranges(depth: int) -> str:
    return ", ".join(f"{stage}.0 to {stage}.{n - 1}" for stage, n in zip(STAGES, DEPTHS[depth], strict=True))
