"""What is taken of a network: the mean of a stage, every position of it, or the head's logits and scores.

N views, C channels, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nlvideo.models.resnet import VideoResNet


def outputs_of(network: VideoResNet, clips: Tensor, layer: str, positions: bool, multi_label: bool) -> list[Tensor]:
    """Returns what is written of normalised clips (N, 3, T, H, W), each (N, ...) and at least float32.

    Of a stage, its mean (N, C) over all frames and positions, or with `positions` its output (N, T', H', W', C). Of
    the head, logits (N, K) and scores (N, K). Where a crop is larger than in training, the head has several positions:
    scores are means of their softmax (sigmoid for multi-label data), as in evaluation, and logits means of theirs.

    Args:
        layer: res5, res4 or head.
    """
    if layer == "head":
        logits = _wide(network.position_logits(clips))  # (N, positions, K)
        return [logits.mean(1), (logits.sigmoid() if multi_label else F.softmax(logits, 2)).mean(1)]
    values = _wide(network.features(clips, layer))
    return [values.permute(0, 2, 3, 4, 1) if positions else values.mean((2, 3, 4))]


def output_names(layer: str) -> tuple[str, ...]:
    """Returns what each array's name ends in; the first one is what the file of a video holds."""
    return ("", ".scores") if layer == "head" else ("",)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
