"""Precise batch-norm statistics: those of many batches under the current weights.

The running statistics of training lag behind weights that change. The authors' code recomputes the statistics from 200
batches before each evaluation (bn_helper.py), and so do we; the running ones stay what training made them.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nlvideo.runtime.distributed import sum_over_ranks
from nlvideo.runtime.torch_private import BatchNorm


@torch.no_grad()
def precise_statistics(network: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Returns the mean and variance of every batch norm's input as {key of the state dict: (C,) float32}.

    The mean is that of the batches' means; the variance is the mean of squares minus the squared mean, over all ranks,
    so the variance between batches counts too. Batches are normalised by their own statistics, as in training. The
    network's buffers and mode are left unchanged. Frozen batch norms are left out.

    Args:
        batches: normalised clips (N, 3, T, H, W); every rank has equally many.
    """
    training = network.training
    network.train()  # leaves frozen norms in eval mode: their statistics are not those of these clips
    norms = {name: m for name, m in network.named_modules() if isinstance(m, BatchNorm) and m.training}
    network.train(training)
    if not norms:
        return {}
    sums = {
        name: norm.running_mean.new_zeros(2, norm.num_features, dtype=torch.float64) for name, norm in norms.items()
    }
    before = {key: value.clone() for key, value in network.named_buffers()}

    def count(name: str):
        def hook(_module: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0].transpose(0, 1).flatten(1).to(torch.promote_types(inputs[0].dtype, torch.float32))
            variance, mean = (value.double() for value in torch.var_mean(x, 1, correction=0))
            sums[name] += torch.stack([mean, variance + mean.square()])

        return hook

    hooks = [norm.register_forward_pre_hook(count(name)) for name, norm in norms.items()]
    num_batches = 0
    try:
        network.train()
        for clips in batches:
            network.forward(clips)  # a compiled network would not call the hooks
            num_batches += 1
    finally:
        for hook in hooks:
            hook.remove()
        network.train(training)
        for key, value in network.named_buffers():
            value.copy_(before[key])

    flat = [value for total in sums.values() for value in total.flatten().tolist()]
    *flat, over_ranks = sum_over_ranks([*flat, num_batches])
    totals = torch.tensor(flat, dtype=torch.float64) / max(over_ranks, 1)
    statistics = {}
    for (name, norm), total in zip(norms.items(), totals.split([t.numel() for t in sums.values()]), strict=True):
        mean, square = total.view(2, -1)
        statistics[f"{name}.running_mean"] = mean.to(norm.running_mean.dtype)
        statistics[f"{name}.running_var"] = (square - mean.square()).to(norm.running_var.dtype)
    return statistics


@contextmanager
def using(network: nn.Module, statistics: dict[str, Tensor]) -> Iterator[None]:
    """Puts other batch-norm statistics into the network until the block ends."""
    own = {name: value.clone() for name, value in network.state_dict().items() if name in statistics}
    network.load_state_dict(statistics, strict=False)
    try:
        yield
    finally:
        network.load_state_dict(own, strict=False)
