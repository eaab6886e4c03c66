"""Where the members of a tar file lie: from a table that a shard has at its end, or by reading all of its headers.

Nothing is ever unpacked. A shard of prepare_videos.py is an ordinary tar file whose last member, TABLE_MEMBER, is a
table of the others, sorted by a hash of their names: a member is found with a few small reads, no process keeps the
table, and it travels with the file. Of other tar files, a process keeps what it has read as long as they are unchanged.
"""

import io
import os
import struct
import tarfile
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from posixpath import normpath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

TABLE_MEMBER = ".nlvideo_members"
ENTRY = struct.Struct("<QQQII")  # the fields of Entry
ENTRY_TYPE = np.dtype("<u8,<u8,<u8,<u4,<u4")
FOOTER = struct.Struct("<16sQQI")  # magic, first byte of the entries, their number, their CRC-32
MAGIC = b"nlvideo members1"
BLOCK = tarfile.BLOCKSIZE
END = 2 * BLOCK  # zeros with which a tar file ends
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
KINDS = {tarfile.DIRTYPE: "a folder", tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link"}


class Entry(NamedTuple):
    """A regular file in a tar file."""

    key: int  # see name_key
    header: int  # first byte of its header, of all headers where it has several
    size: int  # bytes of its content
    header_bytes: int
    check: int  # see header_check

    @property
    def start(self) -> int:
        return self.header + self.header_bytes

    @property
    def stop(self) -> int:
        return self.start + self.size


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
        entries: its regular files; of several with one name the last, as unpacking would leave it.
        others: why other members are not read, by the keys of their names.
        problem: why this is not a whole tar file that can be read in place, if it is not.
    """

    entries: Entries
    others: dict[int, str] = field(default_factory=dict)
    problem: str = ""


def name_key(name: str) -> int:
    """Returns a hash of a member's name, 64 bits; ./a and a are one name."""
    return int.from_bytes(blake2b(os.fsencode(normpath(name)), digest_size=8).digest(), "little")


def header_check(header: bytes, size: int) -> int:
    """Returns a CRC-32 of a member's header and of the bytes of its content."""
    return zlib.crc32(struct.pack("<Q", size), zlib.crc32(header))


def packed_entries(entries: Sequence[Entry]) -> bytes:
    return b"".join(ENTRY.pack(*entry) for entry in sorted(entries))


def written_entries(file: BinaryIO, *, whole: bool = False) -> Entries | None:
    """Returns the table at the end of a shard; None if there is none.

    It may be damaged, so what it says of a member is compared with the member's header (is_there).

    Args:
        whole: compare its checksum too, which reads all of it.
    """
    size = file.seek(0, io.SEEK_END)
    footer = _read_at(file, max(size - END - BLOCK, 0), FOOTER.size)
    if len(footer) < FOOTER.size:
        return None
    magic, start, count, crc = FOOTER.unpack(footer)
    if magic != MAGIC or start + count * ENTRY.size > size:
        return None
    if whole and zlib.crc32(_read_at(file, start, count * ENTRY.size)) != crc:
        return None
    return Entries(lambda offset, length: _read_at(file, start + offset, length), count)


def is_there(file: BinaryIO, entry: Entry) -> bool:
    """Returns whether the header that an entry tells of stands where it says, and the content is not cut off."""
    if entry.stop > file.seek(0, io.SEEK_END):
        return False
    return header_check(_read_at(file, entry.header, entry.header_bytes), entry.size) == entry.check


def scanned(path: str) -> Scan:
    """Returns what the headers of a tar file tell; they are read again only if the file has changed."""
    status = os.stat(path)
    state = status.st_size, status.st_mtime_ns, status.st_ino
    known = _scans.get(path)
    if known is None or known[0] != state:
        known = _scans[path] = (state, _scan(path))
    return known[1]


_scans: dict[str, tuple[tuple[int, int, int], Scan]] = {}


def _scan(path: str) -> Scan:
    found: dict[int, Entry] = {}
    others: dict[int, str] = {}
    with open(path, "rb") as file:
        size, end = file.seek(0, io.SEEK_END), 0
        problem = _compression(file)
        try:
            for member in _members(file) if not problem else ():
                key, (entry, why_not) = name_key(member.name), _entry(file, member, size)
                found.pop(key, None)
                others.pop(key, None)
                if entry is not None:
                    found[key] = entry
                else:
                    others[key] = f"in {os.path.basename(path)} it is {why_not}"
                end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
        except (tarfile.TarError, ValueError, OverflowError) as error:
            problem = "" if end else f"is no tar file ({error})"
        problem = problem or _end_problem(file, end, size)
    data = packed_entries(list(found.values()))
    return Scan(Entries(lambda offset, length: data[offset : offset + length], len(found)), others, problem)


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    file.seek(0)
    tar: Any = tarfile.open(fileobj=file, mode="r:")
    with tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # which would keep an object of each
            yield member


def _compression(file: BinaryIO) -> str:
    """Returns what is wrong with a compressed file, empty for others."""
    start = _read_at(file, 0, 6)
    kind = next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), None)
    if kind is None:
        return ""
    return f"is compressed ({kind}); members are read in place, which takes an uncompressed tar file"


def _entry(file: BinaryIO, member: tarfile.TarInfo, size: int) -> tuple[Entry | None, str]:
    """Returns where a member lies in a tar file of `size` bytes, or why it is not read."""
    if member.issparse() or not member.isreg():
        kind = "stored with holes (sparse)" if member.issparse() else KINDS.get(member.type, "no regular file")
        return None, f"{kind}, which is not read"
    length = member.offset_data - member.offset
    check = header_check(_read_at(file, member.offset, length), member.size)
    entry = Entry(name_key(member.name), member.offset, member.size, length, check)
    if entry.stop > size:
        return None, f"cut short: the tar file ends after {size} bytes, this video would end after {entry.stop}"
    return entry, ""


def _end_problem(file: BinaryIO, end: int, size: int) -> str:
    """Returns why the headers end where they do; empty if that is where the tar file says that it ends."""
    block = _read_at(file, end, BLOCK)
    if len(block) < BLOCK:
        return f"is cut short: it ends after {size} bytes"
    return f"is cut short or damaged: nothing can be read after byte {end} of {size}" if any(block) else ""


def _read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)
