"""Part D: the training program's own step: its speed, what holds it up, and other ways of doing the same."""

import json
import math
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from benchmark_model import plain_step
from torch import nn

from gpu_checks.findings import Findings
from gpu_checks.recorded import check_recorded
from gpu_checks.running import module_command, module_environment
from gpu_checks.step_measuring import (
    NUM_CLASSES,
    SMALL,
    kernel_times,
    loss_of,
    make_learner,
    matmul_rate,
    milliseconds_a_step,
    one_step,
    pinned_batch,
    step_config,
    step_flops,
    synchronisations,
)
from nlvideo.models.batch_norm import VideoBatchNorm3d
from nlvideo.models.kernels import has_own_batch_norm
from nlvideo.runtime.convolutions import varying_shapes
from nlvideo.runtime.distributed import World
from nlvideo.training.memory import step_memory
from nlvideo.training.memory_trial import free_cache

LEAST_BUSY, MOST_OF_PLAN, MOST_BATCH_NORM, LEAST_AHEAD = 85, 1.5, 25, 1.5
COMPILE_SECONDS = 90
RECORDED = "cuda_graph=true"


class Case(NamedTuple):
    """A network and the clips of its step."""

    name: str
    overrides: tuple[str, ...]
    clips: int


class Variant(NamedTuple):
    """Another way of doing a case's step."""

    name: str
    context: Callable[[], AbstractContextManager] = nullcontext
    dtype: torch.dtype = torch.bfloat16
    overrides: tuple[str, ...] = ()


R50 = Case("R50 NL5, 8 clips", ("experiment=i3d_r50_nl5",), 8)
FROZEN = Case("R50 NL5 frozen norm, 2 clips of 128", ("experiment=i3d_r50_nl5_128x1",), 2)
CASES = (
    R50,
    Case("R50 NL5, 32 clips", R50.overrides, 32),
    Case("R101 NL5, 8 clips", ("experiment=i3d_r101_nl5",), 8),
    Case("R101 NL5, 32 clips", ("experiment=i3d_r101_nl5",), 32),
    FROZEN,
)
ON_CPU = Case("small R50 NL5, 2 clips", tuple(SMALL), 2)


def run(found: Findings, _folder: Path) -> None:
    rate = matmul_rate(found.device)
    found.show("matrix product, bfloat16", rate, "TFLOP/s")
    if not found.cuda:
        run_on_cpu(found)
        return
    base = measure(found, R50, rate)
    recorded = measure_recorded(found, R50, base)
    if recorded:
        compare_with_plain(found, R50, recorded)
    check_recorded(found)
    if found.quick:
        return
    frozen = None
    for case in CASES[1:]:
        milliseconds = measure(found, case, rate)
        measure_recorded(found, case, milliseconds)
        frozen = milliseconds if case is FROZEN else frozen
    if base:
        for variant in variants():
            compare(found, R50, variant, base)
    if frozen:
        compare(found, FROZEN, Variant("PyTorch's batch norm", pytorchs_batch_norm), frozen)
        compare(found, FROZEN, Variant("norms that train", overrides=("model.frozen_bn=false",)), frozen)
    if base:
        compile_step(found, R50, base)


def variants() -> Iterator[Variant]:
    yield Variant("cudnn.benchmark off", varying_shapes)
    yield Variant("PyTorch's batch norm", pytorchs_batch_norm)
    yield Variant("float16", dtype=torch.float16)


def measure(found: Findings, case: Case, rate: float) -> float | None:
    """Notes what a case's step costs, and returns its milliseconds; None if it failed."""
    milliseconds = None
    with found.case(case.name):
        config = step_config(case.clips, *case.overrides)
        plan = step_memory(config, NUM_CLASSES, World(0, 0, 1, found.device)).total
        flops = step_flops(config) * case.clips
        learner = make_learner(config, found.device, torch.bfloat16)
        step = one_step(learner, pinned_batch(learner))
        milliseconds_a_step(step, found.device, 1)  # the first ones time convolutions and grow the memory
        torch.cuda.reset_peak_memory_stats()
        milliseconds = milliseconds_a_step(step, found.device, 5 if found.quick else 10, warm_up=1)
        peak = torch.cuda.max_memory_allocated()
        learner.timer.take()
        found.show(f"{case.name}: a step", milliseconds, "ms")
        found.show(f"{case.name}: speed", f"{1000 * case.clips / milliseconds:.0f} clips/s, "
                   f"{flops / milliseconds / 1e9:.0f} TFLOP/s")  # fmt: skip
        found.at_most(f"{case.name}: peak memory over the plan of {plan / 1e9:.1f} GB", peak / plan, MOST_OF_PLAN)
        found.at_most(
            f"{case.name}: host synchronisations beside the wait for the step before", synchronisations(step), 0
        )
        kernels = kernel_times(step, found.device)
        assert kernels.busy is not None
        found.show(f"{case.name}: kernels over wall time", 100 * kernels.busy / milliseconds, "%")
        found.show(f"{case.name}: convolutions of the kernels' time", 100 * kernels.convolution, "%")
        found.at_most(f"{case.name}: batch norm of the kernels' time", 100 * kernels.batch_norm, MOST_BATCH_NORM, "%")
        reached = 100 * flops / kernels.busy / 1e9 / rate
        found.show(f"{case.name}: of the matrix product's rate, in kernels", reached, "%")
    free_cache()
    return milliseconds


