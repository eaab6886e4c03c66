"""What the headers of a tar file tell of its members: ustar, pax, GNU and the tar of Unix V7.

Python's tarfile reads each block. What belongs to one member is gathered here, because tarfile never ends with some
damaged files and takes any amount of memory, or raises any error, for others. Here every step goes forward in the
file, and what stands before one member is bounded.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
EXTENSIONS = (*PAX_TYPES, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
MOST_EXTENSIONS = 1 << 20  # bytes before one member; names have at most 4 kB, attributes of files 64 kB each
NO_CONTENT = {tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE}
KINDS = {tarfile.DIRTYPE: "a folder", tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link"}
SPARSE = "stored with holes (sparse)"
KEPT = (b"path", b"size", b"GNU.sparse.name")  # pax records that tell where a member is
HOLES = b"sparse"  # stands for all other GNU.sparse records
LONGEST_NAME = 1 << 14  # bytes; a pax record may give one long name to all members


class DamagedTar(Exception):
    """A tar file that cannot be read from a place on; says what is wrong with the file, as "is cut short"."""


@dataclass(frozen=True)
class Member:
    """A member of a tar file.

    Attributes:
        name: as it is stored.
        start: first byte of its content.
        size: bytes of its content; the file may be shorter.
        kind: what it is, empty for a regular file.
    """

    name: bytes
    start: int
    size: int
    kind: str

    @property
    def stop(self) -> int:
        return self.start + self.size

    @property
    def next_header(self) -> int:
        return _whole_blocks(self.stop)


@dataclass
class _Extensions:
    """What the headers before a member's own say of it."""

    name: bytes | None = None  # of GNU tar
    pax: dict[bytes, bytes] = field(default_factory=dict)
    num_bytes: int = 0


def read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def members(file: BinaryIO) -> Iterator[Member]:
    """Yields the members of a tar file in their order.

    Raises:
        DamagedTar: the rest cannot be read.
    """
    size, offset = file.seek(0, io.SEEK_END), 0
    for_all: dict[bytes, bytes] = {}
    while (member := member_at(file, offset, for_all)) is not None:
        yield member
        if member.next_header > size:
            raise _cut_short(size)
        offset = member.next_header


def member_at(file: BinaryIO, offset: int, for_all: dict[bytes, bytes] | None = None) -> Member | None:
    """Returns the member whose headers begin at a byte; None if the tar file says there that it ends.

    Args:
        for_all: pax records that hold for all that follows them; those that are found here are added.

    Raises:
        DamagedTar: no member begins there.
    """
    begin, extensions = offset, _Extensions()
    for_all = {} if for_all is None else for_all
    while True:
        info, offset = _header(file, offset, ends=offset == begin), offset + BLOCK
        if info is None:
            return None
        if info.type not in EXTENSIONS:
            return _member(file, info, offset, extensions, for_all)
        offset = _add(file, info, offset, extensions, for_all)


def _header(file: BinaryIO, offset: int, *, ends: bool) -> tarfile.TarInfo | None:
    """Returns a block that is a header; None for the one that ends a tar file, where one may."""
    block = read_at(file, offset, BLOCK)
    if len(block) < BLOCK:
        raise _cut_short(offset + len(block))
    if ends and not any(block):
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise DamagedTar(f"is damaged ({error} at byte {offset})" if offset else f"is no tar file ({error})") from None
    if info.size < 0:
        raise DamagedTar(f"is damaged (a size of {info.size} at byte {offset})")
    return info


def _add(
    file: BinaryIO, info: tarfile.TarInfo, offset: int, extensions: _Extensions, for_all: dict[bytes, bytes]
) -> int:
    """Adds what a header before a member's own says, and returns where the next one begins."""
    extensions.num_bytes += BLOCK + _whole_blocks(info.size)
    if extensions.num_bytes > MOST_EXTENSIONS:
        raise DamagedTar(f"is damaged (headers of {extensions.num_bytes} bytes for one member at byte {offset})")
    content = read_at(file, offset, info.size)
    if len(content) < info.size:
        raise _cut_short(offset + len(content))
    if info.type == tarfile.GNUTYPE_LONGNAME:
        extensions.name = content.partition(b"\0")[0]
    elif info.type in PAX_TYPES:
        (for_all if info.type == tarfile.XGLTYPE else extensions.pax).update(_pax_records(content, offset))
    return _whole_blocks(offset + info.size)


def _pax_records(content: bytes, offset: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields those pax records ("LENGTH KEYWORD=VALUE\\n") that tell where a member is."""
    place = 0
    while place < len(content) and content[place]:
        digits = content[place : place + 8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        keyword, equals, value = content[place + len(digits) + 1 : place + length].partition(b"=")
        if not equals or value[-1:] != b"\n" or place + length > len(content):
            raise DamagedTar(f"is damaged (no pax record at byte {offset + place})")
        if keyword in KEPT:
            yield keyword, value[:-1]
        if keyword.startswith(b"GNU.sparse."):
            yield HOLES, b""
        place += length


def _member(
    file: BinaryIO,
    info: tarfile.TarInfo,
    offset: int,
    extensions: _Extensions,
    for_all: dict[bytes, bytes],
) -> Member:
    pax = for_all | extensions.pax
    kind = "" if info.isreg() else KINDS.get(info.type, "no regular file")
    if info.type == tarfile.GNUTYPE_SPARSE or HOLES in pax:
        kind, offset = SPARSE, _behind_map(file, info, offset)
    own_name = extensions.name or info.name.encode("utf-8", "surrogateescape")
    name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or own_name
    if len(name) > LONGEST_NAME:
        raise DamagedTar(f"is damaged (a name of {len(name)} bytes before byte {offset})")
    digits = pax.get(b"size", b"%d" % info.size)
    if not digits.isdigit() or len(digits) > 40:
        raise DamagedTar(f"is damaged (no size in the pax records before byte {offset})")
    size = 0 if info.type in NO_CONTENT else int(digits)
    return Member(name, offset, size, kind)


def _behind_map(file: BinaryIO, info: tarfile.TarInfo, offset: int) -> int:
    """Returns where the content of a member that GNU tar has stored with holes begins."""
    more = info.type == tarfile.GNUTYPE_SPARSE and read_at(file, offset - BLOCK + 482, 1) != b"\0"
    while more:
        more, offset = read_at(file, offset + 504, 1) not in (b"", b"\0"), offset + BLOCK
    return offset


def _whole_blocks(offset: int) -> int:
    return -(-offset // BLOCK) * BLOCK


def _cut_short(size: int) -> DamagedTar:
    return DamagedTar(f"is cut short: it ends after {size} bytes")
