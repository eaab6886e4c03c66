"""Parameter groups, and the learning rate as a function of the step."""

import math
from collections.abc import Sequence

from torch import nn

from nlvideo.runtime.torch_private import NormWithStatistics

NORMS = (NormWithStatistics, nn.LayerNorm, nn.GroupNorm)


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