def measure_recorded(found: Findings, case: Case, base: float | None) -> float | None:
    """Notes what a case's step costs with recorded passes, beside `base`, and returns its milliseconds."""
    check, milliseconds = f"{case.name}, cuda_graph=true", None
    with found.case(check):
        learner = make_learner(step_config(case.clips, *case.overrides, RECORDED), found.device, torch.bfloat16)
        step = one_step(learner, pinned_batch(learner))
        milliseconds = milliseconds_a_step(step, found.device, 10)
        learner.timer.take()
        times = f", {base / milliseconds:.2f} times as fast" if base else ""
        found.show(f"{check}: a step", f"{milliseconds:.1f} ms, {1000 * case.clips / milliseconds:.0f} clips/s{times}")
        busy = kernel_times(step, found.device).busy
        assert busy is not None
        found.at_least(f"{check}: kernels over wall time", 100 * busy / milliseconds, LEAST_BUSY, "%")
    free_cache()
    return milliseconds


def compare(found: Findings, case: Case, variant: Variant, base: float) -> None:
    """Notes the time of a case's step done in another way, over that of the program's own."""
    check = f"{case.name}, {variant.name}"
    with found.case(check):
        trains = variant.context is pytorchs_batch_norm and case is not FROZEN
        if trains and not has_own_batch_norm(found.device, variant.dtype):
            found.skip(check, "batch norms that train are PyTorch's already")
            return
        config = step_config(case.clips, *case.overrides, *variant.overrides)
        learner = make_learner(config, found.device, variant.dtype)
        step = one_step(learner, pinned_batch(learner))
        with variant.context():
            milliseconds = milliseconds_a_step(step, found.device, 8)
        learner.timer.take()
        found.show(check, f"{milliseconds:.1f} ms, {milliseconds / base:.2f} times the default's")
    free_cache()


def pytorchs_batch_norm() -> AbstractContextManager:
    """Returns a context in which batch norms, frozen or not, are PyTorch's: 5 dimensions, no affine map."""
    return patch.object(VideoBatchNorm3d, "forward", nn.BatchNorm3d.forward)


def compare_with_plain(found: Findings, case: Case, base: float) -> None:
    """Notes how far a step of `base` ms is ahead of a plain loop with the matrices of all pairs, in both dtypes."""
    config = step_config(case.clips, *case.overrides)
    for name, dtype in (("bfloat16 by autocast", torch.bfloat16), ("float32", torch.float32)):
        check = f"{case.name}: ahead of a plain loop in {name}"
        with found.case(check):
            plain = plain_step(config, pinned_batch(make_learner(config, found.device, torch.float32)))
            with torch.autocast(found.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                milliseconds = milliseconds_a_step(plain, found.device, 5 if found.cuda else 2, warm_up=2)
            ahead = milliseconds / base
            if dtype == torch.bfloat16 or not found.cuda:
                found.speed(check, ahead, least=LEAST_AHEAD, unit="times")
            else:
                found.show(check, ahead, "times")
        free_cache()
        if found.quick:
            return


def compile_step(found: Findings, case: Case, base: float) -> None:
    """Notes the time of the compiled step, measured in a process that is given up where compiling takes too long."""
    check = f"{case.name}, compiled"
    seconds = min(COMPILE_SECONDS, found.seconds_left - 10)
    if seconds < 30:
        found.skip(check, "no time left")
        return
    with found.case(check):
        command = module_command("compiled_step", str(case.clips), *case.overrides)
        done = subprocess.run(command, env=module_environment(), capture_output=True, text=True, timeout=seconds)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        measured = json.loads(done.stdout.splitlines()[-1])
        found.show(check, f"{measured['ms']:.1f} ms, {measured['ms'] / base:.2f} times the default's, "
                   f"after {measured['seconds']:.0f} s of compiling")  # fmt: skip


def run_on_cpu(found: Findings) -> None:
    config = step_config(ON_CPU.clips, *ON_CPU.overrides)
    milliseconds = None
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        check = f"{ON_CPU.name}, {name}"
        with found.case(check):
            learner = make_learner(config, found.device, dtype)
            batch = pinned_batch(learner)
            milliseconds_here = milliseconds_a_step(one_step(learner, batch), found.device, 2, warm_up=1)
            found.show(f"{check}: a step", milliseconds_here, "ms")
            found.equal(f"{check}: its loss is finite", math.isfinite(loss_of(learner, batch)), True)
            if dtype == torch.float32:
                milliseconds = milliseconds_here
                kernels = kernel_times(one_step(learner, batch), found.device, 1)
                found.show(f"{check}: convolutions of its time", 100 * kernels.convolution, "%")
                found.show(f"{check}: batch norm of its time", 100 * kernels.batch_norm, "%")
    if milliseconds and not found.quick:
        compare_with_plain(found, ON_CPU, milliseconds)
        compare(found, ON_CPU, Variant("PyTorch's batch norm", pytorchs_batch_norm, torch.float32), milliseconds)
    found.skip("synchronisations, kernels over wall time, peak memory", "they are a GPU's")
    found.skip(f"{', '.join(case.name for case in CASES)}", "a CPU takes minutes for them")
    found.skip("cudnn.benchmark, compiled", "the first is a GPU's; compiling takes minutes on a CPU")
