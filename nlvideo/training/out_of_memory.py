"""What is said when a training step runs out of the device's memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nlvideo.config.schema import TrainConfig
from nlvideo.data.clips.loading import Share
from nlvideo.runtime.errors import RunFailed


@contextmanager
def advising_on_memory(config: TrainConfig, share: Share, step: int) -> Iterator[None]:
    """Raises RunFailed, with what would save memory, where the block runs out of it.

    Args:
        share: this rank's of each step.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise RunFailed(
            f"The device has no memory for step {step}, with micro-batches of {share.clips_per_micro_batch} "
            f"clips: {_advice(config, share)}. dry_run=true says what each would save; resume=auto goes on from the "
            "last checkpoint."
        ) from None


def _advice(config: TrainConfig, share: Share) -> str:
    """Returns what a resumed run may change, and last what makes it another run."""
    ways = []
    if share.clips_per_micro_batch > 1:
        ways.append(f"raise optim.accumulate={config.optim.accumulate}")
    if not config.model.activation_checkpointing and not config.compile:
        ways.append("set model.activation_checkpointing=[res2,res3]")
    return ", ".join([*ways, f"or use fewer or smaller clips (optim.batch_size={config.optim.batch_size})"])
