"""Does what a block attends to matter? Networks whose attention weights are replaced after training.

Each intervention keeps the rest of the network as it was trained, so a drop of accuracy is due to the weights alone.
Weights come as in `with_map` of the blocks: (N, parts, queries, keys), where all queries of a part see all its keys.

The mean over videos is that of the untouched network, and includes the video itself. The others act on the weights
that a block computes, and with several blocks these depend on what the replaced ones before it made of the video.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from nlvideo.models.resnet import VideoResNet, context_names

TRAINED, MEAN_OVER_QUERIES, MEAN_OVER_VIDEOS = "as trained", "mean over queries", "mean over videos"
SHUFFLED, UNIFORM, REMOVED = "shuffled", "uniform", "block removed"
# What each leaves of the map, in the order of a table.
INTERVENTIONS = {
    TRAINED: "nothing is replaced",
    MEAN_OVER_QUERIES: "every query has the mean row of all queries of its part of the video: content, but no query",
    MEAN_OVER_VIDEOS: "every query has its mean row over all videos: places, but no content",
    SHUFFLED: "every row keeps its weights, on keys drawn at random",
    UNIFORM: "every key has the mean weight of the row",
    REMOVED: "the output of the block is its input",
}


@dataclass
class MeanMap:
    """The mean weights of one block over videos."""

    total: Tensor = field(default_factory=lambda: torch.zeros(()))  # (parts, queries, keys) float64, from the first on
    count: int = 0

    def add(self, weights: Tensor) -> None:
        self.total = self.total.to(weights.device) + weights.sum(0, dtype=torch.float64)
        self.count += len(weights)

    def mean(self) -> Tensor:
        """Returns (parts, queries, keys) float64."""
        return self.total / self.count


def mean_over_queries(weights: Tensor) -> Tensor:
    return weights.mean(2, keepdim=True).expand_as(weights)


def shuffled(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the weights with each row in a random order of its own; `generator` is on their device."""
    order = torch.rand(weights.shape, generator=generator, device=weights.device).argsort(-1)
    return weights.gather(-1, order)


def uniform(weights: Tensor) -> Tensor:
    return weights.mean(-1, keepdim=True).expand_as(weights)


@contextmanager
def replaced_maps(network: VideoResNet, changes: Mapping[str, Callable[[Tensor], Tensor] | None]) -> Iterator[None]:
    """Within it, blocks compute with other attention weights.

    Args:
        changes: {place: what takes and returns a block's weights}; None removes the block. The others stay as trained.
    """

    def hook(change: Callable[[Tensor], Tensor] | None, block: nn.Module, inputs: tuple[Tensor], _: Tensor) -> Tensor:
        return inputs[0] if change is None else block.with_map(inputs[0], change)  # type: ignore[operator]

    names = dict(zip(network.places, context_names(network), strict=True))
    handles = [
        network.get_submodule(names[place]).register_forward_hook(partial(hook, change))
        for place, change in changes.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def collected_maps(network: VideoResNet, means: Mapping[str, MeanMap]) -> Iterator[None]:
    """Within it, every forward pass adds the weights of these blocks, {place: its mean}.

    In evaluation mode it changes nothing; in training mode, batch norm of a block inside would see its batch twice.
    """

    def collect(mean: MeanMap, weights: Tensor) -> Tensor:
        mean.add(weights)
        return weights

    with replaced_maps(network, {place: partial(collect, mean) for place, mean in means.items()}):
        yield


def change_of(intervention: str, mean: MeanMap, generator: torch.Generator) -> Callable[[Tensor], Tensor] | None:
    """Returns what an intervention makes of a block's weights; None removes the block.

    Args:
        intervention: one of INTERVENTIONS but TRAINED.
        mean: of the block over all videos.
        generator: for SHUFFLED.
    """
    if intervention == REMOVED:
        return None
    if intervention == MEAN_OVER_VIDEOS:
        return lambda weights: mean.mean().to(weights).expand_as(weights)
    if intervention == SHUFFLED:
        return partial(shuffled, generator=generator)
    return {MEAN_OVER_QUERIES: mean_over_queries, UNIFORM: uniform}[intervention]
