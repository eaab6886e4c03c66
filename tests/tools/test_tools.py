"""Programs under tools/ without a test file of their own."""

import contextlib
import itertools
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def run(monkeypatch, capsys):
    """Returns a function that runs a tool in this process: name, arguments -> (exit status, stdout, stderr)."""

    def call(tool: str, *arguments: str, **replaced) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [tool, *arguments])
        monkeypatch.syspath_prepend(TOOLS)
        main = runpy.run_path(str(TOOLS / tool))["main"]
        main.__globals__.update(replaced)
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return call


def test_count_flops_prints_the_table(run):
    status, out, err = run("count_flops.py", "i3d_r50_nl5", "slow_r50_gc_all")
    assert status == 0, err
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if "│" in line}
    assert "35.40" in rows["i3d_r50_nl5"] and "41.26" in rows["i3d_r50_nl5"]
    assert "42.46" in rows["slow_r50_gc_all"] and "13" in rows["slow_r50_gc_all"]


def test_count_flops_at_other_sizes(run):
    assert "8 x 112 x 112" in run("count_flops.py", "c2d_r50", "--num-frames", "8", "--crop-size", "112")[1]
    status, _, err = run("count_flops.py", "c2d_r5")
    assert status and "Choose from: " in err


def test_benchmark_of_the_operations(run):
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)  # a second per step, so that one is enough
    smallest = ["--positions", "128", "--keys", "32", "--width", "8", "--repeats", "1"]
    here = {"_in_process": lambda function, *arguments: function(*arguments), "time": clock}
    status, out, err = run("benchmark_model.py", "ops", *smallest, **here)
    assert status == 0, err
    assert all(mode in out for mode in ("dot_product", "concatenation", "embedded_gaussian", "gaussian"))


SMALL = ["model.width=4", "data.num_frames=4", "data.crop_size=64", "data.scale_range=[64,64]"]


def test_benchmark_of_a_training_step(run):
    smallest = ["i3d_r50_nl5_8x8", *SMALL, "--batch", "2", "--rounds", "1"]
    status, out, err = run("benchmark_model.py", "step", *smallest)
    assert status == 0, err
    assert all(name in out for name in ("plain float32", "ours float32", "ours bfloat16"))


def test_benchmark_of_a_network(run):
    here = {"_in_process": lambda function, *arguments: function(*arguments)}
    status, out, err = run("benchmark_model.py", "network", "i3d_r50_nl5_8x8", *SMALL, **here)
    assert status == 0, err
    assert "plain" in out and "ours" in out


def test_benchmark_under_load(run):
    measured = []

    @contextlib.contextmanager
    def measuring(case, crop_size, seconds, settings):
        yield lambda: measured.append((case, *settings)) or 1.0

    smallest = ["--pairs", "2", "--cases", "concatenation"]
    status, out, err = run("benchmark_load.py", *smallest, measuring=measuring)
    assert status == 0, err
    assert "1.00 (1.00 to 1.00)" in out
    assert measured.count(("concatenation", "GOMP_SPINCOUNT")) == measured.count(("concatenation",)) == 4
    repetition = runpy.run_path(str(TOOLS / "benchmark_load.py"))["repetition"]
    for case in ("train c2d_r50", "evaluate i3d_r50_nl5", "dot_product"):
        repetition(case, 32)


def test_benchmarks_measure_in_a_process_of_their_own():
    assert runpy.run_path(str(TOOLS / "benchmark_model.py"))["_in_process"](abs, -3) == 3


@pytest.mark.parametrize("tool", sorted(path.name for path in TOOLS.glob("*.py")))
def test_help_shows_how_to_run_each_tool(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [tool, "--help"])
    monkeypatch.syspath_prepend(TOOLS)  # as for a program started there
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOLS / tool), run_name="__main__")
    assert not end.value.code and f"python tools/{tool}" in capsys.readouterr().out
