"""A worker that hangs or fails in ways nobody expects does not keep a program from ending."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import TINY, rows_of

RUN_OF_0_1 = Path(__file__).parent / "run_of_0_1/checkpoint.pt"
# Runs a program in which reading one video hangs inside C, or raises what nothing foresees.
PROGRAM = """
import ctypes, sys
import nlvideo.data.decoding.pyav_video as decoding
import nlvideo.runtime.signals as signals
what, program, marker, grace = sys.argv[1:5]
signals.GRACE = float(grace)
del sys.argv[1:5]
real = decoding.PyavVideo._read_parts
def read(self, *arguments, **options):
    if "a video 2" in self.path:
        open(marker, "w").close()
        if what == "hangs":
            ctypes.CDLL(None).sleep(1000)
        self.no_such_attribute
    return real(self, *arguments, **options)
decoding.PyavVideo._read_parts = read
if program == "train":
    from nlvideo.train import main
else:
    from nlvideo.evaluate import main
main()
"""


def started(what, program, marker, *arguments, grace=1):
    command = [sys.executable, "-c", PROGRAM, what, program, marker, str(grace), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(list(map(str, command)), env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)


@pytest.fixture
def arguments(video_folder, tmp_path):
    def build(program):
        if program == "train":
            swept = ("data.num_workers", "optim.max_steps", "validate_every_steps", "checkpoint_every_steps")
            options = [option for option in TINY if not option.startswith(swept)]
            options += ["data.num_workers=2", "optim.max_steps=100", "validate_every_steps=100"]
            options += ["checkpoint_every_steps=100", "seed=8"]
            return [*options, f"data.root={video_folder}", f"output_dir={tmp_path}/run"]
        options = [f"checkpoint={RUN_OF_0_1}", f"data.root={video_folder}", "report=false", "data.num_workers=2"]
        return [*options, f"output_dir={tmp_path}/scores"]

    return build


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_a_stop_signal_ends_a_program_whose_worker_hangs(arguments, tmp_path, program):
    process = started("hangs", program, tmp_path / "marker", *arguments(program))
    deadline = time.monotonic() + 300
    while not (tmp_path / "marker").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)  # the steps before the one that hangs
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=100)  # at 120 data.time_limit_seconds would end it
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "Traceback" not in output
    if program == "train":  # the video is in the third batch
        assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["step"] == 2
        assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2]
    if program == "evaluate":
        assert "Resume with the same command" in output


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_an_unexpected_error_in_a_worker_ends_the_program_with_its_traceback(arguments, tmp_path, program):
    process = started("raises", program, tmp_path / "marker", *arguments(program))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "AttributeError: 'PyavVideo' object has no attribute 'no_such_attribute'" in output
