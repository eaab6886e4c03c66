"""Writing files whole: after a crash, a kill or a power failure a file has its old content or its new one."""

import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nlvideo.runtime.errors import RunFailed, UserError, UserFileExistsError

# What a killed process leaves of a file, and SQLite of one that it wrote to
PARTIAL_FILE = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part(?:-journal)?", re.DOTALL)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what is written there becomes `path` when the block succeeds.

    The name is unique, so several processes may write the same file: the last one wins. When the block raises, the
    temporary file is removed and `path` stays as it was.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield partial
        with open(partial, "r+b") as file:  # Windows syncs only what it may write
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, which becomes `path` when the block succeeds, with all of its files.

    Raises:
        UserFileExistsError: there is something of this name, which stays as it is.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        if os.path.lexists(path):
            raise UserFileExistsError(f"{path} exists already; nothing is overwritten.")
        partial.mkdir()
        yield partial
        for file in partial.iterdir():
            with open(file, "r+b") as written:
                os.fsync(written.fileno())
        sync_folder(partial)
        if os.path.lexists(path):
            raise UserFileExistsError(f"{path} exists already; nothing is overwritten.")
        partial.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def reporting_disk_errors(path: Path) -> Iterator[None]:
    """Makes one line of what a disk refuses, such as a file for which it has no room.

    Raises:
        RunFailed: names the file or folder.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise RunFailed(f"{path} could not be written: {error.strerror or error}.") from None


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file whole; characters that UTF-8 cannot hold (undecodable file names) are escaped."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def link(file: Path, name: Path) -> None:
    """Gives a file a second name, replacing what had that name; copies it where the file system has no links."""
    partial = name.with_name(f".{name.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        try:
            os.link(file, partial)
        except OSError:
            shutil.copyfile(file, partial)
        partial.replace(name)
        sync_folder(name.parent)
    finally:
        partial.unlink(missing_ok=True)  # replacing a name of the same file does nothing


def make_folder(path: Path, given: str) -> None:
    """Creates a folder that the user chose, with its parents; it may exist.

    Args:
        path: the folder.
        given: how the user named it, such as "--output PATH" or "output_dir=PATH".

    Raises:
        UserError: the folder cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{given}: cannot create the folder {path} ({error.strerror}).") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{given}: the folder {path} is not writable.")


def make_place(file: Path, given: str) -> None:
    """Creates the folder of a file that the user chose, with its parents, before there is anything to write.

    Args:
        file: it may exist, and is then to be replaced.
        given: how the user named it, such as "--csv PATH".

    Raises:
        UserError: the folder cannot be created or written to, or the file is a folder.
    """
    if file.is_dir():
        raise UserError(f"{given}: this is a folder; give the name of a file in it.")
    make_folder(file.parent, given)


def remove_partial_files(folder: Path, of: Callable[[str], object] = bool) -> bool:
    """Removes what killed processes left in a folder, which need not exist, and returns whether there was anything.

    Args:
        of: of which files, by their names. The caller holds the lock of those who write them.
    """
    names = os.listdir(folder) if folder.is_dir() else []
    partial = [name for name in names if (found := PARTIAL_FILE.fullmatch(name)) and of(found[1])]
    for name in partial:
        (folder / name).unlink(missing_ok=True)
    return bool(partial)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder outlast a power failure; on Windows, where no folder can be opened, that is NTFS's."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Path, key: str = "output_dir") -> None:
    """Raises UserError if nothing could be written into a folder that need not exist; nothing is left behind."""
    existing = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    if not existing.is_dir():
        raise UserError(f"{key}={folder}: {existing} is a file, not a folder.")
    probe = existing / f".writable_{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{key}={folder} cannot be written: {error.strerror} ({existing}).") from None
