"""A video's bytes, by its path: those of a file, or of a member of a tar file, read in place.

`root/shard_00012.tar/CLASS/name.mp4` is the member CLASS/name.mp4 if root/shard_00012.tar is a file. What asks the file
system about a video asks here.
"""

import errno
import io
import os
import re
from collections.abc import Callable
from functools import cache
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nlvideo.data.shards.tar_table import member_of_table, name_key, scanned, written_entries

SEPARATOR = "[/\\\\]" if os.sep == "\\" else "/"
TAR = re.compile(rf"\.(?:tar|tar\.(?:gz|bz2|xz|zst)|tgz)(?={SEPARATOR})", re.IGNORECASE)


class FileStatus(NamedTuple):
    """What tells one state of a video's bytes from another."""

    size: int  # bytes
    mtime_ns: int  # of the file, or of the tar file that it is in
    start: int = 0  # of a member, its first byte in the tar file


class MemberPlace(NamedTuple):
    """Where the bytes of a video are."""

    file: str
    start: int
    stop: int


def split_member(path: str, is_file: Callable[[str], bool] = os.path.isfile) -> tuple[str, str] | None:
    """Returns the tar file and the member that a path names; None if no part of it but the last is a tar file."""
    for found in TAR.finditer(path):
        if is_file(path[: found.end()]):
            return path[: found.end()], path[found.end() + 1 :].replace(os.sep, "/")
    return None


def exists(path: str) -> bool:
    """Returns whether there is such a file, folder or member."""
    parts = split_member(path)
    if parts is None:
        return os.path.exists(path)
    try:
        _place_of(*parts)
    except OSError:
        return False
    return True


def is_missing(path: str) -> bool:
    """Returns whether there is no such file, folder or member, rather than one that cannot be read."""
    parts = split_member(path)
    if parts is None:
        return not os.path.exists(path)
    try:
        _place_of(*parts)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def how_to_name_members(path: str) -> str:
    """Returns what to do with a path that leads to a tar file itself, as a sentence; empty for other paths."""
    if not TAR.search(os.path.basename(path) + os.sep) or not os.path.isfile(path):
        return ""
    return f"{path} is a tar file: name a member of it, {path}/CLASS/name.mp4."


def reason_in_tar(path: str) -> str:
    """Returns why a path that names a member leads to none, as a remark after it; empty for other paths."""
    parts = split_member(path)
    try:
        if parts is not None:
            _place_of(*parts)
    except OSError as error:
        return f" ({error.strerror})"
    return ""


def file_status(path: str | os.PathLike) -> FileStatus:
    """Returns the status of a file or member.

    Raises:
        OSError: there is none; its strerror says why.
    """
    parts = split_member(os.fspath(path))
    if parts is None:
        status = os.stat(path)
        return FileStatus(status.st_size, status.st_mtime_ns)
    place = _place_of(*parts)
    return FileStatus(place.stop - place.start, os.stat(place.file).st_mtime_ns, place.start)


def open_bytes(path: str) -> BinaryIO:
    """Returns the bytes of a file or member, for reading.

    Raises:
        OSError: as file_status.
    """
    parts = split_member(path)
    if parts is None:
        return open(path, "rb")
    return io.BufferedReader(_MemberBytes(_place_of(*parts)))


def member_address(path: str) -> str | None:
    """Returns what FFmpeg opens a member by, where it takes the name of a file; None for what is no member.

    Raises:
        OSError: the tar file lacks it or is none; its strerror says why.
    """
    parts = split_member(path)
    if parts is None:
        return None
    place = _place_of(*parts)
    if place.start == place.stop:
        raise OSError(errno.EINVAL, "it holds no bytes", path)
    # FFmpeg's own protocol reads part of a file. What follows the last option is the name, whatever is in it.
    return f"subfile,,start,{place.start},end,{place.stop},,:file:{place.file}"


class Listing:
    """Tells which of many files exist. Folders and tar files are listed once, instead of asking for each file, which
    takes minutes on network disks."""

    def __init__(self) -> None:
        self._names, self._keys = cache(_names_in), cache(_keys_in)
        self._is_file, self._exists = cache(os.path.isfile), cache(os.path.exists)

    def has(self, path: str) -> bool:
        parts = split_member(path, self._is_file)
        if parts is not None:
            keys, key = self._keys(parts[0]), np.uint64(name_key(parts[1]))
            place = int(np.searchsorted(keys, key))
            return place < len(keys) and bool(keys[place] == key)
        if not all(self._exists(path[: found.end()]) for found in TAR.finditer(path)):
            return False  # without a look for each member of a tar file that is missing
        # What is not listed may still exist: a link's target, or a name in another case or in an unreadable folder.
        folder, base = os.path.split(path)
        return base in self._names(folder) or os.path.exists(path)


def _names_in(folder: str) -> frozenset[str]:
    """Returns the names in a folder, without symbolic links, which may lead nowhere."""
    try:
        with os.scandir(folder) as found:
            return frozenset(entry.name for entry in found if not entry.is_symlink())
    except OSError:
        return frozenset()


def _keys_in(tar: str) -> np.ndarray:
    """Returns the keys of the members of a tar file that are whole, ascending, uint64."""
    try:
        with open(tar, "rb", buffering=0) as file:
            written = written_entries(file, whole=True)
            if written is not None:
                return written.keys()
        return scanned(tar).keys
    except OSError:
        return np.empty(0, np.uint64)


def _place_of(tar: str, member: str) -> MemberPlace:
    """Returns where a member lies.

    Raises:
        OSError: the tar file is none, or it cannot be read there; its strerror says why.
        FileNotFoundError: the tar file, which can be read to its end, lacks it.
    """
    with open(tar, "rb", buffering=0) as file:
        written = written_entries(file)
        found = member_of_table(file, written, member) if written is not None else None
    if found is not None:
        return MemberPlace(tar, found.start, found.stop)
    return MemberPlace(tar, *_scanned_place(tar, member))


def _scanned_place(tar: str, member: str) -> tuple[int, int]:
    scan, key, name = scanned(tar), name_key(member), os.path.basename(tar)
    if key == name_key(""):
        raise OSError(errno.EINVAL, f"{name} is a tar file: name a member of it, {name}/CLASS/name.mp4", tar)
    place = scan.find(key)
    if place is None and key in scan.others:
        raise OSError(errno.EINVAL, scan.others[key], tar)
    if place is None and not len(scan.keys) and not scan.others and scan.problem:
        raise OSError(errno.EINVAL, f"{name} {scan.problem}", tar)
    if place is None and scan.problem:
        raise OSError(errno.EINVAL, f"{name} {scan.problem}, and up to there it holds no {member}", tar)
    if place is None:
        raise FileNotFoundError(errno.ENOENT, f"the tar file {name} holds no {member}", tar)
    return place


class _MemberBytes(io.RawIOBase):
    """The bytes of a member."""

    def __init__(self, place: MemberPlace):
        self._file, self._place, self._offset = open(place.file, "rb", buffering=0), place, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size = self._place.stop - self._place.start
        self._offset = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: size}[whence]
        return self._offset

    def readinto(self, buffer: Any) -> int:
        left = max(self._place.stop - self._place.start - self._offset, 0)
        self._file.seek(self._place.start + self._offset)
        count = self._file.readinto(memoryview(buffer)[: min(len(buffer), left)]) or 0
        self._offset += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
