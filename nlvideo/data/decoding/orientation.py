"""How stored frames are turned and mirrored to be seen upright."""

import struct
from typing import Any, BinaryIO, NamedTuple, cast

import av
import numpy as np

SMALL = 0.02  # of the larger numbers: what a matrix for a quarter turn may have where it should have 0; one degree
IDENTITY = struct.pack(">5i", 0x10000, 0, 0, 0, 0x10000)  # a, b, u, c, d of the matrix, 16.16 fixed point
MATRIX = {0: 40, 1: 52}  # version of the track header: bytes from its version to its matrix (ISO 14496-12, 8.3.2)


class Orientation(NamedTuple):
    """What is done to stored frames, in this order. Any quarter turn and any mirroring is one of the eight."""

    transposed: bool = False
    flip_rows: bool = False  # the last row becomes the first
    flip_columns: bool = False

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Returns a view of pixels (H, W, ...) as they are to be seen."""
        pixels = pixels.swapaxes(0, 1) if self.transposed else pixels
        return pixels[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns (height, width) of stored frames as they are to be seen."""
        return (width, height) if self.transposed else (height, width)

    @property
    def filters(self) -> list[str]:
        """The names and arguments of FFmpeg's filters that do the same."""
        chosen = {"transpose=cclock_flip": self.transposed, "vflip": self.flip_rows, "hflip": self.flip_columns}
        return [name for name, wanted in chosen.items() if wanted]


UPRIGHT = Orientation()


def orientation(matrix: bytes) -> Orientation:
    """Returns what a display matrix asks for: nine numbers a b u c d v x y w that take a stored pixel (p, q) to the
    column a p + c q and the row b p + d q (ISO 14496-12, 6.2.2). Other angles than quarter turns are left alone.

    Args:
        matrix: nine int32 in the machine's byte order, as FFmpeg gives them.
    """
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix[:36])
    straight, crossed = (a, d), (b, c)
    if min(map(abs, straight)) > 0 and max(map(abs, crossed)) <= SMALL * min(map(abs, straight)):
        return Orientation(False, d < 0, a < 0)
    if min(map(abs, crossed)) > 0 and max(map(abs, straight)) <= SMALL * min(map(abs, crossed)):
        return Orientation(True, b < 0, c < 0)
    return UPRIGHT


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """Returns what the display matrix of a decoded frame asks for."""
    matrix = cast(Any, frame.side_data).get("DISPLAYMATRIX")
    return orientation(bytes(matrix)) if matrix is not None else UPRIGHT


def may_turn(file: BinaryIO) -> bool:
    """Returns False if every track's matrix leaves frames as they are; True if one does not or it is not known.

    Args:
        file: an MP4, at its first byte.
    """
    movie = _movie_box(file)
    if movie is None:
        return True
    place = movie.find(b"tkhd")
    while place >= 0:
        start = place + 4 + MATRIX.get(movie[place + 4] if place + 4 < len(movie) else 0, 0)
        if movie[start : start + len(IDENTITY)] != IDENTITY:
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
