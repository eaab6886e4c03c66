"""Whether a process is alone; the ranks that are started here are in tests/training."""

import pytest

from nlvideo.runtime.errors import UserError
from nlvideo.runtime.launch import launch_ranks

RANKS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID")
# As SLURM's src/common/env.c sets them: of a batch script, which is one process of a job for eight, and of a step.
BATCH = {"SLURM_JOB_ID": "47", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = {**BATCH, "SLURM_PROCID": "3", "SLURM_STEP_ID": "0"}


@pytest.fixture
def slurm(monkeypatch):
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


def test_several_tasks_of_srun_that_do_not_know_each_other_are_refused(slurm):
    slurm({**STEP, "SLURM_STEP_NUM_TASKS": "8"})
    with pytest.raises(UserError, match=r"srun has started 8 tasks.*scripts/slurm/task.sh"):
        launch_ranks(print, "trained", 1)


@pytest.mark.parametrize(
    "variables",
    [
        BATCH,
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {**STEP, "SLURM_STEP_NUM_TASKS": "8", "RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "node-a"},
    ],
    ids=["a batch script", "one task", "eight ranks"],
)
def test_one_process_and_ranks_are_not(slurm, variables, capsys):
    slurm(variables)
    launch_ranks(print, "trained", 1)
    assert capsys.readouterr().out == "trained\n"
