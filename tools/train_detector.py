"""Trains torchvision's Mask, Keypoint or Faster R-CNN with non-local or global context blocks on data in COCO's format.

    python tools/write_shapes.py shapes     # a small set in COCO's layout
    python tools/train_detector.py --coco shapes --backbone thin --train-bn --min-size 112 --batch-size 8 \\
        --max-steps 1200 --lr 0.04 --block nl1 --output outputs/shapes_nl1
    torchrun --nproc_per_node=8 tools/train_detector.py --coco COCO --weights resnet50.pth --block nl1 --output DIR

The schedule is Detectron's 1x: 90,000 steps of 16 images at 0.02, divided by ten at 60,000 and 80,000; another
--batch-size scales steps and rate. The same command with --resume continues a run, on CPUs to the same weights.
"""

import argparse
import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import nlvideo.runtime.threads  # noqa: F401, before torch is loaded

# isort: split
import torch
from detection import networks
from detection.coco_data import CocoSet, Sample, TrainingImages, coco_places, micro_batches
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection import FasterRCNN

from nlvideo.models.cost import num_params
from nlvideo.runtime import distributed, files, folder_lock, gradients, precision, signals
from nlvideo.runtime.errors import RunFailed, UserError, UserFileExistsError, reporting_errors
from nlvideo.training import checkpoint_writer, metrics_file, optim, resume, run_log, run_status, step_files
from nlvideo.weights.checkpoint_file import NEWEST_FILE

STEPS, BATCH_SIZE, LR, WARMUP_STEPS = 90_000, 16, 0.02, 500  # Detectron's 1x schedule
MILESTONES = (60_000 / STEPS, 80_000 / STEPS)
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
MAX_BROKEN = 0.05  # share of broken pictures, of which more end a run
# A resumed run may change these, because the result is the same run.
FREE_KEYS = "output resume workers log_every checkpoint_every coco images annotations accumulate".split()


class Run(NamedTuple):
    """What a training process works with."""

    given: argparse.Namespace  # the command line, completed
    world: distributed.World
    data: TrainingImages
    network: FasterRCNN
    model: nn.Module  # the network, wrapped where several ranks share the gradients
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    dtype: torch.dtype  # that the network computes in
    first_step: int


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--coco", metavar="DIR", help="with train2017/ and annotations/")
    add("--images", metavar="DIR", help="of pictures, instead of --coco")
    add("--annotations", metavar="FILE", help="in COCO's format, instead of --coco")
    add("--task", choices=networks.TASKS, default="masks")
    add("--backbone", choices=networks.BACKBONES, default="resnet50")
    add("--block", choices=networks.BLOCKS, nargs="+", default=["none"])
    add("--ratio", type=int, default=16, help="of global context blocks; the paper has 16 and 4")
    add("--weights", metavar="FILE", help="ImageNet ResNet or detector to start from; freezes conv1 and res2")
    add("--new-head", action="store_true", help="do not take over a detector's layers for its own classes")
    add("--train-bn", action="store_true", help="train batch norm (over all ranks on GPUs) instead of freezing it")
    add("--min-size", type=int, nargs="+", metavar="PIXELS", help="short side (default: 800; keypoints 640 to 800)")
    add("--max-size", type=int, default=1333, metavar="PIXELS", help="long side at most")
    add("--batch-size", type=int, default=BATCH_SIZE, help="images of a step, over all ranks")
    add("--accumulate", type=int, default=1, help="micro-batches of a step on each rank")
    add("--max-steps", type=int, help=f"(default: {STEPS} * {BATCH_SIZE} / batch size)")
    add("--lr", type=float, help=f"(default: {LR} * batch size / {BATCH_SIZE})")
    add("--precision", choices=("float32", "bfloat16", "float16", "auto"), default="float32")
    add("--seed", type=int, default=1)
    add("--output", default="outputs/detector", metavar="DIR")
    add("--resume", action="store_true", help="the run that the folder holds, if it holds one")
    add("--workers", type=int, default=2, help="processes that load pictures, for each rank")
    add("--log-every", type=int, default=20, metavar="STEPS")
    add("--checkpoint-every", type=int, default=1000, metavar="STEPS")
    return parser.parse_args()


