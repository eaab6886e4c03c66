"""The job files, run with programs in place of SLURM's that write down how they were called.

As SLURM's own, this srun passes on USR1, but on TERM kills its tasks at once.
"""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from runs import BIN, ENDLESS, TINY, rows_of

from nlvideo.training.run_status import read_status
from nlvideo.weights.checkpoint_file import load_checkpoint

JOBS = Path(__file__).parents[2] / "scripts" / "slurm"
STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$CALLS"
if [ "$(basename "$0") $1" = "scontrol show" ]; then printf '%s\\nnode-b\\n' "$FIRST_NODE"; exit; fi
case "$(basename "$0")" in
  srun | nlvideo-train)
    trap 'echo "$(basename "$0") killed its tasks" >> "$CALLS"; exit 137' TERM
    trap 'echo "$(basename "$0") got USR1" >> "$CALLS"; exit "$CODE"' USR1
    echo ready >> "$CALLS"
    if [ -n "$RUN" ]; then
      while [ "${1#-}" != "$1" ]; do shift; done # its own options
      trap 'kill -USR1 "$task"' USR1
      "$@" &
      task=$!
      while kill -0 "$task" 2> /dev/null; do wait "$task"; done
      wait "$task"
      exit
    fi
    for _ in $(seq "$STEPS"); do sleep 0.05; done
    exit "$CODE" ;;
  nlvideo-evaluate) case "$*" in *broken*) exit 1 ;; esac ;;
esac
"""


class Job:
    """A job file that runs with stubs, and the calls of these."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *arguments: str,
        steps: int = 0,
        code: int = 0,
        run: bool = False,
        number: int = 47,
    ):
        """Stubs take `steps` x 0.05 s and end with `code`; with `run` srun really runs the command, in one process."""
        bin_folder, self.calls = folder / "bin", folder / "calls.txt"
        bin_folder.mkdir()
        for stub in ("srun", "scontrol", "nlvideo-train", "nlvideo-evaluate"):
            (bin_folder / stub).write_text(STUB)
            (bin_folder / stub).chmod(0o755)
        environment = os.environ | {"PATH": f"{bin_folder}:{BIN}:{os.environ['PATH']}", "CALLS": str(self.calls)}
        environment |= {"STEPS": str(steps), "CODE": str(code), "RUN": "1" if run else "", "FIRST_NODE": "node-a"}
        environment |= {
            "SLURM_JOB_ID": str(number),
            "SLURM_NNODES": "2",
            "SLURM_GPUS_ON_NODE": "4",
            "SLURM_CPUS_PER_TASK": "64",
        }
        environment |= {"SLURM_JOB_NODELIST": "node-[a-b]"}
        if run:
            environment |= {"FIRST_NODE": "localhost", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "1"}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(["bash", JOBS / name, *arguments], env=environment, **pipes)

    def warn(self) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not (self.calls.exists() and "ready" in self.calls.read_text()):
            time.sleep(0.02)
        os.kill(self.process.pid, signal.SIGUSR1)

    def end(self) -> tuple[int, list[str], str]:
        _, errors = self.process.communicate(timeout=300)
        return self.process.returncode, self.calls.read_text().splitlines(), errors.decode()


@pytest.mark.parametrize("name", ["train.sbatch", "sweep.sbatch", "evaluate.sbatch", "task.sh"])
def test_the_job_files_are_bash(name):
    subprocess.run(["bash", "-n", JOBS / name], check=True)


def test_training_starts_one_agent_a_node_and_keeps_the_exit_code(tmp_path):
    code, calls, _ = Job(tmp_path, "train.sbatch", "experiment=a", "data.root=/d", code=3).end()
    assert code == 3 and not [call for call in calls if "requeue" in call]
    (started,) = [call for call in calls if call.startswith("srun")]
    assert started.startswith("srun --cpus-per-task=64 torchrun ")
    assert "--nnodes=2 --nproc-per-node=4" in started and "--rdzv-endpoint=node-a:20047" in started
    assert started.endswith("-m nlvideo.train experiment=a data.root=/d resume=auto")


