"""The benchmarks of decoders, long videos and large indices: that they run, and what they print."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_grey_video

TOOLS = Path(__file__).parents[2] / "tools"


def run_process(tool, *arguments):
    done = subprocess.run([sys.executable, TOOLS / f"{tool}.py", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_benchmark_decoders_times_every_way(tmp_path):
    write_grey_video(tmp_path / "a.mp4", 80, height=256, width=340, g="40", bf="2")
    printed = run_process("benchmark_decoders", tmp_path, "--rounds", "1")
    for name in ("nlvideo", "nlvideo, index", "PyAV [0-9.]+"):
        assert re.search(rf"│ {name} +│ +\d+\.\d ", printed), printed


@pytest.mark.slow
def test_benchmark_long_finds_that_an_index_saves_reading(tmp_path):
    printed = run_process("benchmark_long", "--minutes", "1", "--rounds", "1", "--clips-only")
    row = re.search(r"long\.mp4[^\d]+([\d.]+)[^\d]+([\d.]+)[^\d]+([\d.]+)[^\d]+([\d.]+)", printed)
    time, with_index, read, read_with_index = map(float, row.groups())
    assert time > 0 and with_index > 0 and 0 < read_with_index < read


@pytest.mark.slow
def test_benchmark_index_finds_no_growth(tmp_path):
    options = {"--videos": 2400, "--frames": 30, "--workers": 1, "--samples": 400}
    printed = run_process("benchmark_index", *(str(word) for option in options.items() for word in option))
    assert "2400 videos of 30 frames, regular times: " in printed
    megabytes = [float(value) for value in re.findall(r"after .*: ([\d.]+) to", printed)]
    assert len(megabytes) == 3 and megabytes[2] - megabytes[1] < 3


@pytest.mark.slow
def test_benchmark_stream_times_lines():
    checkpoint = TOOLS.parent / "tests/run_of_0_1/checkpoint.pt"
    printed = run_process("benchmark_stream", checkpoint, "--minutes", "0.1", "num_threads=1")
    assert re.search(r"\d\d lines, 150 frames sent, \d+ dropped", printed), printed
    late, decoded = map(float, re.findall(r"median (\d+) ms", printed))
    assert 40 <= late < 1000 and decoded < late  # a frame is whole when the next one begins
