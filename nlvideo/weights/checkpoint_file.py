"""Checkpoints: dicts of plain containers and tensors, written whole or not at all, and checked when they are read."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nlvideo.runtime.errors import UserError, UserFileNotFoundError

FORMAT = 2  # raised when an older program could misread a newer file
KEYS = ("format", "sha256", "model", "step", "config", "classes")

# In a run's folder: one file a saved step, and names of their own for the newest and the best.
STEPS_FOLDER = "checkpoints"
NEWEST_FILE = "checkpoint.pt"
BEST_FILE = "checkpoint_best.pt"


class NewerFormat(ValueError):
    """A checkpoint that only a newer nlvideo can read."""


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes the content beside `path`, flushed to the disk, and then renames it: `path` is never half written."""
    content = {"format": FORMAT, **content}
    content["sha256"] = digest(content)
    partial = path.with_name(f".{path.name}.part")
    try:
        with open(partial, "wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:
                raise _os_error_behind(error) or error from None
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _os_error_behind(error: BaseException | None) -> OSError | None:
    """Returns what the disk said, where torch.save answers with an error of its own to being stopped."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Returns the content of an nlvideo checkpoint, tensors on the CPU.

    Raises:
        UserError: it does not exist, is not one, or is damaged.
        NewerFormat: a ValueError too.
    """
    content = read_tensor_file(path)
    check_content(content, path)
    return content


def check_content(content: Any, path: str | Path) -> None:
    """Raises UserError if what was read from `path` is not a whole nlvideo checkpoint."""
    if isinstance(content, Mapping) and isinstance(content.get("format"), int) and content["format"] > FORMAT:
        raise NewerFormat(f"{path} was written by a newer nlvideo (format {content['format']}, known up to {FORMAT}).")
    if isinstance(content, Mapping) and content.get("format") == 1:
        raise UserError(f"{path} was written by an nlvideo before 0.1, without a SHA-256; train or convert it again.")
    if not isinstance(content, Mapping) or any(key not in content for key in KEYS):
        held = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f"{path} is not an nlvideo checkpoint: it holds {held}; expected {', '.join(KEYS)}.")
    if content["sha256"] != digest(content):
        raise UserError(f"{path} is damaged: its content is not what its SHA-256 says.")


def evaluation_weights(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Returns the network's state for evaluation, with precise statistics of batch norms if there are any."""
    return {**checkpoint["model"], **(checkpoint.get("precise_bn") or {})}


def digest(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a checkpoint's content but its key "sha256": of every key, value and tensor byte.

    The zip archive that torch.save writes has checksums, but torch.load does not look at them.
    """
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, Mapping):
            sha.update(f"dict{len(value)}".encode())
            for key, inner in value.items():
                add(key)
                add(inner)
        elif isinstance(value, list | tuple):
            sha.update(f"{type(value).__name__}{len(value)}".encode())
            for inner in value:
                add(inner)
        else:
            sha.update(f"{type(value).__name__} {value!r};".encode())

    add({key: value for key, value in content.items() if key != "sha256"})
    return sha.hexdigest()


class Found(NamedTuple):
    """What is left of a run."""

    path: Path
    content: dict[str, Any]
    skipped: list[str]  # newer files that cannot be used, and why


def newest_checkpoint(folder: Path) -> Found | None:
    """Returns the newest whole checkpoint of a run, None if the folder has no checkpoint at all.

    Raises:
        NewerFormat: the newest one is whole but needs a newer nlvideo.
        UserError: there are checkpoints, but none is whole.
    """
    files = _step_files(folder)[::-1] or [path for path in [folder / NEWEST_FILE] if path.exists()]
    skipped = []
    for path in files:
        try:
            return Found(path, load_checkpoint(path), skipped)
        except NewerFormat:
            raise
        except ValueError as error:
            skipped.append(str(error))
    if skipped:
        reasons = "\n  ".join(skipped)
        raise UserError(
            f"No checkpoint in {folder} can be resumed from:\n  {reasons}\n"
            "To start again from the first step, remove the folder or give another output_dir."
        )
    return None


def save_step(folder: Path, content: dict[str, Any], keep: int) -> None:
    """Saves a run's step, calls it the newest, and removes all but the last `keep` steps."""
    path = step_file(folder, content["step"])
    path.parent.mkdir(exist_ok=True)
    try:
        save_checkpoint(path, content)
    except OSError as error:  # a full disk comes as one, from Python or from torch
        raise OSError(
            f"{path} could not be written ({error.strerror or error}); the checkpoints before it are whole."
        ) from error
    _name(path, folder / NEWEST_FILE)
    for old in _step_files(folder)[:-keep]:
        old.unlink()


def name_best(folder: Path, step: int) -> None:
    """Calls a saved step the best; under this name it stays when its step is removed."""
    _name(step_file(folder, step), folder / BEST_FILE)


def go_back_to(folder: Path, step: int) -> None:
    """Calls a saved step the newest, sets later ones, which are damaged, aside, and removes what was never finished."""
    for path in _step_files(folder):
        if _step_of(path) > step:
            path.replace(path.with_suffix(".damaged"))
    if step_file(folder, step).exists():
        _name(step_file(folder, step), folder / NEWEST_FILE)
    elif (folder / NEWEST_FILE).exists():  # the folder has no others
        step_file(folder, step).parent.mkdir(exist_ok=True)
        _name(folder / NEWEST_FILE, step_file(folder, step))
    for path in [*folder.glob(".*.part"), *(folder / STEPS_FOLDER).glob(".*.part")]:
        path.unlink()


def step_file(folder: Path, step: int) -> Path:
    return folder / STEPS_FOLDER / f"step_{step:08}.pt"


def _step_files(folder: Path) -> list[Path]:
    files = (folder / STEPS_FOLDER).glob("step_*.pt")
    return sorted((path for path in files if path.stem.removeprefix("step_").isdigit()), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _name(file: Path, name: Path) -> None:
    """Gives a file a second name; it is replaced at once if it is taken."""
    partial = name.with_name(f".{name.name}.part")
    partial.unlink(missing_ok=True)
    try:
        os.link(file, partial)
    except OSError:  # a file system without links
        shutil.copyfile(file, partial)
    os.replace(partial, name)
    partial.unlink(missing_ok=True)  # replacing a name of the same file does nothing
    _sync_folder(name.parent)


def _sync_folder(folder: Path) -> None:
    """Makes renamed files outlast a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_tensor_file(path: str | Path) -> Any:
    """Returns what a file written by torch.save holds, tensors on the CPU, without running code from the file.

    Raises:
        UserError: no such file.
        UserError: not such a file, damaged, or holding more than tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserFileNotFoundError(f"The checkpoint {path} does not exist.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in as many ways as pickle and zip have
        # The disk's and the memory's errors say nothing about the file; EINVAL does: a zip cut short makes torch seek
        # to before its start.
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise
        found = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class) (\S+)", str(error))
        reason = f"it holds {found[1]}, not only tensors and containers" if found else "damaged, or another format"
        raise UserError(f"{path} is not a checkpoint that can be read: {reason}.") from error


def config_differences(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """Returns lines "key: old -> new" for every value in which two nested configs differ."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += config_differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines
