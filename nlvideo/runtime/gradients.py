"""Averages gradients over ranks, in an order that a resumed run repeats."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nlvideo.runtime.distributed import World, copy_from_main


def share_gradients(
    network: nn.Module, world: World, now: Callable[[], Any], sent: Callable[[Any, Any], None]
) -> nn.Module:
    """Returns the network wrapped so that all ranks start from rank 0's weights and average their gradients.

    A single process gets the network itself.

    Args:
        now: returns a moment, as StepTimer.now does.
        sent: called with the moments between which a bucket of gradients was being averaged.
    """
    if world.size == 1:
        return network
    # Gradients of 1x1x1 convolutions may come contiguous or channels last, which are the same order of numbers.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # older torch knows no other name
    copy_from_main(list(network.buffers()))  # without broadcast_buffers DDP copies the parameters alone
    model = DistributedDataParallel(
        network,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,  # no second copy of all gradients
        broadcast_buffers=False,  # training does not read them, and a validation copies rank 0's
    )

    def average(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        return _average(bucket.buffer(), now, sent)

    model.register_comm_hook(None, average)
    return model


def _average(
    gradients: torch.Tensor, now: Callable[[], Any], sent: Callable[[Any, Any], None]
) -> torch.futures.Future[torch.Tensor]:
    start, size = now(), dist.get_world_size()
    gradients.div_(size)
    if gradients.is_cuda:
        parts = [gradients]
        future = dist.all_reduce(gradients, async_op=True).get_future()
    else:
        # gloo's order of addition depends on the position in the bucket, and DDP rebuilds its buckets after the first
        # step of a process, so a resumed run would add in another order. Gathered parts are added in rank order.
        parts = [torch.empty_like(gradients) for _ in range(size)]
        future = dist.all_gather(parts, gradients, async_op=True).get_future()

    def total(_: torch.futures.Future) -> torch.Tensor:
        result = parts[0]
        for part in parts[1:]:
            result += part
        sent(start, now())
        return result

    return future.then(total)
