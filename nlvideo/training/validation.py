"""What a run measures of its weights: the scores of the centre clips, with precise batch-norm statistics or without.

N clips of a micro-batch, K classes.
"""

from contextlib import closing
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlvideo.build.data import center_batches, train_batches
from nlvideo.evaluation.metrics import validation_metrics
from nlvideo.runtime import distributed
from nlvideo.runtime.convolutions import varying_shapes
from nlvideo.runtime.signals import StopSignal
from nlvideo.training.precise_bn import precise_statistics
from nlvideo.training.preflight import planned_share
from nlvideo.training.setup import Run


def statistics_after(run: Run, step: int, stopping: StopSignal) -> dict[str, Tensor]:
    """Returns precise batch-norm statistics over the clips of the steps that follow this one."""
    place = {"first_step": step, "last_step": step + run.config.precise_bn_steps}
    steps = train_batches(run.config.data, run.train_table, run.share(), run.skipped, seed=run.config.seed, **place)
    # Synchronised batch norm communicates in the forward pass, so all ranks stop before the same step.
    taken = takewhile(lambda _: not any(distributed.sum_over_ranks([stopping.received])), stopping.while_waiting(steps))
    learner = run.learner
    with closing(steps), learner.autocast():
        return precise_statistics(learner.evaluated, (learner.normalize(b.clips) for batches in taken for b in batches))


@torch.inference_mode()
@varying_shapes()
def validate(run: Run, stopping: StopSignal | None = None) -> dict[str, Any] | None:
    """Returns validation_metrics of the centre clips; every video counts once, an undecodable one as wrong.

    None if a rank was asked to stop.
    """
    learner, table, world = run.learner, run.inputs.val_table, run.world
    network = learner.evaluated.eval()
    found: dict[int, np.ndarray] = {}  # logits of each video
    bad = 0  # videos that cannot be decoded
    batch_size = planned_share(run.config).clips_per_micro_batch
    batches = center_batches(run.config.data, table, batch_size, rank=world.rank, size=world.size)
    for batch in stopping.while_waiting(batches) if stopping else batches:
        if stopping and stopping.received:
            break
        bad += len(batch.failures)
        if len(batch.videos):
            with learner.autocast():
                logits = network.forward(learner.normalize(batch.clips))  # a compiled one would compile again
            found.update(zip(batch.videos.tolist(), logits.float().cpu().numpy(), strict=True))
    if any(distributed.gather(bool(stopping and stopping.received))):
        return None
    scores, num_bad = np.full((len(table), run.network.num_classes), np.nan, np.float32), 0
    for of_rank, bad_of_rank in distributed.gather((found, bad)):
        num_bad += bad_of_rank
        for video, values in of_rank.items():
            scores[video] = values
    values = validation_metrics(scores, table.targets)
    loss = None if np.isnan(values["loss"]) else values["loss"]  # where no video could be decoded
    return {**values, "loss": loss, "num_videos": len(table), "num_undecodable": num_bad}
