"""nlvideo-train: the whole training program, in reading order.

N clips of a micro-batch of this rank, K classes.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import nlvideo.runtime.threads  # noqa: F401, before torch is loaded

# isort: split
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from nlvideo.build.data import train_batches
from nlvideo.config.checks import check_config
from nlvideo.config.compose import (
    command_line_keys,
    compose_stated,
    from_container,
    run_command,
    to_dataclass,
    to_yaml,
    with_places_of,
)
from nlvideo.config.schema import TrainConfig
from nlvideo.data.clips.batch import Batch
from nlvideo.data.stores.traffic import Totals, totals
from nlvideo.evaluation.metrics import headline
from nlvideo.experiments.sweep import POINT_FLAG, in_sweep, show_points_instead, train_point
from nlvideo.runtime import distributed, files
from nlvideo.runtime.callable_module import make_callable
from nlvideo.runtime.errors import RunFailed, UserError, reporting_errors
from nlvideo.runtime.folder_lock import holding, lock_folder
from nlvideo.runtime.launch import launch_ranks, refuse_tasks_without_ranks
from nlvideo.runtime.precision import keeping_torch_settings
from nlvideo.runtime.signals import StopSignal, raise_signal
from nlvideo.training.checkpoint_writer import CheckpointWriter
from nlvideo.training.data_warnings import data_warnings
from nlvideo.training.known_videos import known_videos
from nlvideo.training.learner import Learner
from nlvideo.training.loggers import open_logger
from nlvideo.training.optim import lr_at, set_lr
from nlvideo.training.out_of_memory import PRECISE_BN, VALIDATION, advising_on_memory
from nlvideo.training.plan import plan_lines
from nlvideo.training.precise_bn import using
from nlvideo.training.preflight import check_inputs, in_steps
from nlvideo.training.resume import CONFIG_FILE, begun_config, find_checkpoint
from nlvideo.training.run_log import RunLog, print_results
from nlvideo.training.run_status import (
    DRY_RUN,
    FINISHED,
    MAX_STEPS,
    PATIENCE,
    SIGNAL,
    STATUS_FILE,
    STOPPED,
    TrainResult,
    noting_failure,
    write_status,
)
from nlvideo.training.setup import Run, set_up, state_of
from nlvideo.training.step_end import finish_step, is_due, is_due_now, is_saved
from nlvideo.training.step_files import go_back_to, name_best
from nlvideo.training.step_metrics import LateResult, LaunchedStep
from nlvideo.training.step_timer import profiler
from nlvideo.training.validation import statistics_after, validate
from nlvideo.weights.adoption import take_from_pretrained

TRACE_FOLDER = "trace"
ONE_RUN = threading.Lock()


def main() -> None:
    if sys.argv[1:] == [POINT_FLAG]:  # a sweep started this process for one of its points
        with reporting_errors():
            launch(from_container(TrainConfig, json.load(sys.stdin)))
        return
    show_points_instead(sys.argv)
    run_command(train_composed, "train")


def train_from_python(config: TrainConfig | Sequence[str]) -> TrainResult:
    """Trains one run, as `nlvideo-train` does, and returns how it ended; this is `nlvideo.train`.

    Args:
        config: the overrides of the command line, such as ["experiment=finetune", "data.root=clips"]; or a config,
            which is complete: it takes nothing over from the file that its model.pretrained names.

    Raises:
        UserError: what the command would refuse, before anything is written.
        RunFailed: the run cannot continue, for a reason that the message explains.
        KeyboardInterrupt: Ctrl-C; the checkpoint of the last step is saved. Other signals raise SystemExit.
    """
    if isinstance(config, TrainConfig):
        check_config(config)
        complete = config
    else:
        composed, stated = compose_stated("train", config, one_run=True)
        complete = completed(to_dataclass(composed), stated)
    with keeping_torch_settings():
        result = train_on_ranks(complete)
    raise_signal(result.received)
    return result


def train_composed(composed: DictConfig) -> float:
    """Trains one run, or one point of a sweep, and returns its last validation score."""
    config, stated = to_dataclass(composed), command_line_keys(composed)
    if in_sweep():
        return train_point(config, stated)
    return launch(completed(config, stated))


def completed(config: TrainConfig, stated: Mapping[str, Any]) -> TrainConfig:
    """Returns the config with what its pretrained weights bring along; under torchrun, rank 0 alone reads them.

    Where its data lie, each rank knows itself.
    """
    if distributed.under_torchrun():
        distributed.init_world()
    found = distributed.on_main(lambda: take_from_pretrained(config, stated, begun_config(config)))
    return with_places_of(found, config)


def launch(config: TrainConfig) -> float:
    """Trains one run and returns its last validation score; exits if it was stopped by a signal."""
    result = train_on_ranks(config)
    if result.received:
        sys.exit(128 + result.received)
    return result.score


def train_on_ranks(config: TrainConfig) -> TrainResult:
    """Trains one run on as many ranks as it asks for."""
    refuse_tasks_without_ranks()
    if config.num_devices > 1:
        inputs = check_inputs(config)  # before any rank is started, so that a mistake is one message
        find_checkpoint(in_steps(config, len(inputs.train_table)), inputs.train_table)
    return launch_ranks(train, config, config.num_devices)


def train(config: TrainConfig) -> TrainResult:
    """Trains in this process, together with the other ranks if there are any."""
    with alone_in_process(), holding(Path(config.output_dir)):
        return train_run(set_up(config))


def train_run(run: Run) -> TrainResult:
    """Says what a run is about to do, and trains it."""
    config = run.config
    if run.world.is_main:
        print(to_yaml(config))
        for line in plan_lines(config, run.inputs, run.world, run.learner.dtype, run.notes, run.new_parts):
            print(line, flush=True)
        if run.workers_note:
            print(f"workers   {run.workers_note}", flush=True)
        known = known_videos(config.data, run.train_table)
        if config.dry_run and len(known.taken):
            print(f"videos    {known.line()}", flush=True)
        for line in data_warnings(config.data, run.train_table, run.inputs.val_table, known):
            print(f"warning   {line}", flush=True)
    if config.dry_run:
        from nlvideo.training.dry_run import try_steps  # imports a FLOP counter, which takes a quarter of a second

        try_steps(run, train_step)
        distributed.leave_together()
        return TrainResult(run.folder, STOPPED, DRY_RUN, run.first_step, run.headline, float("nan"))
    with StopSignal() as stopping, noting_failure(run.folder if run.world.is_main else None):
        with ExitStack() as stack:
            log = stack.enter_context(open_log(run)) if run.world.is_main else None
            before = totals()
            step, score = train_steps(run, stopping, log)
            fetched = Totals(*distributed.sum_over_ranks([*totals(since=before)]))
            received = max(distributed.gather(stopping.received))
            result = distributed.gather(describe_end(run, step, score, log, received) if log else None)[0]
            if log:
                log.interrupted = result.state == STOPPED
        if log:
            report_end(run, result, fetched)
        distributed.leave_together()
    return result._replace(received=stopping.received)


@contextmanager
def alone_in_process() -> Iterator[None]:
    """Refuses a second run while one trains in this process: they would draw from the same random numbers.

    Raises:
        UserError: one trains already.
    """
    if not ONE_RUN.acquire(blocking=False):
        raise UserError("Another run is training in this process; start this one in a process of its own.")
    try:
        yield
    finally:
        ONE_RUN.release()


@contextmanager
def open_log(run: Run) -> Iterator[RunLog]:
    """Takes the run's folder for this process and yields its log; called on rank 0."""
    run.folder.mkdir(parents=True, exist_ok=True)
    lock_folder(run.folder)
    go_back_to(run.folder, run.first_step)
    (run.folder / STATUS_FILE).unlink(missing_ok=True)
    files.write_text(run.folder / CONFIG_FILE, to_yaml(run.config))
    logger = open_logger(run.config, run.folder)
    with (
        CheckpointWriter(run.folder, run.config.keep) as checkpoints,
        RunLog(run.folder, run.first_step, run.config.optim.max_steps, checkpoints, logger) as log,
    ):
        yield log


