"""nlvideo-train: the whole training program, in reading order.

N clips of a pass of this process, K classes.
"""

import dataclasses
import sys
import time
from contextlib import ExitStack, nullcontext
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from nlvideo.build.data import center_batches, train_batches
from nlvideo.config.compose import run_command, to_dataclass, to_yaml
from nlvideo.config.schema import TrainConfig
from nlvideo.data.clips.datasets import Batch
from nlvideo.data.clips.loading import end_workers
from nlvideo.evaluation.metrics import (
    headline,
    mean_average_precision,
    target_ranks,
    topk_accuracy,
    without_actions_last,
)
from nlvideo.experiments.sweep import Sweep, run_point, wants_configs
from nlvideo.models.resnet import block_gains
from nlvideo.runtime import distributed
from nlvideo.runtime.errors import RunFailed, UserError
from nlvideo.runtime.folder_lock import lock_folder
from nlvideo.runtime.launch import launch_ranks
from nlvideo.runtime.signals import StopSignal
from nlvideo.training import preflight
from nlvideo.training.optim import lr_at
from nlvideo.training.precise_bn import precise_statistics, using
from nlvideo.training.resume import CONFIG_FILE, find_checkpoint
from nlvideo.training.run_log import LEDGER_FILE, RunLogger, print_results
from nlvideo.training.run_status import FINISHED, STATUS_FILE, STOPPED, write_status, write_whole
from nlvideo.training.setup import Run, set_up, state_of
from nlvideo.training.step_metrics import Meter, StepResult
from nlvideo.training.step_timer import profiler
from nlvideo.weights.checkpoint_file import go_back_to, name_best, save_step

TRACE_FOLDER = "trace"
DRY_STEPS = 3  # tried in a dry run; the first warms up
SMALLEST_SCALE = 2.0**-14  # of a float16 loss


def main() -> None:
    Sweep.only_shown = wants_configs(sys.argv)
    run_command(run, "train")
    Sweep.end()


def run(composed: DictConfig) -> float:
    """Trains one run, or one point of a sweep, and returns its last validation score."""
    config = to_dataclass(composed)
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_point(config)
    if HydraConfig.initialized() and HydraConfig.get().sweeper.get("params"):
        raise UserError("This configuration is a sweep over several runs: add -m, or leave +ablation=... out.")
    return launch(config)


def launch(config: TrainConfig) -> float:
    """Trains one run in as many processes as it asks for."""
    if config.num_devices > 1:
        inputs = preflight.check_inputs(config)  # before any process is started, so that a mistake is one message
        find_checkpoint(config, inputs.train_table)
    return launch_ranks(train, config, config.num_devices)


def train(config: TrainConfig) -> float:
    """Trains in this process, together with the others if there are any; returns the last validation score."""
    run = set_up(config)
    if config.dry_run:
        return try_steps(run)
    stopping = StopSignal()
    folder, logger = Path(config.output_dir), None
    with ExitStack() as stack:
        if run.world.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            lock_folder(folder)
            go_back_to(folder, run.first_step)
            (folder / STATUS_FILE).unlink(missing_ok=True)
            write_whole(folder / CONFIG_FILE, to_yaml(config))
            print(to_yaml(config))
            print_lines(run)
            logger = stack.enter_context(RunLogger(folder, run.first_step, config.optim.max_steps))
        step, score = train_steps(run, stopping, logger)
    if run.world.is_main:
        left = config.optim.max_steps - step
        state = FINISHED if left < 0 or left == 0 and logger.has_validation(step) else STOPPED
        last = None if np.isnan(score) else score
        write_status(folder, state, step=step, score=last, metric=run.headline, num_classes=run.network.num_classes)
        print_results(folder, step, config.optim.max_steps, state == FINISHED)
    distributed.wait_for_all()  # the launcher ends all with the first
    distributed.leave_world()
    if stopping.received:
        sys.exit(128 + stopping.received)
    return score


