"""What follows a training step once the next one is launched: it is counted over all ranks, judged and logged."""

from nlvideo.config.schema import TrainConfig
from nlvideo.models.resnet import block_gains
from nlvideo.runtime import distributed
from nlvideo.runtime.errors import RunFailed
from nlvideo.training.bad_videos import LEDGER_FILE
from nlvideo.training.run_log import RunLog
from nlvideo.training.setup import Run
from nlvideo.training.step_metrics import LaunchedStep, reduce_step, refuse_non_finite, refuse_vanishing_scale


def is_due(step: int, every: int, config: TrainConfig) -> bool:
    """Returns True every `every` steps and at the last step."""
    return step > 0 and (step % every == 0 or step == config.optim.max_steps)


def is_saved(step: int, config: TrainConfig) -> bool:
    """Returns whether a step is saved: also before each validation, which may take long."""
    return any(is_due(step, every, config) for every in (config.checkpoint_every_steps, config.validate_every_steps))


def is_due_now(run: Run, step: int, received: int) -> bool:
    """Returns whether a step has to be counted before the next one is launched; the same on every rank.

    Args:
        received: the signal that asked this rank to stop, of which the other ranks hear one step later.
    """
    config = run.config
    asked = received and run.world.size == 1
    return bool(asked) or is_saved(step, config) or is_due(step, config.log_every_steps, config)


def finish_step(run: Run, launched: LaunchedStep, log: RunLog | None, stopped: int) -> bool:
    """Waits for a step, counts it over all ranks and logs what is due; returns whether any rank was asked to stop.

    Args:
        stopped: the signal that asked this rank to stop, 0 for none.

    Raises:
        RunFailed: loss or gradient are not finite, too many videos could not be decoded, or a checkpoint not written.
    """
    stop = count_step(run, launched, stopped)
    log_step(run, launched.step, launched.lr, log, stop or is_saved(launched.step, run.config))
    if log:
        log.advance()
    return stop


def count_step(run: Run, launched: LaunchedStep, stopped: int) -> bool:
    """Counts a step over all ranks; returns whether any of them was asked to stop.

    Raises:
        RunFailed: loss or gradient are not finite.
    """
    result, (step, _, batches, _) = launched.result.read(), launched
    refuse_vanishing_scale(result)
    totals = reduce_step(result, batches, stopped)
    videos = (run.train_table.name(i) for batch in batches for i in batch.videos.tolist())
    refuse_non_finite(result, totals, step, videos)
    failures = [failure for batch in batches for failure in batch.failures]
    if totals.num_slow:  # some rank met a video that took too long: no rank opens it again
        for slow in distributed.gather([failure.video for failure in failures if failure.slow]):
            run.skipped[slow] = True
    run.bad_videos.note(step, failures)
    run.bad_videos.count(totals.num_clips // run.config.data.clips_per_video, totals.num_bad)
    run.metrics.add(totals)
    return totals.stop


def log_step(run: Run, step: int, lr: float, log: RunLog | None, saving: bool) -> None:
    """Logs what is due after a step.

    Raises:
        RunFailed: more samples could not be decoded than data.max_bad_share allows.
    """
    too_bad = run.bad_videos.too_many(run.config.data.max_bad_share)
    logging = is_due(step, run.config.log_every_steps, run.config) or too_bad is not None
    if logging:
        values = run.metrics.take(lr, run.bad_videos.share, run.learner.timer)
        if log:
            log.log("train", step, values)
            log.log_gains(step, block_gains(run.network))
            log.warn(run.data_wait.line(step, values["data_wait_share"] or 0.0))
    if logging or saving:
        rows = run.bad_videos.take()
        if log:
            log.log_bad_videos(rows)
    if too_bad:
        raise RunFailed(f"{too_bad}; {run.folder / LEDGER_FILE} names each with its reason.")
