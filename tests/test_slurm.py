"""The job files, run with programs in place of SLURM's that write down how they were called."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

JOBS = Path(__file__).parent.parent / "scripts" / "slurm"
STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$CALLS"
if [ "$(basename "$0") $1" = "scontrol show" ]; then printf 'node-a\\nnode-b\\n'; exit; fi
case "$(basename "$0")" in
  srun | nlvideo-train)
    trap 'echo "$(basename "$0") got TERM" >> "$CALLS"; exit 143' TERM
    trap 'echo "$(basename "$0") got USR1" >> "$CALLS"; exit 138' USR1
    echo ready >> "$CALLS"
    for _ in $(seq "$STEPS"); do sleep 0.05; done
    exit "$CODE" ;;
  nlvideo-evaluate) case "$*" in *broken*) exit 1 ;; esac ;;
esac
"""


class Job:
    """A job file that runs with stubs, and the calls of these."""

    def __init__(self, folder: Path, name: str, *arguments: str, steps: int = 0, code: int = 0):
        bin_folder, self.calls = folder / "bin", folder / "calls.txt"
        bin_folder.mkdir()
        for stub in ("srun", "scontrol", "nlvideo-train", "nlvideo-evaluate"):
            (bin_folder / stub).write_text(STUB)
            (bin_folder / stub).chmod(0o755)
        environment = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "CALLS": str(self.calls), "STEPS": str(steps)}
        environment |= {"CODE": str(code), "SLURM_JOB_ID": "47", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}
        environment |= {"SLURM_JOB_NODELIST": "node-[a-b]"}
        self.process = subprocess.Popen(["bash", JOBS / name, *arguments], env=environment, stderr=subprocess.PIPE)

    def warn(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (self.calls.exists() and "ready" in self.calls.read_text()):
            time.sleep(0.02)
        os.kill(self.process.pid, signal.SIGUSR1)

    def end(self) -> tuple[int, list[str], str]:
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, self.calls.read_text().splitlines(), errors.decode()


@pytest.mark.parametrize("name", ["train.sbatch", "sweep.sbatch", "evaluate.sbatch"])
def test_the_job_files_are_bash(name):
    subprocess.run(["bash", "-n", JOBS / name], check=True)


def test_training_starts_one_agent_a_node_and_keeps_the_exit_code(tmp_path):
    code, calls, _ = Job(tmp_path, "train.sbatch", "experiment=a", "data.root=/d", code=3).end()
    assert code == 3 and not [call for call in calls if "requeue" in call]
    (started,) = [call for call in calls if call.startswith("srun")]
    assert "--nnodes=2 --nproc-per-node=4" in started and "--rdzv-endpoint=node-a:20047" in started
    assert started.endswith("-m nlvideo.train experiment=a data.root=/d resume=auto")


@pytest.mark.parametrize(
    ("name", "signal_name", "code"), [("train.sbatch", "srun got TERM", 143), ("sweep.sbatch", "got USR1", 138)]
)
def test_a_warned_job_stops_its_training_and_is_queued_again(tmp_path, name, signal_name, code):
    job = Job(tmp_path, name, "seed=1,2", steps=600)
    job.warn()
    ended, calls, _ = job.end()
    assert ended == code and any(signal_name in call for call in calls)
    assert calls[-1] == "scontrol requeue 47"


@pytest.mark.parametrize("name", ["train.sbatch", "sweep.sbatch"])
def test_a_finished_or_failed_training_is_not_queued_again(tmp_path, name):
    for code in (0, 1):
        folder = tmp_path / str(code)
        folder.mkdir()
        ended, calls, _ = Job(folder, name, "seed=1,2", code=code).end()
        assert ended == code and not [call for call in calls if "requeue" in call]


def test_every_checkpoint_is_evaluated_and_failures_are_named(tmp_path):
    arguments = ["a-1+b-2/checkpoint.pt", "broken.pt", "c.pt", "--", "data.test.num_crops=1"]
    code, calls, errors = Job(tmp_path, "evaluate.sbatch", *arguments).end()
    assert calls == [
        f"nlvideo-evaluate checkpoint='{name}' num_devices=4 data.test.num_crops=1"
        for name in ("a-1+b-2/checkpoint.pt", "broken.pt", "c.pt")
    ]
    assert code == 1 and "1 of 3 checkpoints failed:\n  broken.pt" in errors
