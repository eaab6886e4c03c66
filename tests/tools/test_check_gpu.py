"""tools/check_gpu.py: its parts fail alone, its limits hold, and its GPU branches run on fakes."""

import importlib
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from nlvideo.models import pairwise
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.torch_private import FakeTensorMode
from nlvideo.training import learner
from nlvideo.training.memory import StepMemory

TOOLS = Path(__file__).parents[2] / "tools"
CPU = torch.device("cpu")


@pytest.fixture
def tool(monkeypatch):
    """Returns a function that imports check_gpu or one of its parts."""
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module


@pytest.fixture
def found(tool, tmp_path):
    return tool("gpu_checks.findings").Findings(tmp_path / "findings.jsonl", CPU, quick=False, seconds=60)


@pytest.fixture
def gpu(tool, tmp_path, monkeypatch):
    """Findings of a machine that takes its CPU for a GPU, with torch.cuda's measurements faked."""

    class OnGpu(tool("gpu_checks.findings").Findings):
        cuda = True

    for name, value in {
        "synchronize": None,
        "reset_peak_memory_stats": None,
        "set_sync_debug_mode": None,
        "max_memory_allocated": 400_000_000,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    return OnGpu(tmp_path / "findings.jsonl", CPU, quick=False, seconds=300)


def listed(tool, tmp_path) -> dict:
    """Returns {check: finding} of what has been written."""
    return {f.check: f for f in tool("gpu_checks.findings").read_findings(tmp_path / "findings.jsonl")}


# Parts in processes


def run_script(tool, tmp_path, script: str, seconds: float = 20):
    command = [sys.executable, "-c", script, str(tmp_path / "part/findings.jsonl")]
    return tool("gpu_checks.running").run_part(command, tmp_path / "part", seconds)


WRITE = """
import json, os, subprocess, sys, time
with open(sys.argv[1], "a") as file:
    file.write(json.dumps({"check": "first", "value": "1", "state": "pass"}) + chr(10) + '{"check": "cut')
"""


def test_a_part_that_hangs_is_killed_with_its_children_and_keeps_what_it_found(tool, tmp_path):
    hang = "child = subprocess.Popen(['sleep', '600']); print('child', child.pid, flush=True); time.sleep(600)"
    started = time.monotonic()
    result = run_script(tool, tmp_path, WRITE + hang, seconds=1)
    assert time.monotonic() - started < 60
    first, end = result.findings
    assert (first.check, first.state) == ("first", "pass")
    assert end.state == "FAIL" and end.reason.startswith("killed after 1 s; last: child ")
    child = int(end.reason.rpartition(" ")[2])
    deadline = time.monotonic() + 60
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    """Returns whether a process is there and has not ended; one whose parent is gone may wait to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("raise ValueError('no such kernel')", "exit code 1; last: ValueError: no such kernel"),
        ("os.kill(os.getpid(), 11)", "killed by SIGSEGV; last: it printed nothing"),
    ],
)
def test_a_part_that_crashes_fails_with_its_last_line(tool, tmp_path, end, reason):
    result = run_script(tool, tmp_path, WRITE + end)
    assert [(f.check, f.state, f.reason) for f in result.findings] == [
        ("first", "pass", ""),
        ("the part", "FAIL", reason),
    ]
    assert result.failed and (not result.log or "ValueError" in result.log[-1])


def test_a_part_that_succeeds_leaves_no_log(tool, tmp_path):
    result = run_script(tool, tmp_path, WRITE + "print('much')")
    assert not result.failed and result.log == []
    assert result.as_dict()["checks"][0]["check"] == "first"


# The program


@pytest.fixture
def check_gpu(tool, monkeypatch):
    module = tool("check_gpu")
    monkeypatch.setattr(module, "described_machine", lambda: {"device": "a test"})
    return module


def test_parts_run_in_their_order_and_unknown_ones_are_refused(check_gpu):
    assert check_gpu.chosen_parts("c, A") == ["A", "C"]
    with pytest.raises(UserError, match="'X' is not a part. Choose from: A, B, C, D, E, F, G"):
        check_gpu.chosen_parts("A,X")


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_a_check_that_is_cut_short_has_written_and_prints_what_it_knows(check_gpu, tmp_path, monkeypatch, capsys, end):
    from gpu_checks.findings import Finding
    from gpu_checks.running import PartResult

    def run_part(command, folder, seconds):
        if folder.name == "B":
            folder.mkdir()
            (folder / "findings.jsonl").write_text('{"check": "begun", "value": "7"}\n{"check": "cu')
            raise end
        return PartResult(1.0, [Finding("kernels", "flash", "-", "-"), Finding("rate", "1", "at least 2", "FAIL")])

    monkeypatch.setattr(check_gpu, "run_part", run_part)
    with pytest.raises(end):
        check_gpu.check(["A", "B"], tmp_path / "out.json", 60, [])
    held = json.loads((tmp_path / "out.json").read_text())
    assert not held["complete"] and held["failed"] == ["A"] and list(held["parts"]) == ["A", "B"]
    assert [check["check"] for check in held["parts"]["B"]["checks"]] == ["begun", "the part"]
    assert held["header"]["device"] == "a test"
    out = capsys.readouterr().out
    assert "cut short" in out and "at least 2" in out and "0 passed, 1 failed, 1 skipped" in out


def test_what_no_time_is_left_for_is_skipped_by_name(check_gpu, tmp_path, monkeypatch):
    limits = []

    def run_part(command, folder, seconds):
        from gpu_checks.running import PartResult

        limits.append(seconds)
        time.sleep(0.1)
        return PartResult(0.1)

    monkeypatch.setattr(check_gpu, "run_part", run_part)
    results = check_gpu.check(["A", "B", "C"], tmp_path / "out.json", 1.05, [])
    assert len(limits) == 1 and limits[0] < 1.06  # part A's own limit is a minute
    assert [f.reason for name in "BC" for f in results[name].findings] == ["no time left: --minutes gives more"] * 2
    assert json.loads((tmp_path / "out.json").read_text())["complete"]


@pytest.fixture
def command(check_gpu, monkeypatch, capsys):
    """Returns a function that calls the program in this process: arguments -> (exit status, stdout, stderr)."""

    def call(*arguments) -> tuple:
        monkeypatch.setattr(sys, "argv", ["check_gpu.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            check_gpu.main()
        return end.value.code, *capsys.readouterr()

    return call


def test_the_command_runs_a_part_and_reports_it(command, tmp_path):
    status, out, _ = command("--parts", "A", "--output", tmp_path / "out.json")
    assert status == 0 and "A versions" in out and "attention in bfloat16" in out and "0 failed" in out
    held = json.loads((tmp_path / "out.json").read_text())
    assert held["complete"] and held["failed"] == [] and held["parts"]["A"]["checks"]


def test_a_failure_is_the_exit_code(command, check_gpu, tmp_path, monkeypatch):
    from gpu_checks.findings import Finding
    from gpu_checks.running import PartResult

    monkeypatch.setattr(check_gpu, "run_part", lambda *_: PartResult(1, [Finding("rate", state="FAIL")]))
    assert command("--quick", "--output", tmp_path / "out.json")[0] == 1
    assert json.loads((tmp_path / "out.json").read_text())["failed"] == ["A", "B", "C", "D"]


def test_help_says_what_it_costs_and_mistakes_are_one_line(command, tmp_path):
    assert "8 minutes" in command("--help")[1]
    assert command("--parts", "Q")[0].startswith("error: --parts Q: 'Q' is not a part. Choose from: A, B")
    (tmp_path / "file").touch()
    assert command("--output", tmp_path / "file/out.json")[0].startswith("error: --output")


@pytest.mark.slow
@pytest.mark.nightly
def test_the_quick_check_of_a_cpu_passes(tmp_path):
    command = [sys.executable, TOOLS / "check_gpu.py", "--quick", "--minutes", "8"]
    command += ["--parts", "A,B,D", "--output", tmp_path / "out.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "out.json").read_text())["parts"]
    assert list(parts) == ["A", "B", "D"] and all(part["checks"] for part in parts.values())


# Limits


def test_values_beyond_their_limit_fail_and_so_does_nan(tool, found, tmp_path):
    found.at_most("equal", 1.0, 1, "ms")
    found.at_most("above", 1.1, 1)
    found.at_most("nan", float("nan"), 1)
    found.at_least("below", 84.9, 85, "%")
    found.at_least("infinite", float("inf"), 85)
    found.equal("layout", "contiguous", "channels_last_3d")
    states = {name: finding.state for name, finding in listed(tool, tmp_path).items()}
    assert states.pop("equal") == "pass" and set(states.values()) == {"FAIL"} and len(states) == 5
    assert listed(tool, tmp_path)["equal"].value == "1 ms" and listed(tool, tmp_path)["equal"].limit == "at most 1 ms"


def test_limits_of_speed_are_for_gpus(tool, found, gpu, tmp_path):
    found.speed("on the CPU", 9.0, most=1)
    gpu.speed("too slow", 9.0, most=1)
    gpu.speed("fast enough", 9.0, least=1)
    states = {name: (finding.state, finding.limit) for name, finding in listed(tool, tmp_path).items()}
    assert states == {
        "on the CPU": ("-", "-"),
        "too slow": ("FAIL", "at most 1"),
        "fast enough": ("pass", "at least 1"),
    }


def test_what_a_case_raises_is_its_failure_and_the_next_one_runs(tool, found, tmp_path):
    with found.case("first"):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried")
    with found.case("second"):
        found.show("second", 1.0)
    first, second = listed(tool, tmp_path).values()
    assert (first.state, first.reason) == ("FAIL", "OutOfMemoryError: CUDA out of memory.")
    assert (second.state, second.number) == ("-", 1.0)


# What the parts measure


def test_operations_are_held_against_float64(tool, monkeypatch):
    operations = tool("gpu_checks.operations")
    size = operations.Size("small", 40, 12, 16)
    for mode in operations.MODES:
        assert 0 < operations.worst_error(mode, size, torch.float32, CPU) < 1e-5
        assert 1e-4 < operations.worst_error(mode, size, torch.bfloat16, CPU) < operations.limit_of(mode, "bfloat16")
        assert operations.values_not_finite(mode, size, torch.float16, CPU) == 0
    wrong = operations.MODES["dot_product"]._replace(
        ours=lambda theta, phi, g: 1.0001 * pairwise.dot_product(theta, phi, g)
    )
    monkeypatch.setitem(operations.MODES, "dot_product", wrong)
    assert operations.worst_error("dot_product", size, torch.float32, CPU) > 5e-5
    wrong = wrong._replace(ours=lambda *inputs: pairwise.dot_product(*inputs) * float("inf"))
    monkeypatch.setitem(operations.MODES, "dot_product", wrong)
    assert operations.values_not_finite("dot_product", size, torch.float16, CPU) > 0


@pytest.mark.parametrize("mode", ["dot_product", "concatenation"])
def test_operands_of_a_gpu_stay_there(tool, mode):
    operations = tool("gpu_checks.operations")
    size, device = operations.Size("small", 40, 12, 16), torch.device("cuda")
    with FakeTensorMode():
        inputs = operations.operands(operations.MODES[mode], size, torch.bfloat16, device)
        y, exact = operations.MODES[mode].ours(*inputs), operations.MODES[mode].plain(*inputs)
    assert {t.device.type for t in (*inputs, y, exact)} == {"cuda"} and y.dtype == exact.dtype == torch.bfloat16
    assert y.shape == exact.shape == (2, 16, 40)


def test_a_frozen_norm_that_passes_on_a_contiguous_gradient_is_seen(tool, monkeypatch):
    operations = tool("gpu_checks.operations")
    assert operations.layout_of_frozen_gradient(CPU, torch.float32) == "channels_last_3d"

    class Transposing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            return dy.contiguous()

    monkeypatch.setattr(operations.VideoBatchNorm3d, "forward", lambda _self, x: Transposing.apply(x))
    assert operations.layout_of_frozen_gradient(CPU, torch.float32) == "contiguous"


def test_every_way_of_attention_is_timed_or_left_out(tool):
    attention = tool("gpu_checks.attention_times")
    times = attention.times(attention.Case("small", 32, 16, 8, 8), 2, CPU)
    assert times.keys() == {"chosen", "flash", "chunked", "plain"} and all(value > 0 for value in times.values())
    theta, phi, g = (torch.randn(2, n, 8).transpose(1, 2) for n in (32, 16, 16))
    expected = pairwise.embedded_gaussian(theta, phi, g)
    for name, way in attention.ways():
        if name in times:
            torch.testing.assert_close(way(theta, phi, g), expected)


def test_an_error_of_our_own_attention_is_not_taken_for_a_kernel_that_is_missing(tool, monkeypatch):
    attention = tool("gpu_checks.attention_times")

    def fail(*_):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(attention, "chunked", fail)
    with pytest.raises(RuntimeError, match="CUDA error"):
        attention.times(attention.Case("small", 32, 16, 8, 8), 2, CPU)


def test_kernels_that_overlap_are_counted_once(tool):
    kernels = [(0, 10), (5, 10), (30, 5), (31, 1)]  # start, duration in microseconds
    events = [{"cat": "kernel", "ts": ts, "dur": dur} for ts, dur in kernels]
    others = [{"cat": "cpu_op", "ts": 0, "dur": 900}, {"ph": "M", "name": "process_name"}]
    measuring = tool("gpu_checks.step_measuring")
    assert measuring.busy_milliseconds([*others, *events]) == pytest.approx(0.020)
    own = {
        "aten::convolution_backward": 3.0,
        "aten::mkldnn_convolution": 2.0,
        "aten::native_batch_norm": 4.0,
        "aten::mm": 1.0,
    }
    assert measuring.share_of("conv", own, 10.0) == 0.5 and measuring.share_of("batch_norm", own, 10.0) == 0.4


def test_synchronisations_are_counted_a_step(tool, gpu):
    def step():
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    assert tool("gpu_checks.step_measuring").synchronisations(step, steps=3) == 2


def test_the_training_step_is_measured_as_on_a_gpu(tool, gpu, tmp_path, monkeypatch):
    steps, measuring = tool("gpu_checks.steps"), tool("gpu_checks.step_measuring")
    tiny = (*measuring.SMALL, "model.width=4", "data.num_frames=4", "data.crop_size=64", "block=nl1")
    base = steps.Case("base", tiny, 2)
    monkeypatch.setattr(steps, "R50", base)
    monkeypatch.setattr(steps, "FROZEN", steps.Case("frozen", (*tiny, "model.frozen_bn=true"), 2))
    monkeypatch.setattr(steps, "CASES", (base, steps.FROZEN))
    monkeypatch.setattr(steps, "step_memory", lambda *_: StepMemory(300_000_000, 0, 2, 1.0))
    monkeypatch.setattr(steps, "step_flops", lambda _: 1e9)
    monkeypatch.setattr(steps, "matmul_rate", lambda _: 0.001)
    monkeypatch.setattr(steps, "kernel_times", lambda *_: measuring.KernelTimes(1e-6, 0.5, 0.3))
    monkeypatch.setattr(steps, "milliseconds_a_step", lambda step, *_, **__: 12.0 + 0 * bool(step()))
    monkeypatch.setattr(steps, "compile_step", lambda *_: None)  # its process has a test of its own
    monkeypatch.setattr(learner, "record_passes", lambda network, *_: network)
    monkeypatch.setattr(tool("gpu_checks.recorded"), "CASES", {"bfloat16": tiny})
    steps.run(gpu, tmp_path)
    states = {name: finding.state for name, finding in listed(tool, tmp_path).items()}
    assert states["base: a step"] == states["frozen: a step"] == "-"
    assert states["base: peak memory over the plan of 0.3 GB"] == "pass"  # of 0.4 GB
    assert (
        states["base: host synchronisations beside the wait for the step before"] == "pass"
    )  # none is counted on a CPU
    assert states["base: batch norm of the kernels' time"] == "FAIL"
    assert states["base, cuda_graph=true: kernels over wall time"] == "FAIL"
    assert states["base: kernels over wall time"] == states["base: of the matrix product's rate, in kernels"] == "-"
    assert states["frozen, cuda_graph=true: a step"] == "-"
    assert states["cuda_graph=true, bfloat16: difference of the updates"] == "pass"
    assert {"base, cudnn.benchmark off", "base, float16", "frozen, norms that train"} <= states.keys()
    assert states["base, PyTorch's batch norm"] == "skipped"  # on a CPU ours is PyTorch's
    assert states["frozen, PyTorch's batch norm"] == "-"
    assert [name for name in states if name.startswith("base: ahead of a plain loop in")]
    assert not [f for f in listed(tool, tmp_path).values() if "Error" in f.reason]


def test_a_compiled_step_is_given_up_without_time_and_fails_with_its_error(tool, gpu, tmp_path, monkeypatch):
    steps = tool("gpu_checks.steps")
    monkeypatch.setattr(steps, "module_command", lambda *_: [sys.executable, "-c", "raise OSError('no compiler')"])
    steps.compile_step(gpu, steps.R50, 10.0)
    assert listed(tool, tmp_path)["R50 NL5, 8 clips, compiled"].reason == "RuntimeError: OSError: no compiler"
    answer = "print('noise'); print('{\"ms\": 5, \"seconds\": 40}')"
    monkeypatch.setattr(steps, "module_command", lambda *_: [sys.executable, "-c", answer])
    steps.compile_step(gpu, steps.R50, 10.0)
    value = listed(tool, tmp_path)["R50 NL5, 8 clips, compiled"].value
    assert value == "5.0 ms, 0.50 times the default's, after 40 s of compiling"
    late = type(gpu)(tmp_path / "late.jsonl", CPU, quick=False, seconds=20)
    steps.compile_step(late, steps.R50, 10.0)
    assert json.loads((tmp_path / "late.jsonl").read_text())["reason"] == "no time left"


def test_ranks_are_compared_with_one_process(tool, gpu, tmp_path, monkeypatch):
    """Ranks that train as they should pass; one that is off does not."""
    ranks, measuring = tool("gpu_checks.ranks"), tool("gpu_checks.step_measuring")

    def run_ranks(how, number, _folder, off=0.0):
        config, parts = ranks.rank_config(), 2 if how == "gloo" else 1
        learner = measuring.make_learner(measuring.in_micro_batches(config, parts), CPU, torch.float32)
        batches = [measuring.random_batch(config, ranks.CLIPS, part, parts) for part in range(parts)]
        weights = ranks.trained(learner, batches, ranks.STEPS)
        weights["fc.bias"] += off
        return [{"weights": weights, "ms": 1.0, "alone_ms": 1.0, "communication": 0.1}] * number

    monkeypatch.setattr(ranks, "run_ranks", run_ranks)
    ranks.run(gpu, tmp_path)
    states = [f.state for f in listed(tool, tmp_path).values()]
    assert states.count("pass") == 4 and "FAIL" not in states and "skipped" not in states
    monkeypatch.setattr(ranks, "run_ranks", lambda how, number, folder: run_ranks(how, number, folder, off=0.01))
    ranks.run(gpu, tmp_path)
    assert [f.state for f in listed(tool, tmp_path).values()].count("FAIL") == 3


def test_an_error_of_torchrun_is_named(tool, tmp_path, monkeypatch):
    ranks = tool("gpu_checks.ranks")
    monkeypatch.setattr(ranks, "module_environment", lambda: os.environ | {"PYTHONPATH": ""})  # finds no rank_program
    with pytest.raises(RuntimeError, match="No module named|ModuleNotFoundError|ChildFailedError"):
        ranks.run_ranks("gloo", 1, tmp_path)
