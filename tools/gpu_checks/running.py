"""Runs a part in a process of its own, and ends it with all that it has started when its time is over."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu_checks.findings import FAIL, Finding, read_findings
from nlvideo.runtime.launch import ending

TOOLS = Path(__file__).parents[1]
LOG_LINES = 60  # of a part that failed, kept in the JSON file


@dataclass
class PartResult:
    """What a part found.

    Attributes:
        log: the last lines that it printed, where something failed.
        cut: the whole check was interrupted meanwhile.
    """

    seconds: float
    findings: list[Finding] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    cut: bool = False

    @property
    def failed(self) -> bool:
        return any(finding.state == FAIL for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return {"seconds": round(self.seconds, 1), "checks": [asdict(f) for f in self.findings], "log": self.log}


def run_part(command: Sequence[str], folder: Path, seconds: float) -> PartResult:
    """Runs a part and returns what it found, also where it crashed or took too long, which is a failure.

    Args:
        command: writes its findings to findings.jsonl in `folder`, as Findings does.
        folder: for the part's files; it is made.
        seconds: that the part may take.
    """
    folder.mkdir(parents=True)
    log, started = folder / "log.txt", time.monotonic()
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also where this program is interrupted; what a part leaves behind would disturb the next
            kill_group(process)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    found = PartResult(time.monotonic() - started, read_findings(folder / "findings.jsonl"))
    last = lines[-1] if lines else "it printed nothing"
    if code is None:
        found.findings.append(Finding("the part", state=FAIL, reason=f"killed after {seconds:.0f} s; last: {last}"))
    elif code:
        found.findings.append(Finding("the part", state=FAIL, reason=f"{ending(code)}; last: {last}"))
    found.log = lines[-LOG_LINES:] if found.failed else []
    return found


def module_command(name: str, *arguments: str) -> list[str]:
    """Returns the command that runs a module of this package as a program; it needs module_environment()."""
    return [sys.executable, "-m", f"gpu_checks.{name}", *arguments]


def module_environment() -> dict[str, str]:
    """Returns the environment in which other processes find this package, and nlvideo as this process does."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(TOOLS), *filter(None, sys.path)])}


def kill_group(process: subprocess.Popen) -> None:
    """Kills a process that leads a group, with all of the group, and waits for its end."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