def describe_end(run: Run, step: int, score: float, log: RunLog, received: int) -> TrainResult:
    """Returns how a run ended that did so many steps; called on rank 0."""
    left, validated = run.config.optim.max_steps - step, log.has_validation(step)
    if left < 0 or left == 0 and validated:
        return TrainResult(run.folder, FINISHED, MAX_STEPS, step, run.headline, score)
    if (validated or not received) and log.out_of_patience(run.best_metric, run.config.patience):
        return TrainResult(run.folder, FINISHED, PATIENCE, step, run.headline, score)
    return TrainResult(run.folder, STOPPED, SIGNAL, step, run.headline, score, received)


def report_end(run: Run, result: TrainResult, fetched: Totals) -> None:
    """Writes and prints how the run ended; called on rank 0."""
    last = None if np.isnan(result.score) else result.score
    values = {"step": result.step, "score": last, "metric": result.metric, "num_classes": run.network.num_classes}
    write_status(run.folder, result.state, reason=result.reason, **values)
    print_results(result, run.config.optim.max_steps, run.best_metric)
    if fetched.opens:
        print(f"store        {fetched.line()}")


def train_steps(run: Run, stopping: StopSignal, log: RunLog | None) -> tuple[int, float]:
    """Trains to the last step, or until asked to stop; returns the steps done and the last validation score."""
    config, step = run.config, run.first_step
    score, validated = distributed.gather((log.last_score(), log.has_validation(step)) if log else None)[0]
    if is_due(step, config.validate_every_steps, config) and not validated:  # the run was stopped before it
        found = validate_and_log(run, step, log, stopping)
        if found is None:
            return step, float("nan")
        score = found
    if is_out_of_patience(run, log):
        return step, score
    place = {"first_step": step, "last_step": config.optim.max_steps}
    steps = train_batches(config.data, run.train_table, run.share(), run.skipped, seed=config.seed, **place)
    profiling = profiler(config.profile_steps if run.world.is_main else 0, run.folder / TRACE_FOLDER)
    late: LaunchedStep | None = None
    with closing(steps), profiling as profile:
        for step, batches in enumerate(run.learner.timer.timed(stopping.while_waiting(steps)), run.first_step + 1):
            if log and step == run.first_step + 1:
                log.show_clips(step, batches[0].clips)
            lr = set_learning_rate(run.learner, step - 1)
            seed_dropout(run, step)
            with advising_on_memory(config, run.share(), step):
                result = train_step(run.learner, batches)
            profile.step()

            # The step before is counted only now, so that the device always has one to compute.
            stop = late is not None and finish_step(run, late, log, stopping.received)
            late = LaunchedStep(step, lr, batches, result)
            if not (stop or is_due_now(run, step, stopping.received)):
                continue
            stop, late = finish_step(run, late, log, stopping.received) or stop, None
            with run.metrics.paused():
                if log and (stop or is_saved(step, config)):
                    log.save(state_of(run, step))
                if is_due(step, config.validate_every_steps, config) and not stop:
                    found = validate_and_log(run, step, log, stopping)
                    stop = found is None or is_out_of_patience(run, log)
                    score = score if found is None else found
            if stop:
                break
    if stopping.gave_up:
        save_without_data(run, step, late, log)
    if log:
        log.wait_until_saved()
    return step, score


