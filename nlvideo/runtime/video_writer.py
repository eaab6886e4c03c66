"""Writes H.264 files."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


class VideoWriter:
    """An mp4 file without sound, written frame by frame; use it in a `with` statement.

    Args:
        path: where to write; wrap it in files.replacing() to write the file whole.
        rate: frames per second.
        options: of libx264, such as {"crf": "18", "g": "24"}.
    """

    def __init__(self, path: Path, rate: Fraction | int, options: Mapping[str, str]):
        self._container = av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = dict(options)
        self._started = False

    def write(self, pixels: np.ndarray) -> None:
        """Appends a frame (H, W, 3) uint8, RGB, contiguous; H and W are even and the same for all frames."""
        if not self._started:
            self._stream.height, self._stream.width = pixels.shape[:2]
            self._started = True
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, error: type | None, *_: object) -> None:
        if error is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
