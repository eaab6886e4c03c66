"""The largest micro-batch that a GPU really takes: training steps with clips of noise, until memory runs out."""

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import torch

from nlvideo.data.clips.batch import Batch
from nlvideo.runtime.free_memory import free_memory
from nlvideo.training.learner import Learner

MAX_MISS = 16  # the answer is at most a sixteenth below the largest that fits


def largest_measured(learner: Learner, train_step: Callable[[Any, list], object], most: int) -> int:
    """Returns how many clips a micro-batch may have, 0 if not even one fits; the weights are those of noise after it.

    This rank trains alone, whatever others do.

    Args:
        learner: with its optimizer's state, which a first step creates.
        most: no more clips are tried.
    """
    world = dataclasses.replace(learner.world, size=1)
    alone = dataclasses.replace(learner, model=learner.network, world=world, mixer=None)  # which takes pairs
    clips = learner.config.optim.batch_size // learner.config.optim.accumulate // learner.world.size
    free = free_memory(torch.device("cpu"))  # where they are made
    if free is not None:
        most = min(most, free // 2 // noise_batch(alone, 1).clips.nbytes)

    def fits(num_clips: int) -> bool:
        batch = noise_batch(alone, num_clips)
        try:
            # With a second micro-batch the gradients of the first are held during its forward pass.
            train_step(alone, [batch] * min(2, learner.config.optim.accumulate))
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            learner.optimizer.zero_grad(set_to_none=True)

    def fits_afresh(num_clips: int) -> bool:
        found = fits(num_clips)
        free_cache()  # outside `fits`: what its frames held is gone now
        return found

    return largest_that_fits(fits_afresh, clips, most)


def noise_batch(learner: Learner, num_clips: int) -> Batch:
    """Returns a batch of clips of noise, as the loader gives them."""
    data, num_classes = learner.config.data, learner.network.num_classes
    shape = (num_clips, data.num_frames, data.crop_size, data.crop_size, 3)
    noise = torch.randint(256, (1, *shape[1:]), dtype=torch.uint8)  # the same for all: hundreds would take seconds
    clips = noise.repeat(num_clips, 1, 1, 1, 1).permute(0, 4, 1, 2, 3)
    if learner.multi_label:
        targets = torch.zeros(num_clips, num_classes, dtype=torch.bool)
    else:
        targets = torch.arange(num_clips) % num_classes
    places = torch.arange(num_clips)
    return Batch(clips, targets, places, [], places)


def free_cache() -> None:
    """Gives back what PyTorch holds for tensors to come, so that one size of batch does not fragment the next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def largest_that_fits(fits: Callable[[int], bool], start: int, most: int) -> int:
    """Returns a number that fits, at most a sixteenth below the largest one that does; 0 if none does.

    Args:
        fits: True up to some number and False above it.
        start: the first one that is tried; it is doubled as long as it fits.
        most: none above it is tried.
    """
    low, high = 0, most + 1  # fits, does not fit
    tried = min(start, most)
    while tried > low and (high > most or high - low > 1 + low // MAX_MISS):
        if fits(tried):
            low = tried
        else:
            high = tried
        tried = min(2 * low, most) if high > most and low else (low + high) // 2
    return low
