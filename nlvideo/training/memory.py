"""The memory of a training step from shapes alone: what it holds, what other settings would save, what fits."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from nlvideo.build.model import build_model
from nlvideo.config.checks import check_config
from nlvideo.config.schema import TrainConfig
from nlvideo.models.cost import activation_bytes, num_params, passing_bytes
from nlvideo.models.resnet import STAGES
from nlvideo.runtime.distributed import World
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.precision import input_dtype, resolve_precision
from nlvideo.training.preflight import check_norm_batch, planned_share

MOMENTS = {"sgd": 1, "adamw": 2}  # numbers that the optimizer keeps for each trained one
FROZEN_EXAMPLES = (["stem", "res2"], ["stem", "res2", "res3"])


class StepMemory(NamedTuple):
    """What a step of one process holds, in bytes."""

    weights: int  # with gradients, the optimizer's state, averaged weights and the buckets of summed gradients
    activations: int  # of a micro-batch: saved for the backward pass, and the largest that one layer takes and gives
    clips: int  # of a micro-batch
    per_clip: float  # activations of each further clip; the rest does not depend on their number

    @property
    def total(self) -> int:
        return self.weights + self.activations

    def largest(self, size: int) -> int:
        """Returns how many clips a micro-batch may have to fit into `size` bytes, 0 if none does."""
        return max(0, int(self.clips + (size - self.total) // self.per_clip))


def step_memory(config: TrainConfig, num_classes: int, world: World) -> StepMemory:
    """Returns what a step of a config holds. Workspace of single operations and fragmentation come on top.

    Raises:
        UserError: this device cannot compute in the precision.
    """
    dtype = resolve_precision(config.precision, world.device)
    with torch.device("meta"):
        network = build_model(config.model, config.block, config.data, num_classes).train()
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    optim, data = config.optim, config.data
    moments = 0 if optim.kind == "sgd" and optim.momentum == 0 else MOMENTS[optim.kind]
    copies = 1 if optim.ema_decay is None else 2
    buckets = world.size > 1 and optim.accumulate > 1  # the gradients of earlier micro-batches lie beside them
    numbers = copies * num_params(network) + trained * (1 + moments + buckets)
    clips = planned_share(config).clips_per_micro_batch
    shape = (3, data.num_frames, data.crop_size, data.crop_size)
    kept, kept_twice = (activation_bytes(network, (n, *shape), dtype) for n in (clips, 2 * clips))
    passing = passing_bytes(network, (clips, *shape), dtype)  # in proportion to the clips
    per_clip = (kept_twice - kept + passing) / clips
    return StepMemory(numbers * input_dtype(dtype).itemsize, kept + passing, clips, per_clip)


def savings(config: TrainConfig, num_classes: int, world: World, now: StepMemory) -> Iterator[tuple[str, StepMemory]]:
    """Yields each setting that would save memory with the step's memory under it."""
    dtype = resolve_precision(config.precision, world.device)
    for label, changed in _variants(config, dtype):
        try:
            check_config(changed)
            check_norm_batch(changed)
            use = step_memory(changed, num_classes, world)
        except UserError:  # it would be refused: no pretrained weights to keep, a batch that cannot be divided, ...
            continue
        if use.total < now.total:
            yield label, use


def _variants(config: TrainConfig, dtype: torch.dtype) -> Iterator[tuple[str, TrainConfig]]:
    model, optim = config.model, config.optim
    if model.train != "head":
        yield "model.train=head", _with_model(config, train="head")
    for parts in FROZEN_EXAMPLES:
        if not set(parts) <= set(model.frozen_parts):
            yield (
                f"model.freeze=[{','.join(parts)}]",
                _with_model(config, freeze=[*parts, *(p for p in model.freeze if p not in parts)]),
            )
    halves = dataclasses.replace(optim, accumulate=2 * optim.accumulate)
    yield f"optim.accumulate={halves.accumulate}", dataclasses.replace(config, optim=halves)
    for stages in (["res2", "res3"], list(STAGES)):
        if not set(stages) <= set(model.activation_checkpointing):
            label = f"model.activation_checkpointing=[{','.join(stages)}]"
            yield label, _with_model(config, activation_checkpointing=stages)
    if dtype in (torch.float32, torch.float64):
        yield "precision=bfloat16", dataclasses.replace(config, precision="bfloat16")


def _with_model(config: TrainConfig, **changes: Any) -> TrainConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
