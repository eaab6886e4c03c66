"""How a run ended, in a file that other programs read."""

import json
import os
from pathlib import Path
from typing import Any

STATUS_FILE = "status.json"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


def write_status(folder: Path, state: str, **values: Any) -> None:
    """Writes {"state": FINISHED, STOPPED or FAILED, ...}, whole or not at all."""
    write_whole(folder / STATUS_FILE, json.dumps({"state": state, **values}, indent=1) + "\n")


def write_whole(file: Path, text: str) -> None:
    """Writes a file so that a kill leaves the old one or the new one."""
    partial = file.with_name(f".{file.name}.part")
    with open(partial, "w", encoding="utf-8", errors="backslashreplace") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    partial.replace(file)


def read_status(folder: Path) -> dict[str, Any]:
    """Returns what write_status wrote, {} where a run has not ended yet or was killed."""
    file = folder / STATUS_FILE
    return json.loads(file.read_text()) if file.exists() else {}