def train_steps(run: Run, stopping: StopSignal, logger: RunLogger | None) -> tuple[int, float]:
    """Trains to the last step, or until asked to stop; returns the steps done and the last validation score."""
    config, step = run.config, run.first_step
    meter = Meter(run.world.size, step * config.optim.batch_size, run.meter_state)
    score, validated = distributed.gather((logger.last_score(), logger.has_validation(step)) if logger else None)[0]
    if is_due(step, config.validate_every_steps, config) and not validated:
        score = validate_and_log(run, step, meter, logger, stopping)  # the run was stopped before or in this validation
        if score is None:
            return step, float("nan")

    steps = train_batches(
        config.data,
        run.train_table,
        run.share(),
        run.skipped,
        seed=config.seed,
        first_step=step,
        last_step=config.optim.max_steps,
    )
    profiled = config.profile_steps if run.world.is_main else 0
    with profiler(profiled, Path(config.output_dir) / TRACE_FOLDER) as profile:
        for step, passes in enumerate(meter.timed(steps), run.first_step + 1):
            if logger and step == run.first_step + 1:
                logger.show_clips(step, passes[0].clips)
            lr = set_learning_rate(run, step - 1)
            # Dropout is a function of (seed, rank, step), so a resumed run needs no saved random state.
            torch.manual_seed(int(np.random.SeedSequence([config.seed, run.world.rank, step]).generate_state(1)[0]))
            result = train_step(run, passes)
            profile.step()

            stop = meter.add(result, passes, step, run.train_table, run.skipped, stopping.received)
            too_bad = meter.too_many_bad(config.data.max_bad_share, len(run.train_table))
            validating = is_due(step, config.validate_every_steps, config)  # which may take long, so it saves first
            saving = is_due(step, config.checkpoint_every_steps, config) or validating or stop
            logging = is_due(step, config.log_every_steps, config)
            if logging or too_bad:
                values = meter.take(lr, run.timer)
                if logger:
                    logger.log("train", step, values)
                    logger.log_gains(step, block_gains(run.network))
            if logging or saving or too_bad:
                failures = meter.take_failures()
                if logger:
                    logger.log_failures(failures)
            if too_bad:
                ledger = Path(config.output_dir) / LEDGER_FILE
                raise RunFailed(f"{too_bad}; {ledger} names each with its reason.")
            paused = time.monotonic()
            if logger:
                logger.advance()
                if saving:
                    logger.sync()
                    save_step(Path(config.output_dir), state_of(run, step, meter), config.keep)
            if validating and not stop:
                found = validate_and_log(run, step, meter, logger, stopping)
                score, stop = (score, True) if found is None else (found, False)
            meter.exclude(time.monotonic() - paused)
            if stop:
                end_workers()
                break
    return step, score


def is_due(step: int, every: int, config: TrainConfig) -> bool:
    """Returns whether what is done every so many steps, and after the last, is done after this one."""
    return step > 0 and (step % every == 0 or step == config.optim.max_steps)


def train_step(run: Run, passes: list[Batch]) -> StepResult:
    """Updates the weights once, from the gradients of all passes."""
    run.model.train()
    run.optimizer.zero_grad(set_to_none=True)
    run.timer.start()
    total, right = 0.0, 0.0
    for i, batch in enumerate(passes, 1):
        # Gradients travel between processes with the last pass.
        alone = run.model.no_sync() if run.world.size > 1 and i < len(passes) else nullcontext()
        with alone:
            with run.autocast():
                logits = run.model(run.normalize(batch.clips))  # (N, K)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            targets = batch.targets.to(run.world.device, non_blocking=True)
            if run.train_table.multi_label:  # targets (N, K) bool
                loss = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype)) / len(passes)
            else:
                loss = F.cross_entropy(logits, targets) / len(passes)
                right += (logits.detach().argmax(1) == targets).double().mean() / len(passes)
            run.timer.lap("forward")
            run.scaler.scale(loss).backward()
        total += loss.detach()
        run.timer.lap("backward")
    run.scaler.unscale_(run.optimizer)
    allowed = run.config.optim.max_grad_norm or float("inf")
    norm = torch.nn.utils.clip_grad_norm_(run.network.parameters(), allowed)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.scaler.is_enabled() and run.scaler.get_scale() < SMALLEST_SCALE:
        raise RunFailed(
            f"float16: gradients are not finite even with the loss scaled by {run.scaler.get_scale():g}; nothing is "
            "learnt. Choose precision=bfloat16 or float32."
        )
    loss, norm, right = torch.stack([total.double(), norm.double(), torch.as_tensor(right).to(total.device)]).tolist()
    right = None if run.train_table.multi_label else right
    return StepResult(loss, norm, right, updated=np.isfinite(norm) or not run.scaler.is_enabled())


