"""The exponential moving average of a network's weights."""

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from nlvideo.models.resnet import VideoResNet


def average_weights(network: VideoResNet, decay: float) -> AveragedModel:
    """Returns the average, to be updated after each step; it starts as the weights after the first one.

    Running statistics are averaged too; counters are those of the network.
    """

    def blend(averaged: Tensor, current: Tensor, _steps: Tensor | int) -> Tensor:
        return torch.lerp(averaged, current, 1 - decay) if averaged.is_floating_point() else current

    return AveragedModel(network, avg_fn=blend, use_buffers=True)


def resume_average(averaged: AveragedModel, state: dict[str, Tensor], steps: int) -> None:
    """Makes the average what it was after so many steps."""
    averaged.module.load_state_dict(state)
    averaged.n_averaged.fill_(steps)
