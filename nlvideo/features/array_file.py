"""An .npy file that is written row by row, so that features of hours need no memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from nlvideo.runtime.files import replacing


class IncompleteRows(Exception):
    """A file was to become whole before its last row was written."""


class ArrayRows:
    """An .npy file while it is written; its shape is that of its first row, `count` times."""

    def __init__(self, path: Path, count: int):
        self._file, self._count, self._written = open(path, "wb"), count, 0
        self.shape: tuple[int, ...] = ()

    def append(self, row: np.ndarray) -> None:
        if not self._written:
            self.shape = (self._count, *row.shape)
            header = {"descr": npy.dtype_to_descr(row.dtype), "fortran_order": False, "shape": self.shape}
            npy.write_array_header_1_0(self._file, header)
        self._file.write(np.ascontiguousarray(row).data)
        self._written += 1

    def close(self) -> None:
        self._file.close()

    @property
    def is_whole(self) -> bool:
        return self._written == self._count


@contextmanager
def writing_rows(path: Path, count: int) -> Iterator[ArrayRows]:
    """Yields a file of so many rows that becomes `path` when the block ends with all of them there.

    Raises:
        IncompleteRows: the block ended before the last row; nothing is left.
        OSError: the disk is full or fails.
    """
    with replacing(path) as partial:
        rows = ArrayRows(partial, count)
        try:
            yield rows
        finally:
            rows.close()
        if not rows.is_whole:
            raise IncompleteRows
