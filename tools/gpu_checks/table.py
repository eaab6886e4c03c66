"""The results as a table for people and as JSON for programs."""

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from gpu_checks.findings import FAIL, PASS, SKIPPED
from gpu_checks.running import PartResult
from nlvideo.runtime.files import write_text

STYLES = {PASS: "green", FAIL: "bold red", SKIPPED: "yellow"}
WIDTH = 130


def write_json(file: Path, header: Mapping[str, str], results: Mapping[str, PartResult], *, complete: bool) -> None:
    """Writes all that is known so far; the file is whole at any moment."""
    parts = {name: result.as_dict() for name, result in results.items()}
    failed = [name for name, result in results.items() if result.failed]
    held = {"header": header, "complete": complete, "failed": failed, "parts": parts}
    write_text(file, json.dumps(held, indent=1))


def print_table(header: Mapping[str, str], results: Mapping[str, PartResult], titles: Mapping[str, str]) -> None:
    """Prints one line for each finding, and how many passed, failed and were skipped."""
    console = Console(width=max(Console().width, WIDTH), highlight=False)
    for name, value in header.items():
        console.print(Text(f"{name:10} {value}"))
    table = Table("part", Column("check", min_width=40), "value", "limit", "result")
    for name, result in results.items():
        label = f"{name} {titles[name]}, {result.seconds:.0f} s"
        for finding in result.findings:
            reason = f" ({finding.reason})" if finding.reason else ""
            cells = (label, finding.check, finding.value, finding.limit)
            table.add_row(*map(Text, cells), Text(finding.state + reason, STYLES.get(finding.state, "")))
            label = ""
        table.add_section()
    console.print(table)
    states = [finding.state for result in results.values() for finding in result.findings]
    console.print(f"{states.count(PASS)} passed, {states.count(FAIL)} failed, {states.count(SKIPPED)} skipped")
