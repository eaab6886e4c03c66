"""Training passes that are recorded once and then replayed, so that the CPU no longer starts each kernel."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

WARM_UP_PASSES = 3  # passes before the recording: convolutions are timed and workspaces allocated outside of it


class _Recordable(nn.Module):
    """A network with its autocast: PyTorch puts the recording in the place of a module's forward function."""

    def __init__(self, network: nn.Module, autocast: Callable[[], AbstractContextManager]):
        super().__init__()
        self.network, self.autocast = network, autocast

    def forward(self, clips: Tensor) -> Tensor:
        with self.autocast():
            return self.network(clips)


def record_passes(network: nn.Module, clips: Tensor, autocast: Callable[[], AbstractContextManager]) -> nn.Module:
    """Returns a module whose passes in training mode, forward and backward, are replayed CUDA graphs.

    It shares its parameters and buffers with the network, which itself stays as it is and can be used besides. Small
    batches gain: on a fast GPU a CPU needs longer to start the kernels of a step than the GPU to run them.

    The gradients of a pass lie where those of the next one will, so they must be used, or copied, before it: one pass
    a step.

    Args:
        network: in training mode, on a GPU; nothing in it may wait for the GPU or depend on values.
        clips: of the shape, dtype and memory format that all later ones have; its values do not count.
        autocast: of the network, without a cache of weights: what it kept would be freed before the replay.
    """
    before = [buffer.clone() for buffer in network.buffers()]
    module = _Recordable(network, autocast).train()
    graphed = torch.cuda.make_graphed_callables(module, (clips,), num_warmup_iters=WARM_UP_PASSES)
    with torch.no_grad():  # the passes of the warm-up have counted in the statistics of batch norms
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)
    return graphed
