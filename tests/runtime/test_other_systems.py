"""What single parts do where a system lacks something; tests/test_other_platforms.py runs whole programs there."""

import os
import resource
import signal
from types import SimpleNamespace

import pytest
import torch

from nlvideo.runtime import free_memory, launch, precision, signals
from nlvideo.runtime.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile", torch.bfloat16),
        ("flags\t\t: fpu avx512f amx_bf16", torch.bfloat16),
        ("flags\t\t: fpu sse4_2 avx2", torch.float32),
        ("Features\t: fp asimd i8mm bf16", torch.float32),
        (None, torch.float32),
    ],
    ids=["avx512", "amx", "old", "arm", "no file"],
)
def test_bfloat16_is_chosen_where_convolutions_have_it(flags, dtype, tmp_path, monkeypatch):
    if flags:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    monkeypatch.setattr(precision, "CPU_FLAGS", tmp_path / "cpuinfo")
    assert precision.resolve_precision("auto", CPU) == dtype
    assert precision.resolve_precision("bfloat16", CPU) == torch.bfloat16  # slowly, where a CPU only emulates it


def test_a_mac_counts_its_memory_in_bytes_and_windows_not_at_all(monkeypatch):
    usage = SimpleNamespace(ru_maxrss=5_000_000)
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    found = {}
    for system in ("linux", "darwin", "win32"):
        monkeypatch.setattr(free_memory, "sys", SimpleNamespace(platform=system))
        found[system] = free_memory.peak_memory(CPU)
    assert found == {"linux": 5_120_000_000, "darwin": 5_000_000, "win32": None}


def test_on_windows_a_run_has_one_process(monkeypatch):
    monkeypatch.setattr(launch, "sys", SimpleNamespace(platform="win32"))
    with pytest.raises(UserError, match="num_devices=2: on Windows a run has one process; use num_devices=1, or WSL"):
        launch.launch_ranks(lambda config: config, None, 2)
    assert launch.launch_ranks(lambda config: config, "config", 1) == "config"


def test_without_a_timer_a_signal_is_remembered_and_data_are_waited_for(monkeypatch):
    monkeypatch.setattr(signals, "HAS_TIMER", False)
    monkeypatch.setattr(signals, "STOP_SIGNALS", (signal.SIGINT, signal.SIGTERM))
    monkeypatch.delattr(signal, "setitimer")
    before = signal.getsignal(signal.SIGTERM)

    def items():
        yield 1
        os.kill(os.getpid(), signal.SIGTERM)
        yield 2

    with signals.StopSignal() as stopping:
        assert list(stopping.while_waiting(items())) == [1, 2]
    assert (stopping.received, stopping.gave_up) == (signal.SIGTERM, False)
    assert signal.getsignal(signal.SIGTERM) == before
