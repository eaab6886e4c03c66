"""Runs over several processes that torchrun starts, some of which die."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kills import RUN
from runs import BIN, ENDLESS, TINY, assert_equal, children, rows_of, weights_of


def agent(port: int, *arguments: str) -> subprocess.Popen:
    """One of two nodes, with one process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=test", "-m", "nlvideo.train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *arguments], env=environment, **pipes)


@pytest.mark.nightly
def test_a_dead_rank_brings_both_nodes_back_from_the_last_checkpoint(tmp_path):
    steps = ["optim.max_steps=24", "checkpoint_every_steps=2", "log_every_steps=3", "validate_every_steps=100"]
    steps += ["data.num_workers=0", "precise_bn_steps=0"]
    options = [*RUN, f"data.root={tmp_path}/videos", "optim.batch_size=4", *steps]
    command = [BIN / "nlvideo-train", *options, "num_devices=2", f"output_dir={tmp_path}/whole"]
    subprocess.run(
        command, check=True, timeout=300, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    nodes = [agent(port, *options, f"output_dir={tmp_path}/elastic") for _ in range(2)]
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and len(list(tmp_path.glob("elastic/checkpoints/step_*.pt"))) < 3:
        time.sleep(0.02)
    (rank,) = children(nodes[1].pid)
    os.kill(rank, signal.SIGKILL)
    outputs = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    assert "resumed after step" in "".join(outputs)
    assert_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "elastic"))
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "elastic")
    assert torch.load(tmp_path / "elastic/checkpoint.pt", weights_only=True)["step"] == 24


@pytest.mark.slow
def test_a_run_of_several_ranks_that_is_asked_to_stop_ends_at_one_step(video_folder, tmp_path):
    options = [*TINY, f"data.root={video_folder}", "optim.batch_size=4", *ENDLESS, "num_devices=2"]
    options += ["checkpoint_every_steps=100000", "validate_every_steps=100000", f"output_dir={tmp_path}/run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([BIN / "nlvideo-train", *options], **pipes)
    metrics, deadline = tmp_path / "run/metrics.jsonl", time.monotonic() + 300
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    before = rows_of(tmp_path / "run")[-1]["step"]
    os.kill(process.pid, signal.SIGTERM)  # to the launcher alone, as SLURM or a terminal's kill does
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, output[-3000:]
    checkpoint = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == rows_of(tmp_path / "run")[-1]["step"] >= before
    assert "Traceback" not in output, output[-3000:]


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_and_is_named(video_folder, tmp_path):
    options = [*TINY, f"data.root={video_folder}", "optim.batch_size=4", *ENDLESS, "num_devices=2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([BIN / "nlvideo-train", *options, f"output_dir={tmp_path}/run"], **pipes)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (tmp_path / "run/checkpoint.pt").exists():
        time.sleep(0.02)
    ranks = [pid for pid in children(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(ranks[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Rank 1 failed (killed by SIGKILL)" in errors, errors[-3000:]
