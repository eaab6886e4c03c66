"""What a part of the check finds, written to a file as it comes."""

import json
import math
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

PASS, FAIL, SKIPPED, SHOWN = "pass", "FAIL", "skipped", "-"


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        value: what was measured, with its unit.
        limit: what passes, "-" where nothing is asked for.
        state: one of PASS, FAIL, SKIPPED and SHOWN.
        reason: why it failed or was skipped, where value and limit do not say.
        number: the value as a number, where it is one.
    """

    check: str
    value: str = "-"
    limit: str = "-"
    state: str = SHOWN
    reason: str = ""
    number: float | None = None


class Findings:
    """The findings of a part that runs in this process.

    Args:
        file: gets one line of JSON for each finding at once, so that a part that is killed has told what it found.
        device: that is checked.
        quick: fewer and smaller cases.
        seconds: after which the part is killed.
    """

    def __init__(self, file: Path, device: torch.device, *, quick: bool, seconds: float):
        self.device, self.quick = device, quick
        self._file, self._end = file, time.monotonic() + seconds

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def show(self, check: str, value: object, unit: str = "") -> None:
        """Notes a value that nothing is asked of."""
        number = float(value) if isinstance(value, int | float) else None
        self._add(Finding(check, written(value, unit), number=number))

    def at_most(self, check: str, value: float, limit: float, unit: str = "") -> None:
        passes = math.isfinite(value) and value <= limit
        self._judge(check, value, f"at most {written(limit, unit)}", passes, unit)

    def at_least(self, check: str, value: float, limit: float, unit: str = "") -> None:
        passes = math.isfinite(value) and value >= limit
        self._judge(check, value, f"at least {written(limit, unit)}", passes, unit)

    def equal(self, check: str, value: object, expected: object) -> None:
        self._add(Finding(check, str(value), str(expected), PASS if value == expected else FAIL))

    def speed(self, check: str, value: float, *, least: float | None = None, most: float | None = None, unit: str = ""):
        """Holds a value against a limit that is about the speed of GPUs; on a CPU the value is only shown."""
        if not self.cuda:
            self.show(check, value, unit)
        elif least is not None:
            self.at_least(check, value, least, unit)
        elif most is not None:
            self.at_most(check, value, most, unit)

    def skip(self, check: str, reason: str) -> None:
        self._add(Finding(check, state=SKIPPED, reason=reason))

    def fail(self, check: str, reason: str) -> None:
        self._add(Finding(check, state=FAIL, reason=reason))

    @contextmanager
    def case(self, check: str) -> Iterator[None]:
        """Notes what the block raises as the failure of this check, so that those after it run."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()  # into the part's log
            lines = str(error).strip().splitlines() or [""]
            self.fail(check, f"{type(error).__name__}: {lines[0]}")

    def _judge(self, check: str, value: float, limit: str, passes: bool, unit: str) -> None:
        self._add(Finding(check, written(value, unit), limit, PASS if passes else FAIL, number=float(value)))

    def _add(self, finding: Finding) -> None:
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(finding)) + "\n")
        print(f"{finding.check}: {finding.value} [{finding.state}] {finding.reason}", flush=True)


def read_findings(file: Path) -> list[Finding]:
    """Returns what a part has written; of a line that a kill has cut short nothing."""
    if not file.exists():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(Finding(**json.loads(line)))
        except json.JSONDecodeError:
            continue
    return found


def written(value: object, unit: str = "") -> str:
    """Returns a value as the table shows it: three digits, and its unit."""
    if isinstance(value, float):
        value = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value} {unit}".rstrip()
