"""The loss of a micro-batch of clips. N clips, K classes, V training videos."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nlvideo.config.schema import OptimConfig, TrainConfig
from nlvideo.data.clips.epoch_order import expected_draws
from nlvideo.data.lists.list_warnings import class_counts
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.runtime.errors import UserError


@dataclass(frozen=True)
class ClipLoss:
    """Cross-entropy, or binary cross-entropy for multi-label data.

    The loss is a mean over clips whatever their weights, so the parts of a batch that ranks and micro-batches take
    add up to the loss of the batch.

    Attributes:
        label_smoothing: share of each target that is spread over all classes; multi-label targets move that far to 0.5.
        class_weights: (K,) float32 on the device of the logits, None for equal ones.
    """

    multi_label: bool
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean loss of logits (N, K) against targets: (N,) int64, or shares (N, K) of any dtype."""
        smoothing, weights = self.label_smoothing, self.class_weights
        if targets.ndim == 2:
            targets = targets.to(logits.dtype)
        weights = None if weights is None else weights.to(logits.dtype)
        if self.multi_label:
            return F.binary_cross_entropy_with_logits(logits, targets * (1 - smoothing) + smoothing / 2, weights)
        if weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        # reduction="mean" would divide by the weights of the targets, which differ from one part of a batch to another
        return F.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=smoothing) / len(logits)


def build_loss(config: TrainConfig, table: VideoTable, device: torch.device) -> ClipLoss:
    """Returns the loss of a run on these training videos."""
    optim, weights = config.optim, class_weights(table, config.optim, config.data.balance)
    return ClipLoss(table.multi_label, optim.label_smoothing, None if weights is None else weights.to(device))


def class_weights(table: VideoTable, optim: OptimConfig, balance: str) -> Tensor | None:
    """Returns the weights of the classes (K,) float32, None for equal ones.

    The mean over the clips that `balance` draws is 1, or, where a video may have several classes, over the classes:
    weights do not act as another learning rate.

    Raises:
        UserError: a class without videos.
    """
    if optim.class_weights == "none":
        return None
    counts = class_counts(table)
    empty = [name for name, count in zip(table.classes, counts, strict=True) if not count]
    if empty:
        raise UserError(
            f"optim.class_weights={optim.class_weights}: {len(empty)} of {len(counts)} classes have no training video "
            f"({', '.join(empty[:3])}{', ...' if len(empty) > 3 else ''}), so they have no weight."
        )
    if optim.class_weights == "inverse":
        weights = 1 / counts
    else:  # Cui et al. 2019, Eq. 2: each further video of a class adds less
        beta = optim.class_weights_beta
        weights = (1 - beta) / (1 - beta**counts) if beta else np.ones(len(counts))
    drawn = expected_draws(table, balance)
    mean = weights.mean() if table.multi_label else np.average(weights[table.targets], weights=drawn)
    return torch.from_numpy(weights / mean).float()
