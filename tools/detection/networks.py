"""torchvision's Mask R-CNN and Keypoint R-CNN with context blocks at the papers' places, and draws that repeat."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from nlvideo.models.global_context import GlobalContextBlock, SimplifiedNonLocalBlock
from nlvideo.models.insert import CHILD, insert_blocks
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.runtime.errors import UserError
from nlvideo.weights.checkpoint_file import check_content, is_ours
from nlvideo.weights.foreign_files import read_weights_file, weights_in

TASKS = {"masks": MaskRCNN, "keypoints": KeypointRCNN, "boxes": FasterRCNN}
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "thin")
BLOCKS = ("none", "nl1", "snl", "gc1", "gc_all", "head4")
THIN_LAYERS, THIN_CHANNELS = [1, 1, 2, 1], 32  # residual blocks of each stage; channels of the pyramid and the heads
FROZEN = ("conv1", "bn1", "layer1")  # of a pretrained backbone, as Detectron's FREEZE_AT: 2
PREDICTORS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.", "roi_heads.keypoint_predictor.")
BODY, RESNET_KEY = "backbone.body.", "layer1.0.conv1.weight"


class NetworkSettings(NamedTuple):
    """What a detector is."""

    task: str = "masks"
    backbone: str = "resnet50"
    block: Sequence[str] = ("none",)  # of BLOCKS; several at different places may be combined
    ratio: int = 16  # of the global context blocks
    train_bn: bool = False  # train batch norm instead of freezing it
    min_size: Sequence[int] = (800,)  # of the short side: one of these is drawn in training, the last is for evaluation
    max_size: int = 1333  # of the long side, pixels too
    num_classes: int = 80  # without the background
    num_keypoints: int = 17


class ThinBottleneck(Bottleneck):
    expansion = 1  # its output has as many channels as its stage has planes, not four times as many


def build_detector(settings: NetworkSettings) -> FasterRCNN:
    """Returns the network with new weights, its blocks the identity; raises UserError for a block without a place."""
    norm = nn.BatchNorm2d if settings.train_bn else FrozenBatchNorm2d
    thin, task, classes = settings.backbone == "thin", settings.task, settings.num_classes + 1
    if thin:
        body = ResNet(ThinBottleneck, THIN_LAYERS, width_per_group=16, norm_layer=norm)
    else:
        body = torchvision.models.get_model(settings.backbone, weights=None, norm_layer=norm)
    # Each stage has twice as many channels as the one before; inplanes are the last one's.
    channels, size = [body.inplanes // 8 * 2**i for i in range(4)], THIN_CHANNELS if thin else 256
    backbone = BackboneWithFPN(body, {f"layer{i + 1}": str(i) for i in range(4)}, channels, size)
    options = {"num_classes": classes} | ({"num_keypoints": settings.num_keypoints} if task == "keypoints" else {})
    if thin:
        tops = {f"rpn_{when}_nms_top_n_{split}": 200 for when in ("pre", "post") for split in ("train", "test")}
        options = tops | {"box_batch_size_per_image": 32, "box_head": TwoMLPHead(size * 7**2, 4 * size)}
        options["box_predictor"] = FastRCNNPredictor(4 * size, classes)
        if task == "masks":
            options["mask_head"] = MaskRCNNHeads(size, (size,) * 4, 1)
            options["mask_predictor"] = MaskRCNNPredictor(size, size, classes)
        elif task == "keypoints":
            options["keypoint_head"] = KeypointRCNNHeads(size, (size,) * 8)
            options["keypoint_predictor"] = KeypointRCNNPredictor(size, settings.num_keypoints)
    network = TASKS[task](backbone, min_size=tuple(settings.min_size), max_size=settings.max_size, **options)
    return insert_blocks(network, new_blocks(network, settings))


def new_blocks(network: FasterRCNN, settings: NetworkSettings) -> dict[str, nn.Module]:
    """Returns {name of a submodule: the block that takes its output}.

    nl1, snl and gc1 stand before the last residual block of res4 (Non-local, Sec. 6; GCNet). gc_all is in every
    bottleneck of res3 to res5, after the last norm and before the sum (GCNet's "after1x1"). head4 follows every second
    convolution of the keypoint head (Non-local, Table 6). What the network has no place for raises UserError.
    """
    body, backbone = network.backbone.body, settings.backbone
    places: dict[str, tuple[str, int]] = {}
    for kind in settings.block:
        found: dict[str, int] = {}  # {place: channels}
        if kind in ("nl1", "snl", "gc1"):
            if len(body.layer3) < 2:
                raise UserError(f"--block {kind}: res4 of {backbone} has no residual block before its last one.")
            found[f"{BODY}layer3.{len(body.layer3) - 2}"] = body.layer3[-1].conv1.in_channels
        elif kind == "gc_all":
            if not isinstance(body.layer3[0], Bottleneck):
                raise UserError(f"--block gc_all: {backbone} has no bottlenecks; resnet50 and deeper ones have.")
            for stage in ("layer2", "layer3", "layer4"):
                for i, bottleneck in enumerate(getattr(body, stage)):
                    found[f"{BODY}{stage}.{i}.bn3"] = bottleneck.conv3.out_channels
        elif kind == "head4":
            if settings.task != "keypoints":
                raise UserError(f"--block head4: --task {settings.task} has no keypoint head.")
            head = network.roi_heads.keypoint_head  # convolutions and their ReLUs alternate
            found = {f"roi_heads.keypoint_head.{i}": head[0].out_channels for i in range(3, len(head), 4)}
        if found.keys() & places.keys():
            raise UserError(f"--block {' '.join(settings.block)}: two of them have the same place; give one.")
        places |= {place: (kind, channels) for place, channels in found.items()}
    return {place: _new_block(kind, channels, settings) for place, (kind, channels) in places.items()}


def _new_block(kind: str, channels: int, settings: NetworkSettings) -> nn.Module:
    if kind in ("nl1", "head4"):  # the heads have no norms
        return NonLocalBlock(channels, norm=settings.train_bn and kind == "nl1")
    return SimplifiedNonLocalBlock(channels) if kind == "snl" else GlobalContextBlock(channels, ratio=settings.ratio)


def context_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """Returns {name of the submodule whose output it takes: block}."""
    return {name[: -len(CHILD) - 1]: block for name, block in network.named_modules() if name.endswith(f".{CHILD}")}


class SeededSampler:
    """Torchvision's sampler of the anchors or proposals that count in the loss, seeded for each image."""

    def __init__(self, sampler: Callable[[list[Tensor]], tuple[list[Tensor], list[Tensor]]]):
        self.sampler, self.seeds = sampler, list[int]()  # of the images of the next call

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        drawn: tuple[list[Tensor], list[Tensor]] = ([], [])
        for label, seed in zip(labels, self.seeds, strict=True):
            torch.manual_seed(seed)
            for masks, mask in zip(drawn, self.sampler([label]), strict=True):
                masks += mask
        return drawn


def _in_float32(_module: nn.Module, _inputs: tuple, output: tuple) -> tuple:
    return tuple([x.float() for x in part] if isinstance(part, list) else part.float() for part in output)


def prepare(network: FasterRCNN, *, frozen_start: bool) -> None:
    """Makes the draws of training repeatable, keeps boxes in float32, and freezes the first layers if wanted."""
    for part, head in ((network.rpn, network.rpn.head), (network.roi_heads, network.roi_heads.box_predictor)):
        part.fg_bg_sampler = SeededSampler(part.fg_bg_sampler)
        head.register_forward_hook(_in_float32)  # torchvision would round boxes and truth to what autocast returns
    for name in FROZEN if frozen_start else ():
        network.backbone.body[name].requires_grad_(False)


def set_training(network: FasterRCNN) -> None:
    """Switches to training; batch norms of a frozen start keep their statistics."""
    network.train()
    for name in FROZEN if not network.backbone.body.conv1.weight.requires_grad else ():
        network.backbone.body[name].eval()


def load_weights(network: FasterRCNN, path: Path, new_head: bool) -> str:
    """Loads an ImageNet ResNet into the backbone, or a detector into everything; returns what it was and what is new.

    The file is torchvision's or timm's, or a checkpoint of this program; those of other networks raise UserError. With
    new_head, the layers whose size depends on the classes or keypoints are left out.
    """
    content = read_weights_file(path)
    if is_ours(content):
        check_content(content, path)
    state = content["model"] if is_ours(content) else weights_in(content)
    kind, heads = "detector", PREDICTORS if new_head else ()
    if RESNET_KEY in state:
        kind, heads = "backbone", ("backbone.fpn.", "rpn.", "roi_heads.")
        state = {f"{BODY}{key}": value for key, value in state.items() if not key.startswith("fc.")}
    elif f"{BODY}{RESNET_KEY}" not in state:  # Caffe2's and Detectron's have other strides and colours
        raise UserError(f"--weights {path} is neither a ResNet of torchvision or timm nor a detector with such a one.")
    state = {key: value for key, value in state.items() if not key.startswith(tuple(heads))}
    new = [name for name in context_blocks(network) if not any(key.startswith(f"{name}.{CHILD}.") for key in state)]
    free = (*(f"{name}.{CHILD}." for name in new), *heads)
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        unexpected, missing = [str(error).splitlines()[1].strip()], []
    wrong = [*unexpected, *(key for key in missing if not key.startswith(free))]
    wrong = [key for key in wrong if not key.endswith("num_batches_tracked")]  # which frozen norms do not have
    if wrong:
        last = any(part in key for part in PREDICTORS for key in wrong)
        advice = "; --new-head takes everything but the last layers" if last else ""
        raise UserError(f"--weights {path} is of another network or head ({len(wrong)}: {wrong[0]}){advice}.")
    return f"{kind} {path}; new blocks: {', '.join(new) or 'none'}"


def seed_draws(network: FasterRCNN, seeds: Sequence[int]) -> None:
    """Seeds what the next pass draws: proposals for each image, and sizes that they are resized to."""
    torch.manual_seed(seeds[0])
    network.rpn.fg_bg_sampler.seeds = network.roi_heads.fg_bg_sampler.seeds = list(seeds)