def save_without_data(run: Run, step: int, late: LaunchedStep | None, log: RunLog | None) -> None:
    """Saves a run that was asked to stop while it waited for the data of the next step.

    Args:
        late: the last step, if it has not been counted.

    Raises:
        RunFailed: other ranks are in that step already; the last checkpoint stays the newest.
    """
    if run.world.size > 1:
        raise RunFailed(
            f"Asked to stop, but the data of step {step + 1} did not come; resume from the last checkpoint."
        )
    if late:
        finish_step(run, late, log, stopped=1)
    if log and step > run.first_step:
        log.log_bad_videos(run.bad_videos.take())
        log.save(state_of(run, step))


def is_out_of_patience(run: Run, log: RunLog | None) -> bool:
    """Returns whether the last validations brought no gain, so many that the run ends; every rank must call it."""
    if run.config.patience is None:
        return False
    return distributed.gather(log.out_of_patience(run.best_metric, run.config.patience) if log else None)[0]


def seed_dropout(run: Run, step: int) -> None:
    """Makes dropout a function of (seed, rank, step), so that a resumed run needs no saved random state."""
    torch.manual_seed(int(np.random.SeedSequence([run.config.seed, run.world.rank, step]).generate_state(1)[0]))


def set_learning_rate(learner: Learner, step: int) -> float:
    """Sets the learning rate of a step, counted from 0, and returns it."""
    optim = learner.config.optim
    lr = lr_at(
        step,
        lr=optim.lr * optim.batch_size / optim.lr_batch_size,
        max_steps=optim.max_steps,
        schedule=optim.schedule,
        milestones=optim.milestones,
        warmup_steps=optim.warmup_steps,
    )
    set_lr(learner.optimizer, lr)
    return lr


