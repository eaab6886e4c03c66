"""Writes shards: tar files that anything reads, with a table of their members at the end (see tar_table)."""

import os
import tarfile
import zlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from nlvideo.data.shards.tar_headers import BLOCK
from nlvideo.data.shards.tar_table import END, FOOTER, TABLE_MAGIC, TABLE_MEMBER, Entry, name_key, packed_entries
from nlvideo.runtime.errors import UserFileExistsError
from nlvideo.runtime.files import replacing

MTIME = 315532800  # of every member, 1 January 1980: equal videos make equal shards


def write_shard(file: Path, members: Iterable[tuple[str, Path]]) -> None:
    """Writes a shard whole: after a kill or a power failure it is there or not.

    Args:
        members: names in the shard and the files with their content.

    Raises:
        UserFileExistsError: the shard exists, as where two processes write it and the file system has no locks.
    """
    options: Any = {"format": tarfile.PAX_FORMAT, "encoding": "utf-8", "errors": "surrogateescape"}
    with replacing(file) as partial:
        with tarfile.open(partial, "w:", **options) as tar:
            entries = [_add(tar, name, path) for name, path in members]
            _add_table(tar, entries)
        if os.path.lexists(file):
            raise UserFileExistsError(f"{file} exists already, and is not overwritten.")


def _add(tar: tarfile.TarFile, name: str, path: Path) -> Entry:
    entry = Entry(name_key(name), tar.offset)
    with open(path, "rb") as content:
        tar.addfile(_info(name, path.stat().st_size), content)
    return entry


def _add_table(tar: tarfile.TarFile, entries: list[Entry]) -> None:
    """Adds the table, filled up so that its footer stands at a known distance from the end of the file."""
    data, start = packed_entries(entries), tar.offset + BLOCK
    total = -(-(start + len(data) + BLOCK + END) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    footer = FOOTER.pack(TABLE_MAGIC, start, len(entries), zlib.crc32(data)).ljust(BLOCK, b"\0")
    filled = data.ljust(total - END - BLOCK - start, b"\0") + footer
    tar.addfile(_info(TABLE_MEMBER, len(filled)), BytesIO(filled))


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, MTIME, 0o644
    return info
