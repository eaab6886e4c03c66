"""Decoding with decord, for comparison and for those who have tuned for it."""

import os
from collections.abc import Iterator

import decord
import numpy as np
import torch

from nlvideo.data.decoding.conversion import RESIZE_CHUNK
from nlvideo.data.decoding.orientation import UPRIGHT
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.decoding.video import Crop, CropSource, DecodeError, Region, Video
from nlvideo.data.shards.video_file import member_address


class DecordVideo(Video):
    """A video file, decoded by decord with one thread.

    decord gives silently wrong frames for some files; PyAV looks at the file first, and these are refused: frames
    without usable presentation times (MPEG-4 in AVI), B-frames in other codecs than H.264 or in open groups of
    pictures, more than 8 bits, frames to be turned, and any file in which decord counts other frames than there are.

    Raises:
        DecodeError: as PyavVideo, and for the files above.
        SlowVideo: looking at it took longer than `time_limit` seconds.
    """

    def __init__(self, path: str | os.PathLike, time_limit: float | None = None):
        with PyavVideo(path, time_limit) as probe:
            self.path, self.num_frames = probe.path, probe.num_frames
            self.height, self.width, self.fps = probe.height, probe.width, probe.fps
            refused = _refused(probe)
        if refused:
            raise DecodeError(self.path, f"decord would give wrong frames: {refused}; use data.decoder=pyav")
        try:
            self._reader = decord.VideoReader(member_address(self.path) or self.path, num_threads=1)
        except (decord.DECORDError, RuntimeError, OSError) as error:
            raise DecodeError(self.path, f"decord: {_reason(error)}") from None
        if len(self._reader) != self.num_frames:
            raise DecodeError(
                self.path,
                f"decord would give wrong frames: it counts {len(self._reader)} of {self.num_frames}; "
                "use data.decoder=pyav",
            )

    def close(self) -> None:
        self._reader = None  # decord closes the file when nothing refers to it

    def _read_parts(self, indices: np.ndarray, crop: Crop | Region) -> Iterator[CropSource]:
        rows, columns = crop.spans(self.height, self.width)
        for first in range(0, len(indices), RESIZE_CHUNK):
            try:
                frames = self._reader.get_batch(indices[first : first + RESIZE_CHUNK].tolist()).asnumpy()
            except (decord.DECORDError, RuntimeError, IndexError) as error:
                raise DecodeError(self.path, f"decord: {_reason(error)}") from None
            cut = torch.from_numpy(frames)[:, rows.first : rows.stop, columns.first : columns.stop]
            yield CropSource(cut, rows, columns)


def _refused(probe: PyavVideo) -> str | None:
    """Returns what about a file decord gets wrong."""
    if not probe.timed:
        return "its frames have no usable presentation times"
    if probe.bit_depth > 8:
        return f"it has {probe.bit_depth} bits a colour"
    if probe.orientation != UPRIGHT:
        return "its frames are to be turned"
    if probe.reordered and (probe.codec != "h264" or probe.open_gops):
        return f"{probe.codec} with B-frames{' in open groups of pictures' if probe.open_gops else ''}"
    return None


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