def train_step(learner: Learner, batches: list[Batch]) -> LateResult:
    """Updates the weights once, from the gradients of all micro-batches, without waiting for the device."""
    learner.model.train()
    learner.optimizer.zero_grad(set_to_none=True)
    learner.timer.start()
    total, right = torch.zeros((), device=learner.world.device), torch.zeros((), device=learner.world.device)
    for i, batch in enumerate(batches, 1):
        # Gradients are averaged over ranks with the last micro-batch.
        alone = learner.model.no_sync() if learner.world.size > 1 and i < len(batches) else nullcontext()
        with alone:
            clips, targets = learner.to_device(batch.clips, batch.targets)
            clips = learner.normalize(clips)
            if learner.mixer:  # targets become shares (N, K)
                clips, targets = learner.mixer(clips, targets, batch.places, learner.network.num_classes)
            with learner.autocast():
                logits = learner.model(clips)  # (N, K)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = learner.loss(logits, targets) / len(batches)
            if not learner.multi_label:
                wanted = targets if targets.ndim == 1 else targets.argmax(1)  # of a mixture, the larger part
                right = right + (logits.detach().argmax(1) == wanted).double().mean() / len(batches)
            learner.timer.lap("forward")
            learner.scaler.scale(loss).backward()
        total = total + loss.detach()
        learner.timer.lap("backward")
    return update_weights(learner, total, right)


def update_weights(learner: Learner, loss: Tensor, right: Tensor) -> LateResult:
    """Takes the optimizer's step with the gradients that have been accumulated."""
    learner.scaler.unscale_(learner.optimizer)
    allowed = learner.config.optim.max_grad_norm or float("inf")
    grad_norm = torch.nn.utils.clip_grad_norm_(learner.network.parameters(), allowed)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    if learner.averaged:
        learner.averaged.update_parameters(learner.network)
    learner.timer.end()
    values = [loss, grad_norm, right]
    if learner.scaler.is_enabled():
        values.append(learner.scaler.scale(torch.ones_like(loss)))
    return LateResult(torch.stack([value.double() for value in values]), learner.multi_label)


def validate_and_log(run: Run, step: int, log: RunLog | None, stopping: StopSignal) -> float | None:
    """Validates the weights after a step, keeps them if they are the best so far, and returns top-1, or mAP.

    If signalled during validation, the run stops and this returns None. The line of metrics is written last: a run
    that was stopped before it validates on resume.
    """
    if log:
        log.wait_until_saved()  # loading forks processes, which is safest while no thread writes
    distributed.copy_from_main(run.learner.statistics())  # each rank updated its batch norms with its own clips
    precise, started = None, time.monotonic()
    if run.config.precise_bn_steps:
        with advising_on_memory(run.config, run.share(), step, PRECISE_BN):
            precise = statistics_after(run, step, stopping)
    with using(run.learner.evaluated, precise or {}), advising_on_memory(run.config, run.share(), step, VALIDATION):
        values = validate(run, stopping)
    if values is None:
        return None
    if log:
        if precise:
            log.save(state_of(run, step, precise))
            log.wait_until_saved()
        if log.is_best(run.best_metric, values[run.best_metric]):
            name_best(run.folder, step)
        log.log("val", step, {**values, "seconds": time.monotonic() - started})
    return values[headline(values)]


if __name__ == "__main__":
    main()
else:
    make_callable(__name__, train_from_python)