def completed(given: argparse.Namespace) -> argparse.Namespace:
    """Returns the command line with its schedule scaled to its batch size; raises UserError for what cannot be."""
    if (given.coco is None) == (given.images is None) or (given.images is None) != (given.annotations is None):
        raise UserError("Give either --coco, or --images and --annotations.")
    if given.coco:
        given.annotations, given.images = map(str, coco_places(Path(given.coco), "train", given.task))
    for name, value in vars(given).items():
        least = {"seed": 0, "workers": 0, "lr": 1e-12, "max_size": 32}.get(name, 1)
        if type(value) in (int, float) and not least <= value < 2**63:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least} and below 2^63.")
    given.min_size = given.min_size or ([*range(640, 801, 32)] if given.task == "keypoints" else [800])
    if not all(32 <= size <= given.max_size for size in given.min_size):
        raise UserError(f"--min-size {given.min_size}: must be from 32 to --max-size {given.max_size}.")
    given.max_steps = given.max_steps or STEPS * BATCH_SIZE // given.batch_size
    given.lr = given.lr or LR * given.batch_size / BATCH_SIZE
    return given


def train(given: argparse.Namespace) -> None:
    """Trains in this process, together with the other ranks if there are any; exits if a signal stopped it."""
    world, folder = distributed.init_world(), Path(given.output)
    with folder_lock.holding(folder):
        run = set_up(given, world)
        noting = run_status.noting_failure(folder if world.is_main else None)
        with signals.StopSignal() as stopping, noting, ExitStack() as stack:
            step = train_steps(run, stopping, open_log(run, stack) if world.is_main else None)
        if world.is_main:
            finished = step >= given.max_steps
            run_status.write_status(folder, run_status.FINISHED if finished else run_status.STOPPED, step=step)
            print(f"checkpoint   {folder / NEWEST_FILE}, step {step} of {given.max_steps}")
            data = "" if given.coco else " --images DIR --annotations FILE"
            print(f"evaluate     python tools/evaluate_detector.py {folder}{data}" if finished else "go on: --resume")
        distributed.leave_together()
    if stopping.received:
        raise SystemExit(128 + stopping.received)


def set_up(given: argparse.Namespace, world: distributed.World) -> Run:
    """Reads the data, builds the network with its weights, new or resumed, and joins the ranks."""
    folder, passes = Path(given.output), world.size * given.accumulate
    distributed.on_main(files.check_writable, folder, "--output")
    distributed.check_same(vars(given), "command line")
    if given.batch_size % passes:
        raise UserError(f"--batch-size {given.batch_size}: not a multiple of {world.size} ranks x --accumulate.")
    given.micro_batch = given.batch_size // passes  # the losses are those of micro-batches, so they belong to the run
    dtype = precision.resolve_precision(given.precision, world.device)
    coco = distributed.together(CocoSet, Path(given.annotations), Path(given.images), given.task)
    data = distributed.together(TrainingImages, coco, given.seed)
    torch.manual_seed(given.seed)
    network = distributed.together(networks.build_detector, network_settings(vars(given), coco))
    distributed.on_main(folder_lock.lock_folder, folder)
    found, origin = distributed.on_main(find_checkpoint, given, coco), "random weights"
    origin += "" if given.train_bn else " without batch norm, as it is frozen: --weights or --train-bn would help"
    if found:
        network.load_state_dict(found["model"])
        origin = f"resumed after step {found['step']}"
    elif given.weights:
        origin = distributed.together(networks.load_weights, network, Path(given.weights), given.new_head)
    if world.is_main:
        size = f"{num_params(network) / 1e6:.2f} million parameters"
        print(f"data         {data.summary}; {len(coco.names)} categories")
        print(f"network      {given.backbone}, blocks: {', '.join(given.block)}; {size}; weights: {origin}", flush=True)
    networks.prepare(network, frozen_start=given.weights is not None)
    network = network.to(world.device)
    if given.train_bn and world.size > 1 and world.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    optimizer = torch.optim.SGD(optim.param_groups(network, WEIGHT_DECAY), given.lr, MOMENTUM)
    scaler = torch.amp.GradScaler(world.device.type, enabled=dtype == torch.float16)
    if found:
        optimizer.load_state_dict(found["optimizer"])
        scaler.load_state_dict(found["scaler"])
    model = gradients.share_gradients(network, world, time.monotonic, lambda *_: None)
    return Run(given, world, data, network, model, optimizer, scaler, dtype, found["step"] if found else 0)


