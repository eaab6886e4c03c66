"""The checkpoint file: a dict of plain containers and tensors, written whole, and verified when it is read."""

import errno
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from nlvideo.runtime.errors import UserError, UserFileNotFoundError
from nlvideo.runtime.files import replacing

FORMAT = 3  # raised when an older program could misread a newer file
FORMAT_WITHOUT_EMA = 2  # which older programs read too
KEYS = ("format", "sha256", "model", "step", "config", "classes")
ORIGIN = "origin"  # of a checkpoint that no run wrote, such as "PySlowFast weights"
NEWEST_FILE = "checkpoint.pt"  # a run's newest checkpoint, in its folder


class NewerFormat(UserError):
    """A checkpoint that only a newer nlvideo can read."""


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint whole, with its format and digest.

    Raises:
        OSError: the disk is full or fails.
    """
    content = {"format": FORMAT if content.get("ema") else FORMAT_WITHOUT_EMA, **content}
    content["sha256"] = digest(content)
    save_tensors(path, content)


def save_tensors(path: Path, content: Any) -> None:
    """Writes a file for torch.load whole.

    Raises:
        OSError: the disk is full or fails.
    """
    with replacing(path) as partial, open(partial, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            raise _os_error_behind(error) or error from None


def _os_error_behind(error: BaseException | None) -> OSError | None:
    """Returns the disk's error, which torch.save hides behind an error of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Returns the content of an nlvideo checkpoint, tensors on the CPU.

    Raises:
        UserError: it does not exist, is not an nlvideo checkpoint, or is corrupt.
        NewerFormat: a UserError too.
    """
    content = read_tensor_file(path)
    check_content(content, path)
    return content


def read_tensor_file(path: str | Path) -> Any:
    """Returns what a file written by torch.save holds, tensors on the CPU, without running code from the file.

    Raises:
        UserError: it does not exist, is corrupt, or holds more than tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserFileNotFoundError(f"The checkpoint {path} does not exist.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt file fails in as many ways as pickle and zip have
        refuse_unreadable(path, error)


def refuse_unreadable(path: Path, error: Exception) -> NoReturn:
    """Raises the UserError that says why a file cannot be read, or the error itself where it says nothing of the file.

    Errors of the disk and the memory do not. EINVAL does: a truncated zip makes torch seek to before its start.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
        raise error
    text = str(error)
    found = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class) (\S+)", text)
    wanted = re.search(
        r"it wants to call \S+, which no file of weights needs|\S+ is not allowed in a file of weights", text
    )
    reason = f"it holds {found[1]}, not only tensors and containers" if found else "corrupt, or another format"
    raise UserError(f"{path} is not a checkpoint that can be read: {wanted[0] if wanted else reason}.") from error


def is_ours(content: Any) -> bool:
    """Returns whether what a file holds looks like an nlvideo checkpoint; check_content() verifies it."""
    return isinstance(content, Mapping) and {"model", "config", "classes"} <= content.keys()


def check_content(content: Any, path: str | Path) -> None:
    """Raises UserError unless what was read from `path` is a whole nlvideo checkpoint."""
    check_format(content, path)
    try:
        whole = content["sha256"] == digest(content)
    except RecursionError:
        raise UserError(f"{path} is no checkpoint of ours: it is nested too deeply.") from None
    if not whole:
        raise UserError(f"{path} is corrupt: its content does not match its SHA-256.")


def check_format(content: Any, path: str | Path) -> None:
    """Raises UserError unless what was read from `path` has the keys of an nlvideo checkpoint that can be read."""
    if isinstance(content, Mapping) and isinstance(content.get("format"), int) and content["format"] > FORMAT:
        raise NewerFormat(f"{path} was written by a newer nlvideo (format {content['format']}, known up to {FORMAT}).")
    if isinstance(content, Mapping) and content.get("format") == 1:
        raise UserError(f"{path} was written by an nlvideo before 0.1, without a SHA-256; train or convert it again.")
    if not isinstance(content, Mapping) or any(key not in content for key in KEYS):
        held = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f"{path} is not an nlvideo checkpoint: it holds {held}; expected {', '.join(KEYS)}.")


@contextmanager
def naming(path: str | Path, *, in_one_line: bool = False) -> Iterator[None]:
    """Puts the file's name before what a UserError says of it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {'; '.join(str(error).splitlines()) if in_one_line else error}") from None


def evaluation_weights(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Returns the network's state for evaluation: averaged weights and precise statistics if there are any."""
    return {**(checkpoint.get("ema") or checkpoint["model"]), **(checkpoint.get("precise_bn") or {})}


def digest(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a checkpoint's content without its key "sha256": every key, value and tensor byte.

    The zip archive that torch.save writes has checksums, but torch.load does not verify them.
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
