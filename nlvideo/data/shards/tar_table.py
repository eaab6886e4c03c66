"""Where the members of a tar file lie: from a table that a shard has at its end, or by reading all of its headers.

Nothing is ever unpacked. A shard of prepare_videos.py is an ordinary tar file whose last member, TABLE_MEMBER, is a
table of the others, sorted by a hash of their names: a member is found with a few small reads, no process keeps the
table, and it travels with the file. It only says where to look: name, size and kind are those of the member's own
headers. Of other tar files, a process keeps what it has read as long as they are unchanged.
"""

import io
import os
import struct
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from posixpath import dirname, normpath
from tarfile import DIRTYPE
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nlvideo.data.shards.tar_headers import BLOCK, KINDS, DamagedTar, Member, member_at, members, read_at

TABLE_MEMBER = ".nlvideo_members"
ENTRY = struct.Struct("<QQ")  # the fields of Entry
ENTRY_TYPE = np.dtype("<u8,<u8")
FOOTER = struct.Struct("<16sQQI")  # TABLE_MAGIC, first byte of the entries, their number, their CRC-32
TABLE_MAGIC = b"nlvideo members1"
END = 2 * BLOCK  # zeros with which a tar file ends
NOT_READ = "which is not read"
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Entry(NamedTuple):
    """A member in the table of a tar file."""

    key: int  # see name_key
    header: int  # first byte of its headers


class Entries(Sequence[Entry]):
    """Entries in the order of their keys, read one at a time."""

    def __init__(self, read: Callable[[int, int], bytes], count: int):
        self._read, self._count = read, count  # read gives so many bytes from an offset on

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return Entry(*ENTRY.unpack(self._read(index * ENTRY.size, ENTRY.size)))

    def find(self, key: int) -> Entry | None:
        place = bisect_left(self, key, key=lambda entry: entry.key)
        entry = self[place] if place < len(self) else None
        return entry if entry is not None and entry.key == key else None

    def keys(self) -> np.ndarray:
        """Returns all keys, ascending, uint64."""
        return np.frombuffer(self._read(0, self._count * ENTRY.size), ENTRY_TYPE)["f0"].copy()


@dataclass
class Scan:
    """What the headers of a tar file tell.

    Attributes:
        keys: of the names of its regular files, ascending (files,) uint64; of several with one name the last counts,
            as unpacking would leave it.
        places: first byte of the content of each, and the byte after it (files, 2) int64.
        others: why other members are not read, by the keys of their names; folders that hold members are among them.
        problem: what is wrong with the tar file, if it does not end where its headers do.
    """

    keys: np.ndarray
    places: np.ndarray
    others: dict[int, str] = field(default_factory=dict)
    problem: str = ""

    def find(self, key: int) -> tuple[int, int] | None:
        place = int(np.searchsorted(self.keys, np.uint64(key)))
        if place == len(self.keys) or int(self.keys[place]) != key:
            return None
        start, stop = self.places[place].tolist()
        return start, stop


def normal_name(name: str | bytes) -> bytes:
    """Returns a member's name in one form; ./a, /a and a are one name, as they are when a tar file is unpacked."""
    return normpath(os.fsencode(name)).lstrip(b"/")


def name_key(name: str | bytes) -> int:
    """Returns a hash of a member's name, 64 bits."""
    return int.from_bytes(blake2b(normal_name(name), digest_size=8).digest(), "little")


def packed_entries(entries: Iterable[Entry]) -> bytes:
    return b"".join(ENTRY.pack(*entry) for entry in sorted(entries))


def written_entries(file: BinaryIO, *, whole: bool = False) -> Entries | None:
    """Returns the table at the end of a shard; None if there is none.

    Args:
        whole: compare its checksum too, which reads all of it.
    """
    size = file.seek(0, io.SEEK_END)
    footer = read_at(file, max(size - END - BLOCK, 0), FOOTER.size)
    if len(footer) < FOOTER.size:
        return None
    magic, start, count, crc = FOOTER.unpack(footer)
    if magic != TABLE_MAGIC or not _is_table(file, start, size - END - start, count):
        return None
    if whole and zlib.crc32(read_at(file, start, count * ENTRY.size)) != crc:
        return None
    return Entries(lambda offset, length: read_at(file, start + offset, length), count)


def _is_table(file: BinaryIO, start: int, size: int, count: int) -> bool:
    """Returns whether a member with the table stands at a byte and has so many bytes and room for so many entries."""
    if not BLOCK <= start or count * ENTRY.size + BLOCK > size:
        return False
    try:
        member = member_at(file, start - BLOCK)
    except DamagedTar:
        return False
    return member is not None and (member.name, member.size) == (os.fsencode(TABLE_MEMBER), size)


def member_of_table(file: BinaryIO, entries: Entries, name: str) -> Member | None:
    """Returns the regular file of a name that a table leads to; None if it leads to none, or to one cut short."""
    entry = entries.find(name_key(name))
    size = file.seek(0, io.SEEK_END)
    try:
        member = member_at(file, entry.header) if entry is not None and entry.header < size else None
    except DamagedTar:
        return None
    if member is None or member.kind or member.stop > size or normal_name(member.name) != normal_name(name):
        return None
    return member


def scanned(path: str) -> Scan:
    """Returns what the headers of a tar file tell; they are read again only if the file has changed.

    Raises:
        OSError: it cannot be read.
    """
    status = os.stat(path)
    state = status.st_size, status.st_mtime_ns, status.st_ino
    known = _scans.get(path)
    if known is None or known[0] != state:
        known = _scans[path] = (state, _scan(path))
    return known[1]


_scans: dict[str, tuple[tuple[int, int, int], Scan]] = {}


def _scan(path: str) -> Scan:
    found: dict[int, tuple[int, int]] = {}
    others: dict[int, str] = {}
    folders: set[bytes] = set()
    with open(path, "rb", buffering=0) as file:
        size = file.seek(0, io.SEEK_END)
        problem = _compression(file)
        try:
            for member in members(file) if not problem else ():
                key, why_not = name_key(member.name), _why_not(member, size)
                found.pop(key, None)
                others.pop(key, None)
                if why_not:
                    others[key] = f"in {os.path.basename(path)} it is {why_not}"
                else:
                    found[key] = member.start, member.stop
                folders.add(dirname(normal_name(member.name)))
        except DamagedTar as error:
            problem = str(error)
    for key in {name_key(folder) for folder in folders if folder} - found.keys() - others.keys():
        others[key] = f"in {os.path.basename(path)} it is {KINDS[DIRTYPE]}, {NOT_READ}"
    keys = np.array(list(found), np.uint64)
    order = np.argsort(keys)
    return Scan(keys[order], np.array(list(found.values()), np.int64).reshape(-1, 2)[order], others, problem)


def _compression(file: BinaryIO) -> str:
    """Returns what is wrong with a compressed file, empty for others."""
    start = read_at(file, 0, 6)
    kind = next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), None)
    if kind is None:
        return ""
    return f"is compressed ({kind}); members are read in place, which takes an uncompressed tar file"


def _why_not(member: Member, size: int) -> str:
    """Returns why a member of a tar file of `size` bytes is not read, empty if it is."""
    if member.kind:
        return f"{member.kind}, {NOT_READ}"
    if member.stop > size:
        return f"cut short: the tar file ends after {size} bytes, this video would end after {member.stop}"
    return ""
