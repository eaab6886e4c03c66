"""How a run ended, in a file that other programs read."""

import json
from pathlib import Path
from typing import Any

from nlvideo.runtime import files

STATUS_FILE = "status.json"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


def write_status(folder: Path, state: str, **values: Any) -> None:
    """Writes {"state": FINISHED, STOPPED or FAILED, ...}."""
    files.write_text(folder / STATUS_FILE, json.dumps({"state": state, **values}, indent=1) + "\n")


def read_status(folder: Path) -> dict[str, Any]:
    """Returns what write_status wrote, {} where a run has not ended yet or was killed."""
    file = folder / STATUS_FILE
    return json.loads(file.read_text()) if file.exists() else {}


def score_of(status: dict[str, Any]) -> float | None:
    """Returns the last validation's score; runs of earlier versions stored it under its metric's name."""
    return status.get("score", status.get("top1"))
