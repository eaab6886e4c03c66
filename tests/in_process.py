"""Programs under tools/ run in the test's process, which has imported torch already."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"


def run_tool(
    name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> subprocess.CompletedProcess:
    """Returns what a process of its own would return: exit status and output."""
    words = [str(TOOLS / name), *map(str, arguments)]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", words)
        status: int | str | None = 0
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            status = end.code
    captured = capsys.readouterr()
    if isinstance(status, str):  # Python prints such a message and exits with 1
        return subprocess.CompletedProcess(words, 1, captured.out, f"{captured.err}{status}\n")
    return subprocess.CompletedProcess(words, status or 0, captured.out, captured.err)
