"""Checkpoints: dicts of plain containers and tensors, written whole or not at all."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FORMAT = 1  # raised when an older program could misread a newer file
KEYS = ("format", "model", "step", "config", "classes")


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes the content beside `path`, flushed to the disk, and then renames it: `path` is never half written."""
    partial = path.with_name(f".{path.name}.part")
    try:
        with open(partial, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Returns the content of an nlvideo checkpoint, tensors on the CPU.

    Raises:
        FileNotFoundError, ValueError: it does not exist, or is not one.
    """
    content = read_tensor_file(path)
    if not isinstance(content, Mapping) or any(key not in content for key in KEYS):
        held = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} is not an nlvideo checkpoint: it holds {held}; expected {', '.join(KEYS)}.")
    if content["format"] > FORMAT:
        raise ValueError(f"{path} was written by a newer nlvideo (format {content['format']}, known up to {FORMAT}).")
    return content


def read_tensor_file(path: str | Path) -> Any:
    """Returns what a file written by torch.save holds, tensors on the CPU, without running code from the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, damaged, or holding more than tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The checkpoint {path} does not exist.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in as many ways as pickle and zip have
        found = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class) (\S+)", str(error))
        reason = f"it holds {found[1]}, not only tensors and containers" if found else "damaged, or another format"
        raise ValueError(f"{path} is not a checkpoint that can be read: {reason}.") from error


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