def network_settings(config: Mapping[str, Any], coco: CocoSet) -> networks.NetworkSettings:
    """Returns the network of a command line, or of a checkpoint's config, for these data."""
    own = {key: config[key] for key in networks.NetworkSettings._fields if key in config}
    return networks.NetworkSettings(**own, num_classes=len(coco.names), num_keypoints=len(coco.keypoints))


def find_checkpoint(given: argparse.Namespace, coco: CocoSet) -> dict[str, Any] | None:
    """Returns the newest whole checkpoint of the run that the folder holds, None for a new run; called on rank 0."""
    folder = Path(given.output)
    names = (NEWEST_FILE, step_files.STEPS_FOLDER, metrics_file.METRICS_FILE)
    held = [name for name in names if (folder / name).exists()]
    if held and not given.resume and not distributed.is_restarted():
        raise UserFileExistsError(f"--output {folder} holds a run already ({', '.join(held)}): --resume continues it.")
    found = step_files.newest_checkpoint(folder)
    if found is None:
        return None
    changed = resume.config_differences(found.content["config"], vars(given))
    changed = [line for line in changed if line.partition(":")[0] not in FREE_KEYS]
    changed += [f"{coco.annotations} has changed"] if found.content["list_sha256"] != coco.sha256 else []
    if changed:
        raise UserError(f"{folder} holds another run than the one asked for: {'; '.join(changed)}.")
    return found.content


def state_of(run: Run, step: int) -> dict[str, Any]:
    """Returns what a checkpoint holds; the position in the data and all draws are functions of the step."""
    coco, parts = run.data.coco, {"model": run.network, "optimizer": run.optimizer, "scaler": run.scaler}
    state = {name: part.state_dict() for name, part in parts.items()} | {"step": step, "config": vars(run.given)}
    return {**state, "classes": coco.names, "keypoints": coco.keypoints, "list_sha256": coco.sha256}


def open_log(run: Run, stack: ExitStack) -> run_log.RunLog:
    """Takes the run's folder for this process and returns its log; called on rank 0."""
    folder = Path(run.given.output)
    folder.mkdir(parents=True, exist_ok=True)
    folder_lock.lock_folder(folder)
    step_files.go_back_to(folder, run.first_step)
    (folder / run_status.STATUS_FILE).unlink(missing_ok=True)
    checkpoints = stack.enter_context(checkpoint_writer.CheckpointWriter(folder, keep=2))
    shown = ("loss", "lr", "images_per_second")
    return stack.enter_context(run_log.RunLog(folder, run.first_step, run.given.max_steps, checkpoints, shown=shown))


