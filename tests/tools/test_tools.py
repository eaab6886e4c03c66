"""The tools run as their headers say."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def run(tool: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, TOOLS / tool, *arguments], capture_output=True, text=True, timeout=200)


def test_count_flops_prints_the_table():
    done = run("count_flops.py", "i3d_r50_nl5", "slow_r50_gc_all")
    assert done.returncode == 0, done.stderr
    rows = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if "│" in line}
    assert "35.40" in rows["i3d_r50_nl5"] and "41.26" in rows["i3d_r50_nl5"]
    assert "42.46" in rows["slow_r50_gc_all"] and "13" in rows["slow_r50_gc_all"]
    other = run("count_flops.py", "c2d_r50", "--num-frames", "8", "--crop-size", "112")
    assert "8 x 112 x 112" in other.stdout
    assert "Choose from: " in run("count_flops.py", "c2d_r5").stderr


def test_benchmark_of_the_operations():
    done = run("benchmark_model.py", "ops", "--positions", "128", "--keys", "32", "--width", "8", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    assert all(mode in done.stdout for mode in ("dot_product", "concatenation", "embedded_gaussian", "gaussian"))


@pytest.mark.parametrize("tool", sorted(path.name for path in TOOLS.glob("*.py")))
def test_every_tool_says_what_it_does(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [tool, "--help"])
    monkeypatch.syspath_prepend(TOOLS)  # as for a program that lies there; in this process torch is loaded already
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOLS / tool), run_name="__main__")
    assert not end.value.code and f"python tools/{tool}" in capsys.readouterr().out
