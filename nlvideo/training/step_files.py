"""Which checkpoint stands where in a run's folder.

checkpoints/step_XXXXXXXX.pt are the last `keep` steps; checkpoint.pt is the newest and checkpoint_best.pt the best,
as second names of the same files.
"""

from pathlib import Path
from typing import Any, NamedTuple

from nlvideo.runtime.errors import RunFailed, UserError
from nlvideo.runtime.files import link, remove_partial_files
from nlvideo.weights.checkpoint_file import NEWEST_FILE, NewerFormat, load_checkpoint, save_checkpoint

STEPS_FOLDER = "checkpoints"
BEST_FILE = "checkpoint_best.pt"


class FoundCheckpoint(NamedTuple):
    """The checkpoint that a run resumes from."""

    path: Path
    content: dict[str, Any]
    skipped: list[str]  # newer files that cannot be used, each with the reason


def newest_checkpoint(folder: Path) -> FoundCheckpoint | None:
    """Returns the newest whole checkpoint of a run, None if the folder has no checkpoint at all.

    Raises:
        NewerFormat: the newest one is whole but needs a newer nlvideo.
        UserError: there are checkpoints, but none is whole.
    """
    files = _step_files(folder)[::-1] or [path for path in [folder / NEWEST_FILE] if path.exists()]
    skipped: list[str] = []
    for path in files:
        try:
            return FoundCheckpoint(path, load_checkpoint(path), skipped)
        except NewerFormat:
            raise
        except UserError as error:
            skipped.append(str(error))
    if skipped:
        reasons = "\n  ".join(skipped)
        raise UserError(
            f"No checkpoint in {folder} can be resumed from:\n  {reasons}\n"
            "To start again from the first step, remove the folder or give another output_dir."
        )
    return None


def later_step(folder: Path, step: int) -> int | None:
    """Returns the newest whole checkpoint's step if it is after `step`; reads a file only if its name says so.

    Raises:
        NewerFormat: the newest one is whole but needs a newer nlvideo.
    """
    files = _step_files(folder)
    if files and _step_of(files[-1]) <= step:
        return None
    try:
        found = newest_checkpoint(folder)
    except NewerFormat:
        raise
    except UserError:  # none is whole
        return None
    return found.content["step"] if found and found.content["step"] > step else None


def save_step(folder: Path, content: dict[str, Any], keep: int) -> None:
    """Saves a step, makes it the newest, and removes all but the last `keep` steps.

    Raises:
        RunFailed: it could not be written.
    """
    path = step_file(folder, content["step"])
    path.parent.mkdir(exist_ok=True)
    try:
        save_checkpoint(path, content)
    except OSError as error:  # torch and Python both report a full disk as one
        raise RunFailed(
            f"{path} could not be written ({error.strerror or error}); the checkpoints before it are whole."
        ) from error
    link(path, folder / NEWEST_FILE)
    for old in _step_files(folder)[:-keep]:
        old.unlink()


def name_best(folder: Path, step: int) -> None:
    """Makes a saved step the best; it keeps this name when the step's own file is removed."""
    link(step_file(folder, step), folder / BEST_FILE)


def go_back_to(folder: Path, step: int) -> None:
    """Makes a saved step the newest, renames later, corrupt ones to `.damaged`, and removes half-written files."""
    for path in _step_files(folder):
        if _step_of(path) > step:
            path.replace(path.with_suffix(".damaged"))
    if step_file(folder, step).exists():
        link(step_file(folder, step), folder / NEWEST_FILE)
    elif (folder / NEWEST_FILE).exists():  # the folder has no others
        step_file(folder, step).parent.mkdir(exist_ok=True)
        link(folder / NEWEST_FILE, step_file(folder, step))
    remove_partial_files(folder)
    remove_partial_files(folder / STEPS_FOLDER)


def step_file(folder: Path, step: int) -> Path:
    return folder / STEPS_FOLDER / f"step_{step:08}.pt"


def _step_files(folder: Path) -> list[Path]:
    files = (folder / STEPS_FOLDER).glob("step_*.pt")
    return sorted((path for path in files if path.stem.removeprefix("step_").isdigit()), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))