@pytest.mark.parametrize(("name", "code"), [("train.sbatch", 1), ("sweep.sbatch", 138)])
def test_a_warned_job_stops_its_training_and_is_queued_again(tmp_path, name, code):
    job = Job(tmp_path, name, "seed=1,2", steps=600, code=code)
    job.warn()
    ended, calls, _ = job.end()
    assert ended == code and any(call.endswith("got USR1") for call in calls), calls
    assert calls[-1] == "scontrol requeue 47"


@pytest.mark.parametrize(("name", "code"), [("train.sbatch", 0), ("sweep.sbatch", 0), ("sweep.sbatch", 1)])
def test_a_training_that_ends_by_itself_after_the_warning_is_not_queued_again(tmp_path, name, code):
    job = Job(tmp_path, name, "seed=1,2", steps=600, code=code)
    job.warn()
    ended, calls, _ = job.end()
    assert ended == code and not [call for call in calls if "requeue" in call]


def free_job() -> int:
    """Returns the number of a job whose port, 20000 and the number, is free."""
    for number in range(os.getpid() % 10_000, 20_000):
        with socket.socket() as taken:
            if taken.connect_ex(("localhost", 20_000 + number)):
                return number
    raise AssertionError("no free port")


@pytest.mark.slow
def test_the_warning_becomes_a_checkpoint_through_a_real_agent(video_folder, tmp_path):
    options = [*TINY, f"data.root={video_folder}", *ENDLESS, f"output_dir={tmp_path}/run"]
    options += ["checkpoint_every_steps=100000", "validate_every_steps=100000", "data.num_workers=1"]
    number = free_job()
    job = Job(tmp_path, "train.sbatch", *options, run=True, number=number)
    metrics, deadline = tmp_path / "run/metrics.jsonl", time.monotonic() + 300
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    job.warn()
    code, calls, errors = job.end()
    assert code == 1 and calls[-1] == f"scontrol requeue {number}", errors[-3000:]
    step = rows_of(tmp_path / "run")[-1]["step"]
    assert load_checkpoint(tmp_path / "run/checkpoint.pt")["step"] == step < 100000
    status = read_status(tmp_path / "run")
    assert (status["state"], status["step"]) == ("stopped", step)


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


def task(folder: Path, number: int, *command: str, **variables: str) -> subprocess.Popen:
    """One of three tasks of a step of srun: 0 and 1 on node-a, 2 on node-b."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/scontrol").write_text(STUB)
    (folder / "bin/scontrol").chmod(0o755)
    step = {"SLURM_JOB_ID": "47", "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": str(number)}
    step |= {"SLURM_LOCALID": str(number % 2), "SLURM_GTIDS": "2" if number == 2 else "0,1"}
    step |= {"SLURM_STEP_NODELIST": "node-[a-b]", "FIRST_NODE": "node-a", "CALLS": "/dev/null"}
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{BIN}:{os.environ['PATH']}"} | step | variables
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([JOBS / "task.sh", *command], env=environment, **pipes)


def test_tasks_of_srun_become_ranks(tmp_path):
    shown = "echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT"
    found = [task(tmp_path, number, "bash", "-c", shown).communicate(timeout=300)[0].split() for number in range(3)]
    assert found == [
        ["0", "3", "0", "2", "node-a", "20048"],
        ["1", "3", "1", "2", "node-a", "20048"],
        ["2", "3", "0", "1", "node-a", "20048"],
    ]
    given = task(tmp_path, 2, "bash", "-c", shown, MASTER_ADDR="10.0.0.7", MASTER_PORT="29400")
    assert given.communicate(timeout=300)[0].split()[4:] == ["10.0.0.7", "29400"]
    failed = task(tmp_path, 0, "bash", "-c", "exit 3")
    failed.communicate(timeout=300)
    assert failed.returncode == 3