def train_steps(run: Run, stopping: signals.StopSignal, log: run_log.RunLog | None) -> int:
    """Trains to the last step, or until asked to stop; returns the steps done."""
    given, step, world = run.given, run.first_step, run.world
    per_step = world.size * given.accumulate  # micro-batches, of which each rank takes every world.size-th
    order = micro_batches(run.data, given.micro_batch)
    own = islice(order, step * per_step + world.rank, given.max_steps * per_step, world.size)
    workers = {"num_workers": given.workers, "worker_init_fn": signals.leave_to_parent}
    loader = DataLoader(run.data, batch_sampler=own, collate_fn=list, **workers)
    passes, totals, started = stopping.while_waiting(loader), dict[str, float](), time.monotonic()
    broken, images = 0.0, 0.0  # of all steps here
    for step in range(run.first_step + 1, given.max_steps + 1):
        samples = list(islice(passes, given.accumulate))
        if len(samples) < given.accumulate:
            if log and world.size == 1 and step - 1 > run.first_step:  # other ranks may be in this step already
                log.save(state_of(run, step - 1))
            raise RunFailed(f"Asked to stop, but the pictures of step {step} did not come; --resume continues the run.")
        rate = learning_rate(given, step - 1)
        optim.set_lr(run.optimizer, rate)
        counted, stop = reduce_step(run, train_step(run, samples), samples, step, stopping.received)
        totals = {key: totals.get(key, 0.0) + value for key, value in counted.items()}
        broken, images = broken + counted["broken_pictures"], images + counted["images"]
        if broken > max(10, MAX_BROKEN * images):
            raise RunFailed(f"{broken:.0f} of the last {images:.0f} pictures are broken.")
        stop = stop or step == given.max_steps
        if stop or step % given.log_every == 0:
            steps, speed = totals.pop("steps"), totals.pop("images") / (time.monotonic() - started)
            means = {key: value / steps for key, value in totals.items()}
            if log:
                log.log("train", step, {**means, "lr": rate, "images_per_second": speed})
            totals, started = {}, time.monotonic()
        if log and (stop or step % given.checkpoint_every == 0):
            log.save(state_of(run, step))
        if log:
            log.advance()
        if stop:
            break
    return step


def learning_rate(given: argparse.Namespace, step: int) -> float:
    """Returns the rate of a step, counted from 0."""
    milestones = [round(share * given.max_steps) for share in MILESTONES]
    warmup = min(WARMUP_STEPS * BATCH_SIZE // given.batch_size, given.max_steps // 10)
    schedule: dict[str, Any] = {"max_steps": given.max_steps, "milestones": milestones, "warmup_steps": warmup}
    return optim.lr_at(step, lr=given.lr, schedule="steps", **schedule)


def train_step(run: Run, passes: list[list[Sample]]) -> dict[str, Tensor]:
    """Updates the weights once and returns the mean of each loss; a micro-batch with a broken picture is left out."""
    device = run.world.device
    networks.set_training(run.network)
    run.optimizer.zero_grad(set_to_none=True)
    totals: dict[str, Any] = {}
    for i, samples in enumerate(passes, 1):
        # Gradients are averaged over ranks with the last micro-batch.
        alone = run.model.no_sync() if run.world.size > 1 and i < len(passes) else nullcontext()
        share = (not any(sample.broken for sample in samples)) / len(passes)
        with alone:
            pictures = [sample.picture.to(device) / 255 for sample in samples]
            targets = [{key: value.to(device) for key, value in sample.target.items()} for sample in samples]
            networks.seed_draws(run.network, [sample.seed for sample in samples])
            with precision.autocast(device, run.dtype):
                losses = run.model(pictures, targets)
            run.scaler.scale(share * sum(losses.values())).backward()
        totals = {name: totals.get(name, 0) + share * loss.detach() for name, loss in losses.items()}
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return totals


def reduce_step(
    run: Run, losses: Mapping[str, Tensor], passes: list[list[Sample]], step: int, received: int
) -> tuple[dict[str, float], bool]:
    """Returns losses and counts over all ranks, and whether one was asked to stop; raises RunFailed for a NaN loss."""
    broken = [sample.broken for samples in passes for sample in samples if sample.broken]
    for reason in broken:
        print(f"broken picture, its micro-batch is left out of step {step}: {reason}", flush=True)
    shares = [value / run.world.size for value in torch.stack([*losses.values()]).double().tolist()]
    counts = [len(broken), sum(map(len, passes)), received > 0]
    *means, num_broken, images, stop = distributed.sum_over_ranks([*shares, *counts])
    found = dict(zip(losses, means, strict=True))
    if not all(abs(value) < float("inf") for value in means):
        raise RunFailed(f"The loss of step {step} is not finite ({found}); a lower --lr may help.")
    return {"steps": 1, "images": images, "broken_pictures": num_broken, "loss": sum(means), **found}, stop > 0


if __name__ == "__main__":
    with reporting_errors():
        train(completed(read_arguments()))
