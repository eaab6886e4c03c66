"""logger.json: the ids under which wandb and mlflow know a run, so that resuming it continues the same ones."""

import json
from pathlib import Path

from nlvideo.runtime import files

TRACKED_FILE = "logger.json"


def tracked_id(folder: Path, logger: str) -> str | None:
    """Returns the run's id at a logger, None if it has not been there."""
    return _ids(folder).get(logger)


def keep_tracked_id(folder: Path, logger: str, identity: str) -> None:
    files.write_text(folder / TRACKED_FILE, json.dumps(_ids(folder) | {logger: identity}) + "\n")


def _ids(folder: Path) -> dict[str, str]:
    file = folder / TRACKED_FILE
    return json.loads(file.read_text()) if file.exists() else {}
