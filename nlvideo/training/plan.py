"""The lines that say, before a run starts, what it is about to do."""

from collections.abc import Sequence

import torch

from nlvideo.config.schema import TrainConfig
from nlvideo.data.clips.loading import Share
from nlvideo.models.resnet import VideoResNet
from nlvideo.runtime.distributed import World
from nlvideo.runtime.torch_private import BatchNorm
from nlvideo.training.balance_lines import class_lines
from nlvideo.training.preflight import Inputs


def plan_lines(
    config: TrainConfig, inputs: Inputs, world: World, dtype: torch.dtype, notes: list[str], new_parts: Sequence[str]
) -> list[str]:
    """Returns lines: what is trained, on what, from which weights, and why at this learning rate.

    Args:
        notes: where the weights come from, then what differs from the run that is resumed.
        new_parts: names of the modules whose weights are not pretrained.
    """
    network, optim, data = inputs.network, config.optim, config.data
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    places = f"after {', '.join(network.places)}" if network.places else ""
    lines = [
        f"network   {config.model.layout} R{config.model.depth}, {millions:.2f} M parameters, {notes[0]}",
        *(f"          {note}" for note in notes[1:]),
        f"blocks    {len(network.places)} {config.block.kind if network.places else ''} {places}",
    ]
    for name, table in (("train", inputs.train_table), ("val", inputs.val_table)):
        lines.append(f"{name:9} {len(table)} videos of {len(table.classes)} classes, {table.source}")
        lines += [f"          {table.note}"] if table.note else []
    lines += class_lines(inputs.train_table, data.balance)
    clips = Share(optim.batch_size, 0, world.size, optim.accumulate).clips_per_micro_batch
    shares = f"{world.size} x {clips}" + (f" x {optim.accumulate} micro-batches" if optim.accumulate > 1 else "")
    return [
        *lines,
        f"lr        {optim.lr * optim.batch_size / optim.lr_batch_size:g} = {optim.lr:g} x "
        f"{optim.batch_size}/{optim.lr_batch_size}: {optim.lr:g} is for {optim.lr_batch_size} clips a step, this run "
        f"takes {optim.batch_size} ({shares}), scaled linearly",
        *_changed_lines(config, network, new_parts),
        _norm_line(config, network, clips),
        _steps_line(config, len(inputs.train_table)),
        f"clips     {data.num_frames} frames, stride {data.frame_stride}, {data.crop_size} x {data.crop_size} pixels",
        f"device    {world.size} x {world.device.type}, {str(dtype).removeprefix('torch.')}",
    ]


def _steps_line(config: TrainConfig, num_videos: int) -> str:
    optim, together = config.optim, config.data.clips_per_video
    epochs = optim.max_steps * optim.batch_size / num_videos
    line = f"steps     {optim.max_steps} of {optim.batch_size} clips, {epochs:.1f} epochs"
    if together == 1:
        return line
    return (
        f"{line} of {num_videos} clips: {together} of each video that is drawn, {epochs / together:.1f} passes over "
        "the list (data.clips_per_video)"
    )


def _changed_lines(config: TrainConfig, network: VideoResNet, new_parts: Sequence[str]) -> list[str]:
    """Returns a line for each part of the recipe that is not as in the papers."""
    optim, lines = config.optim, []
    if optim.new_lr_factor != 1:
        names = ", ".join("head" if name == "fc" else name for name in new_parts)
        rate = f"{optim.new_lr_factor:g} times as much for what is new: {names}"
        lines.append(f"          {rate if names else 'the same for all: nothing is new beside pretrained weights'}")
    if optim.warmup_steps > optim.max_steps // 4:
        lines.append(f"          rises for {optim.warmup_steps} of the {optim.max_steps} steps (optim.warmup_steps)")
    if network.frozen:
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        lines.append(f"frozen    {', '.join(network.frozen)}; {trained / 1e6:.2f} M parameters are trained")
    if optim.kind != "sgd" or optim.ema_decay is not None:
        average = "" if optim.ema_decay is None else f", validated with weights averaged by {optim.ema_decay:g} a step"
        lines.append(f"optimizer {optim.kind}{average}")
    parts = [
        f"{key}={value:g}"
        for key, value in (
            ("label_smoothing", optim.label_smoothing),
            ("mixup", optim.mixup),
            ("cutmix", optim.cutmix),
        )
        if value
    ]
    parts += [f"class_weights={optim.class_weights}"] if optim.class_weights != "none" else []
    return lines + ([f"loss      with {', '.join(parts)}"] if parts else [])


def _norm_line(config: TrainConfig, network: VideoResNet, clips: int) -> str:
    if not any(isinstance(module, BatchNorm) and module.training for module in network.train().modules()):
        return "norm      frozen: statistics, gain and bias"
    if config.sync_bn:
        clips = config.optim.batch_size // config.optim.accumulate
        return f"norm      over the {clips} clips of a micro-batch on all ranks"
    return f"norm      over the {clips} clips of a micro-batch"
