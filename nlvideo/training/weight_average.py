"""The exponential moving average of a network's weights."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nlvideo.models.resnet import VideoResNet


class WeightAverage(AveragedModel):
    """PyTorch's average of weights and running statistics; counters are those of the network.

    It starts as the weights after the first step, and is updated without waiting for the device: PyTorch's own way
    copies its counter there for every parameter.
    """

    def __init__(self, network: VideoResNet, decay: float):
        super().__init__(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        averaged, current = ([*network.parameters(), *network.buffers()] for network in (self.module, model))
        pairs = list(zip(averaged, current, strict=True))
        first = int(self.n_averaged) == 0  # a tensor on the CPU
        for own, new in pairs:
            if first or not own.is_floating_point():
                own.copy_(new)
        if not first:
            blended = [(own, new) for own, new in pairs if own.is_floating_point()]
            self.multi_avg_fn([own for own, _ in blended], [new for _, new in blended], self.n_averaged)
        self.n_averaged += 1


def resume_average(averaged: WeightAverage, state: dict[str, Tensor], steps: int) -> None:
    """Makes the average what it was after so many steps."""
    averaged.module.load_state_dict(state)
    averaged.n_averaged.fill_(steps)
