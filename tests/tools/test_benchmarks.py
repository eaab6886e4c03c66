"""The benchmarks of decoders, long videos and large indices: that they run, and what they print."""

import importlib.util
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


@pytest.mark.nightly
def test_benchmark_stream_times_lines():
    checkpoint = TOOLS.parent / "tests/run_of_0_1/checkpoint.pt"
    printed = run_process("benchmark_stream", checkpoint, "--minutes", "0.1", "num_threads=1")
    assert re.search(r"\d+ lines, 150 frames sent, \d+ dropped", printed), printed
    late, decoded = map(float, re.findall(r"median (\d+) ms", printed))
    assert 0 <= decoded <= late  # how many they are depends on what else the machine does


def test_benchmark_stream_counts_from_a_frame_to_its_line(capsys):
    spec = importlib.util.spec_from_file_location("benchmark_stream", TOOLS / "benchmark_stream.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    sent = [100 + 0.04 * number for number in range(150)]
    answer = lambda number: {"end": round(0.04 * number, 3), "latency": 0.005, "dropped_frames": 2}  # noqa: E731
    numbers = [8, 60, 100, 149]  # the first is within the time that is left out
    lines = [(sent[number] + 0.03 * place, answer(number)) for place, number in enumerate(numbers)]
    tool.show(lines, sent, [5 * 2**20, 6 * 2**20, 7 * 2**20] + 7 * [2**20])
    assert capsys.readouterr().out.splitlines() == [
        "4 lines, 150 frames sent, 8 dropped",
        "from sent to line     median 60 ms, 95 % below 87 ms",
        "from decoded to line  median 5 ms, 95 % below 5 ms",
        "memory after a tenth  6 MB, at most after it 7 MB",
    ]
    with pytest.raises(SystemExit, match="1 lines, none of them after 2 s of the stream"):
        tool.show(lines[:1], sent, [1])
