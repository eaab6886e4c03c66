"""The optimizer with its groups of parameters, and the learning rate as a function of the step."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from nlvideo.config.schema import OptimConfig
from nlvideo.runtime.torch_private import NormWithStatistics

NORMS = (NormWithStatistics, nn.LayerNorm, nn.GroupNorm)


def build_optimizer(network: nn.Module, optim: OptimConfig, new_parts: Sequence[str]) -> torch.optim.Optimizer:
    """Returns the optimizer of what is not frozen.

    Args:
        new_parts: names of the modules that start from new weights, whose learning rate has a factor of its own.
    """
    groups = param_groups(network, optim.weight_decay)
    if optim.new_lr_factor != 1:
        new = {id(p) for name in new_parts for p in network.get_submodule(name).parameters()}
        groups = [part for group in groups for part in _parted(group, new, optim.new_lr_factor)]
    if optim.kind == "adamw":
        return torch.optim.AdamW(groups, optim.lr)
    return torch.optim.SGD(groups, optim.lr, optim.momentum, nesterov=optim.nesterov)


def param_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Returns two groups: parameters with weight decay, and those of norms, without.

    Biases of convolutions and fc decay, as in the authors' code (model_builder_video.py).
    """
    norms = [p for m in network.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)]
    of_norms = {id(p) for p in norms}
    others = [p for p in network.parameters() if id(p) not in of_norms]
    return [
        {"params": [p for p in others if p.requires_grad], "weight_decay": weight_decay},
        {"params": [p for p in norms if p.requires_grad], "weight_decay": 0.0},
    ]


def _parted(group: dict, new: set[int], factor: float) -> list[dict]:
    """Returns a group as two: what came from a checkpoint, and what is new."""
    return [
        {**group, "params": [p for p in group["params"] if id(p) not in new], "lr_factor": 1.0},
        {**group, "params": [p for p in group["params"] if id(p) in new], "lr_factor": factor},
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of pretrained weights, and with it that of new ones."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def lr_at(
    step: int, *, lr: float, max_steps: int, schedule: str, milestones: Sequence[int] = (), warmup_steps: int = 0
) -> float:
    """Returns the learning rate of a step, counted from 0.

    Args:
        schedule: "steps" divides by 10 at each milestone (Sec. 4.1); "cosine" falls to 0 at max_steps.
        warmup_steps: the first steps rise linearly to the schedule's value.
    """
    if schedule == "cosine":
        value = lr * 0.5 * (1 + math.cos(math.pi * step / max_steps))
    else:
        value = lr * 0.1 ** sum(step >= milestone for milestone in milestones)
    return value * min(1.0, (step + 1) / (warmup_steps + 1))
