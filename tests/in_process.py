"""Programs run in the test's process, which has imported torch already: a process of its own takes two seconds."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

TOOLS = Path(__file__).parent.parent / "tools"


def run_main(
    main: Callable[[], object],
    *arguments: object,
    name: str = "program",
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess:
    """Calls a program's main(); returns what a process of its own would return: exit status and output."""
    words = [name, *map(str, arguments)]
    capsys.readouterr()
    status: int | str | None = 0
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", words)
        patched.setenv("HYDRA_FULL_ERROR", "1")  # nlvideo sets it, which the next test should not see
        patched.chdir(cwd or Path.cwd())
        GlobalHydra.instance().clear()
        try:
            main()
        except SystemExit as end:
            status = end.code
    captured = capsys.readouterr()
    if isinstance(status, str):  # Python prints such a message and exits with 1
        return subprocess.CompletedProcess(words, 1, captured.out, f"{captured.err}{status}\n")
    return subprocess.CompletedProcess(words, status or 0, captured.out, captured.err)


def run_tool(name: str, *arguments: object, **fixtures) -> subprocess.CompletedProcess:
    """Runs a program under tools/; `fixtures` are those of run_main."""
    path = str(TOOLS / name)
    return run_main(lambda: runpy.run_path(path, run_name="__main__"), *arguments, name=path, **fixtures)
