"""The network with everything that one training step needs, on this rank's device."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from nlvideo.config.schema import TrainConfig
from nlvideo.data.clips.batch import Colours, Normalizer
from nlvideo.models.resnet import VideoResNet
from nlvideo.runtime.convolutions import time_algorithms
from nlvideo.runtime.copy_stream import CopyStream
from nlvideo.runtime.cuda_graph import record_passes
from nlvideo.runtime.distributed import World
from nlvideo.runtime.gradients import share_gradients
from nlvideo.runtime.precision import autocast, input_dtype
from nlvideo.training.clip_loss import ClipLoss
from nlvideo.training.mixing import PairMixer
from nlvideo.training.optim import build_optimizer
from nlvideo.training.step_timer import StepTimer
from nlvideo.training.weight_average import WeightAverage


@dataclass(kw_only=True)
class Learner:
    """The network with its optimizer.

    Attributes:
        network: on the device, in channels_last_3d.
        model: the network, wrapped where several ranks share the gradients.
        scaler: of the loss, for float16; disabled otherwise.
        dtype: that the network computes in.
        to_device: copies clips and targets there.
        normalize: turns uint8 clips into what the network takes.
        mixer: of clips and targets; None: clips stay as they are.
        averaged: the moving average of the weights, if the run keeps one.
    """

    config: TrainConfig
    world: World
    network: VideoResNet
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    timer: StepTimer
    dtype: torch.dtype
    to_device: CopyStream
    normalize: Normalizer
    loss: ClipLoss
    mixer: PairMixer | None
    averaged: WeightAverage | None

    @property
    def multi_label(self) -> bool:
        """Whether a clip may show several classes or none."""
        return self.loss.multi_label

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated: with the average of the weights where there is one."""
        return self.network if self.averaged is None else self.averaged.module

    def statistics(self) -> list[Tensor]:
        """Returns the buffers that training changes, of the network and of its average; frozen parts have none."""
        trained = [name for name, module in self.network.train().named_modules() if module.training]
        networks = [self.network] if self.averaged is None else [self.network, self.averaged.module]
        return [b for net in networks for name in trained for b in net.get_submodule(name).buffers(recurse=False)]

    def autocast(self) -> torch.autocast:
        return autocast(self.world.device, self.dtype)


def build_learner(
    config: TrainConfig,
    network: VideoResNet,
    world: World,
    dtype: torch.dtype,
    *,
    loss: ClipLoss,
    new_parts: Sequence[str] = (),
) -> Learner:
    """Moves a network to this rank's device and joins it with a new optimizer.

    Args:
        new_parts: names of the modules whose weights are not pretrained.
    """
    time_algorithms(world.device)  # every step has clips of the same shape
    network = network.to(world.device, input_dtype(dtype), memory_format=torch.channels_last_3d)
    if config.sync_bn:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    optim, timer = config.optim, StepTimer(world.device)
    colours = Colours(config.data.mean, config.data.std)
    averaged = None if optim.ema_decay is None else WeightAverage(network, optim.ema_decay)
    if config.compile:
        network.compile()
    normalize = Normalizer(colours, world.device, input_dtype(dtype))
    trained = _recorded(network, normalize, config, world, dtype) if config.cuda_graph else network
    return Learner(
        config=config,
        world=world,
        network=network,
        model=share_gradients(trained, world, timer.now, timer.add_communication),
        optimizer=build_optimizer(network, optim, new_parts),
        scaler=torch.amp.GradScaler(world.device.type, enabled=dtype == torch.float16),
        timer=timer,
        dtype=dtype,
        to_device=CopyStream(world.device),
        normalize=normalize,
        loss=loss,
        mixer=_mixer(config) if optim.mixup or optim.cutmix else None,
        averaged=averaged,
    )


def _recorded(
    network: VideoResNet, normalize: Normalizer, config: TrainConfig, world: World, dtype: torch.dtype
) -> nn.Module:
    """Returns the network with its training passes as CUDA graphs, for this rank's clips of a step."""
    data, clips = config.data, config.optim.batch_size // world.size
    shape = (clips, data.num_frames, data.crop_size, data.crop_size, 3)
    noise = torch.zeros(shape, dtype=torch.uint8, device=world.device).permute(0, 4, 1, 2, 3)
    return record_passes(network, normalize(noise), partial(autocast, world.device, dtype, cached=False))


def _mixer(config: TrainConfig) -> PairMixer:
    return PairMixer(config.optim.mixup, config.optim.cutmix, config.seed, config.data.clips_per_video)
