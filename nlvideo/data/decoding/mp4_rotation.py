"""Whether an MP4 or QuickTime file may ask for its frames to be turned, without decoding one."""

import struct
from typing import BinaryIO

UPRIGHT = struct.pack(">5i", 0x10000, 0, 0, 0, 0x10000)  # a, b, u, c, d of the matrix, 16.16 fixed point
MATRIX = {0: 40, 1: 52}  # version of the track header: bytes from its version to its matrix (ISO 14496-12, 8.3.2)


def may_turn(path: str) -> bool:
    """Returns False if every track's matrix leaves frames as they are; True if one does not or it is not known."""
    with open(path, "rb") as file:
        movie = _movie_box(file)
    if movie is None:
        return True
    place = movie.find(b"tkhd")
    while place >= 0:
        start = place + 4 + MATRIX.get(movie[place + 4] if place + 4 < len(movie) else 0, 0)
        if movie[start : start + len(UPRIGHT)] != UPRIGHT:
            return True
        place = movie.find(b"tkhd", place + 4)
    return False


def _movie_box(file: BinaryIO) -> bytes | None:
    """Returns the content of the box that describes the movie, None if there is none."""
    while len(header := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", header)
        taken = 8
        if size == 1:
            size, taken = int.from_bytes(file.read(8), "big"), 16
        if kind == b"moov":
            return file.read(size - taken if size else -1)
        if size < taken:
            return None
        file.seek(size - taken, 1)
    return None
