"""Part E: whole runs of the quickstart: stopped, resumed, evaluated, and with the options that GPUs are used with."""

import math
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gpu_checks.findings import Findings
from gpu_checks.running import module_environment
from nlvideo.evaluation.result_files import read_results
from nlvideo.training.metrics_file import METRICS_FILE, read_metrics
from nlvideo.training.run_status import read_status

QUICKSTART = [
    "experiment=quickstart",
    "data.synthetic={num_train: 160, num_val: 40}",
    "optim.max_steps=40",
    "optim.warmup_steps=5",
    "log_every_steps=1",
    "checkpoint_every_steps=20",
    "validate_every_steps=40",
]
SMALL = [  # on a CPU
    *QUICKSTART,
    "data.synthetic={num_train: 24, num_val: 8, num_frames: 24, height: 48}",
    "model.width=4",
    "block=nl1",
    "data.num_frames=4",
    "data.scale_range=[32,40]",
    "data.crop_size=32",
    "data.test={num_clips: 2, num_crops: 3, short_side: 32, crop_size: 32}",
    "optim.batch_size=8",
    "precision=float32",
]
OPTIONS = {
    "float16": ["precision=float16"],
    "accumulate": ["optim.accumulate=4"],
    "precise_bn": ["precise_bn_steps=4"],
    "cuda_graph": ["cuda_graph=true"],
    "compile": ["compile=true"],
}
OF_A_GPU = ("cuda_graph", "compile")
SHORT = ["optim.max_steps=15", "validate_every_steps=15"]
STOP_AFTER = 5  # steps
STOP_SECONDS, RESUMED_LOSS = 10, 1e-2
STOPPED = 128 + signal.SIGUSR1


def run(found: Findings, folder: Path) -> None:
    runs = Runs(found, folder, QUICKSTART if found.cuda else SMALL)
    with found.case("quickstart"):
        found.equal("quickstart: exit code", runs.finish("whole"), 0)
        losses = runs.losses("whole")
        quarter = len(losses) // 4
        first, last = (statistics.fmean(part) for part in (losses[:quarter], losses[-quarter:]))
        found.at_most(f"quickstart: its last losses over its first, {first:.2f}", last / first, 1)
    # Compiling takes most of a minute, beside the others; the data has been written by now.
    compiled = runs.start("compile", *SHORT, *OPTIONS["compile"]) if found.cuda else None
    with found.case("quickstart, stopped by SIGUSR1"):
        check_stop(found, runs)
    with found.case("quickstart, resumed"):
        check_resume(found, runs)
    with found.case("quickstart, evaluated"):
        check_evaluation(found, runs)
    options = OPTIONS if found.cuda else [name for name in OPTIONS if name not in OF_A_GPU]
    shorts = {name: runs.start(name, *SHORT, *OPTIONS[name]) for name in options if name != "compile"}
    for name, process in (shorts | ({"compile": compiled} if compiled else {})).items():
        with found.case(f"15 steps, {name}"):
            check_short(found, runs, name, process)
    if not found.cuda:
        found.skip("15 steps, compile", "compiling takes minutes on a CPU")
        found.skip("15 steps, cuda_graph", "there is no GPU")


class Runs:
    """Trainings of one config in folders below another, each a process of its own."""

    def __init__(self, found: Findings, folder: Path, overrides: Sequence[str]):
        self.found = found
        self.folder, self.overrides = folder, [*overrides, f"data.root={folder / 'videos'}"]

    def start(self, name: str, *more: str) -> subprocess.Popen:
        return self.program("train", name, *self.overrides, f"output_dir={self.folder / name}", *more)

    def program(self, program: str, name: str, *overrides: str) -> subprocess.Popen:
        """Starts nlvideo-train or nlvideo-evaluate as a module, which needs no installed script."""
        command = [sys.executable, "-m", f"nlvideo.{program}", *overrides]
        print(f"{name}: {' '.join(command)}", flush=True)
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(command, env=module_environment(), stdout=log, stderr=log, cwd=self.folder)

    def finish(self, name: str, *more: str) -> int:
        return self.ended(name, self.start(name, *more))

    def ended(self, name: str, process: subprocess.Popen) -> int:
        """Waits for a process and returns its exit code; shows its last lines where it is not 0.

        Raises:
            RuntimeError: it takes more time than the part has left.
        """
        try:
            code = process.wait(max(1.0, self.found.seconds_left - 10))
        except subprocess.TimeoutExpired:
            process.kill()
            raise RuntimeError(f"{name} had not ended when the part's time was nearly over") from None
        if code:
            log = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()
            print("\n".join([f"{name} ended with {code}:", *log[-15:]]), flush=True)
        return code

    def losses(self, name: str) -> list[float]:
        """Returns the training loss of each step that has been logged."""
        file = self.folder / name / METRICS_FILE
        return [row["loss"] for row in read_metrics(file.parent) if row["split"] == "train"] if file.exists() else []


def check_stop(found: Findings, runs: Runs) -> None:
    """Stops a run of the same config by the signal that Slurm sends before the time is over."""
    process = runs.start("stopped")
    while len(runs.losses("stopped")) < STOP_AFTER and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    started = time.monotonic()
    code = runs.ended("stopped", process)
    found.equal("stopped by SIGUSR1: exit code", code, STOPPED)
    found.speed("stopped by SIGUSR1: seconds to its end", time.monotonic() - started, most=STOP_SECONDS, unit="s")


def check_resume(found: Findings, runs: Runs) -> None:
    """Resumes the stopped run and compares its first loss with that of the run that was not stopped."""
    status = read_status(runs.folder / "stopped")
    if status.get("state") != "stopped":
        found.skip("resumed", f"no run was stopped: {status}")
        return
    done = status["step"]
    found.equal("resumed: exit code", runs.finish("stopped", "resume=auto"), 0)
    whole, resumed = runs.losses("whole"), runs.losses("stopped")
    found.equal("resumed: steps in its log", len(resumed), len(whole))
    difference = abs(resumed[done] - whole[done]) / whole[done]
    found.at_most(f"resumed: loss of step {done + 1} against the whole run's", difference, RESUMED_LOSS)


def check_evaluation(found: Findings, runs: Runs) -> None:
    checkpoint, output = runs.folder / "whole/checkpoint.pt", runs.folder / "evaluation"
    started = time.monotonic()
    overrides = [f"checkpoint={checkpoint}", f"output_dir={output}", "report=false"]
    overrides += [] if found.cuda else ["num_threads=1"]  # more would wait for each other on a busy machine
    code = runs.ended("evaluation", runs.program("evaluate", "evaluation", *overrides))
    found.equal("evaluated: exit code", code, 0)
    found.show("evaluated: seconds, with the start", time.monotonic() - started, "s")
    found.show("evaluated: top-1", 100 * read_results(output).result["top1"], "%")


def check_short(found: Findings, runs: Runs, name: str, process: subprocess.Popen) -> None:
    found.equal(f"15 steps, {name}: exit code", runs.ended(name, process), 0)
    losses = runs.losses(name)
    finite = len(losses) == 15 and all(map(math.isfinite, losses))
    found.equal(f"15 steps, {name}: 15 finite losses", finite, True)
    found.show(f"15 steps, {name}: first and last loss", f"{losses[0]:.3f}, {losses[-1]:.3f}")