def validate_and_log(run: Run, step: int, meter: Meter, logger: RunLogger | None, stopping: StopSignal) -> float | None:
    """Validates the weights after a step, keeps them if they are the best so far, and returns top-1, or mAP.

    Asked to stop meanwhile, it gives up and returns None. The line of metrics comes last: a run that was stopped before
    it validates again.
    """
    distributed.copy_from_main(list(run.network.buffers()))  # each process updated its batch norms with its own clips
    folder, precise, started = Path(run.config.output_dir), None, time.monotonic()
    if run.config.precise_bn_steps:
        precise = statistics_after(run, step, stopping)
    with using(run.network, precise or {}):
        values = validate(run, stopping)
    if values is None:
        return None
    if logger:
        if precise:
            save_step(folder, state_of(run, step, meter, precise), run.config.keep)
        if values[headline(values)] > logger.best_score():
            name_best(folder, step)
        logger.log("val", step, values | {"seconds": time.monotonic() - started})
    return values[headline(values)]


@torch.inference_mode()
def validate(run: Run, stopping: StopSignal | None = None) -> dict[str, float] | None:
    """Returns top-1 and top-5, or mAP, on the centre clips; every video counts once, an undecodable one as wrong.

    None if a process was asked to stop.
    """
    run.network.eval()
    table, world = run.inputs.val_table, run.world
    found, bad = {}, []  # logits of each video; those that cannot be decoded
    clips_a_pass = preflight.clips_a_pass(run.config)
    for batch in center_batches(run.config.data, table, clips_a_pass, rank=world.rank, size=world.size):
        if stopping and stopping.received:
            break
        bad += [failure.video for failure in batch.failures]
        if len(batch.videos):
            with run.autocast():
                logits = run.network(run.normalize(batch.clips))
            found.update(zip(batch.videos.tolist(), logits.float().cpu().numpy(), strict=True))
    if any(distributed.gather(bool(stopping and stopping.received))):
        return None
    scores, num_bad = np.full((len(table), run.network.num_classes), np.nan, np.float32), 0
    for part, missing in distributed.gather((found, bad)):
        num_bad += len(missing)
        for video, values in part.items():
            scores[video] = values
    counts = {"num_videos": len(table), "num_undecodable": num_bad}
    if table.multi_label:
        official = without_actions_last(scores, table.targets)
        return {"map": mean_average_precision(official, table.targets), **counts}
    ranks = target_ranks(scores, table.targets)
    return {"top1": topk_accuracy(ranks, 1), "top5": topk_accuracy(ranks, min(5, scores.shape[1])), **counts}


def statistics_after(run: Run, step: int, stopping: StopSignal) -> dict[str, torch.Tensor]:
    """Returns precise statistics of the batch norms, over the clips of the steps that follow this one."""
    place = {"first_step": step, "last_step": step + run.config.precise_bn_steps}
    steps = train_batches(run.config.data, run.train_table, run.share(), run.skipped, seed=run.config.seed, **place)
    # Synchronised batch norm talks to the other processes, so all stop before the same step.
    steps = takewhile(lambda _: not any(distributed.sum_over_ranks([stopping.received])), steps)
    with run.autocast():
        return precise_statistics(run.network, (run.normalize(batch.clips) for passes in steps for batch in passes))


def set_learning_rate(run: Run, step: int) -> float:
    optim = run.config.optim
    lr = lr_at(
        step,
        lr=optim.lr * optim.batch_size / optim.lr_batch_size,
        max_steps=optim.max_steps,
        schedule=optim.schedule,
        milestones=optim.milestones,
        warmup_steps=optim.warmup_steps,
    )
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    return lr


def try_steps(run: Run) -> float:
    """Trains a few steps, says what the run would cost, and leaves nothing behind."""
    if run.world.is_main:
        print(to_yaml(run.config))
        print_lines(run)
    distributed.on_main(preflight.print_plan, run.config, run.inputs, run.world, run.dtype)
    # Loaded here and not by workers, whose first batches come together: what one batch costs is seen.
    steps = train_batches(
        dataclasses.replace(run.config.data, num_workers=0),
        run.train_table,
        run.share(),
        run.skipped,
        seed=run.config.seed,
        first_step=run.first_step,
        last_step=run.first_step + DRY_STEPS,
    )
    loading, computing, started = [], [], time.monotonic()
    for passes in steps:
        loaded = time.monotonic()
        train_step(run, passes)
        loading.append(loaded - started)
        started = time.monotonic()
        computing.append(started - loaded)
    if run.world.is_main:
        trial = preflight.Trial(np.mean(loading[1:]).item(), np.mean(computing[1:]).item(), DRY_STEPS - 1)
        preflight.print_trial(run.config, run.inputs, run.world, trial)
    distributed.wait_for_all()
    distributed.leave_world()
    return float("nan")


def print_lines(run: Run) -> None:
    for line in preflight.describe(run.config, run.inputs, run.world, run.dtype, run.notes):
        print(line, flush=True)


if __name__ == "__main__":
    main()
