"""What is said when a step, a validation or precise batch norm runs out of the device's memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nlvideo.config.schema import TrainConfig
from nlvideo.data.clips.loading import Share
from nlvideo.runtime.errors import RunFailed

STEP, VALIDATION, PRECISE_BN = "step {}", "the validation after step {}", "the precise batch norm after step {}"


@contextmanager
def advising_on_memory(config: TrainConfig, share: Share, step: int, what: str = STEP) -> Iterator[None]:
    """Raises RunFailed, with what would save memory, where the block runs out of it.

    Args:
        share: this rank's of each step.
        step: the one that the block trains, or comes after.
        what: STEP, VALIDATION or PRECISE_BN.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        saved = "dry_run=true prints what each would save; " if what == STEP else ""  # it predicts training steps
        raise RunFailed(
            f"The device has no memory for {what.format(step)}, with micro-batches of {share.clips_per_micro_batch} "
            f"clips: {_advice(config, share, what)}. {saved}resume=auto resumes from the last checkpoint."
        ) from None


def _advice(config: TrainConfig, share: Share, what: str) -> str:
    """Returns what a resumed run may change, and last what makes it another run."""
    ways = []
    if share.clips_per_micro_batch > 1:
        ways.append(f"raise optim.accumulate={config.optim.accumulate}")
    # Outside of training nothing is kept for a backward pass, so nothing can be recomputed.
    if what == STEP and not config.model.activation_checkpointing and not config.compile:
        ways.append("set model.activation_checkpointing=[res2,res3]")
    return ", ".join([*ways, f"or use fewer or smaller clips (optim.batch_size={config.optim.batch_size})"])
