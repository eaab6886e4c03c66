"""Decoding with torchcodec."""

import os
from collections.abc import Iterator

import numpy as np
from torchcodec.decoders import VideoDecoder

from nlvideo.data.decoding.conversion import RESIZE_CHUNK
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.decoding.video import Crop, CropSource, DecodeError, Region, Video
from nlvideo.data.shards.video_file import member_address


class TorchcodecVideo(Video):
    """A video file, decoded by torchcodec in its exact mode with one thread.

    PyAV counts the frames first; a file in which torchcodec finds another number is refused.

    Raises:
        DecodeError: as PyavVideo, and when torchcodec disagrees with it or refuses the file.
        SlowVideo: looking at it took longer than `time_limit` seconds.
    """

    def __init__(self, path: str | os.PathLike, time_limit: float | None = None):
        with PyavVideo(path, time_limit) as probe:
            self.path, self.num_frames = probe.path, probe.num_frames
            self.height, self.width, self.fps = probe.height, probe.width, probe.fps
        try:
            self._decoder = VideoDecoder(
                member_address(self.path) or self.path,
                seek_mode="exact",
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                device="cpu",
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise DecodeError(self.path, f"torchcodec: {str(error).splitlines()[0]}") from None
        found = self._decoder.metadata
        if found.num_frames != self.num_frames or (found.height, found.width) != (self.height, self.width):
            raise DecodeError(
                self.path,
                f"torchcodec finds {found.num_frames} frames of {found.width}x{found.height}, the file has "
                f"{self.num_frames} of {self.width}x{self.height}; use data.decoder=pyav",
            )

    def close(self) -> None:
        self._decoder = None

    def _read_parts(self, indices: np.ndarray, crop: Crop | Region) -> Iterator[CropSource]:
        rows, columns = crop.spans(self.height, self.width)
        for first in range(0, len(indices), RESIZE_CHUNK):
            try:
                frames = self._decoder.get_frames_at(indices[first : first + RESIZE_CHUNK].tolist()).data
            except (RuntimeError, IndexError) as error:
                raise DecodeError(self.path, f"torchcodec: {str(error).splitlines()[0]}") from None
            yield CropSource(frames[:, rows.first : rows.stop, columns.first : columns.stop], rows, columns)
