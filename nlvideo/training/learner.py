"""The network with everything that one training step needs, on this rank's device."""

from dataclasses import dataclass

import torch
from torch import nn

from nlvideo.config.schema import TrainConfig
from nlvideo.data.clips.batch import Colours, Normalizer
from nlvideo.models.resnet import VideoResNet
from nlvideo.runtime.distributed import World
from nlvideo.runtime.gradients import share_gradients
from nlvideo.runtime.precision import autocast, input_dtype
from nlvideo.training.optim import param_groups
from nlvideo.training.step_timer import StepTimer


@dataclass(kw_only=True)
class Learner:
    """The network with its optimizer.

    Attributes:
        network: on the device, in channels_last_3d.
        model: the network, wrapped where several ranks share the gradients.
        scaler: of the loss, for float16; disabled otherwise.
        dtype: that the network computes in.
        normalize: turns uint8 clips into what the network takes.
        multi_label: a clip may show several classes or none.
    """

    config: TrainConfig
    world: World
    network: VideoResNet
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    timer: StepTimer
    dtype: torch.dtype
    normalize: Normalizer
    multi_label: bool

    def autocast(self) -> torch.autocast:
        return autocast(self.world.device, self.dtype)


def build_learner(config: TrainConfig, network: VideoResNet, world: World, dtype: torch.dtype) -> Learner:
    """Moves a network to this rank's device and joins it with a new optimizer."""
    network = network.to(world.device, input_dtype(dtype), memory_format=torch.channels_last_3d)
    if config.sync_bn:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    optim, timer = config.optim, StepTimer(world.device)
    colours = Colours(config.data.mean, config.data.std)
    optimizer = torch.optim.SGD(
        param_groups(network, optim.weight_decay), optim.lr, optim.momentum, nesterov=optim.nesterov
    )
    scaler = torch.amp.GradScaler(world.device.type, enabled=dtype == torch.float16)
    if config.compile:
        network.compile()
    return Learner(
        config=config,
        world=world,
        network=network,
        model=share_gradients(network, world, timer.now, timer.add_communication),
        optimizer=optimizer,
        scaler=scaler,
        timer=timer,
        dtype=dtype,
        normalize=Normalizer(colours, world.device, input_dtype(dtype)),
        multi_label=config.data.is_multi_label,
    )
