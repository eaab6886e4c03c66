"""Whatever a program may hand over as a video: a path, the bytes of a file, an open file, or frames in memory."""

import io
import os
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from nlvideo.data.decoding.array_video import Frames
from nlvideo.data.decoding.excerpt import Excerpt
from nlvideo.data.decoding.opening import open_video
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.decoding.video import DecodeError, Video
from nlvideo.data.index.video_index import VideoIndex
from nlvideo.runtime.errors import UserError

VideoSource = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO | Frames


def source_name(source: Any) -> str:
    """Returns what messages call a video."""
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    if isinstance(source, Frames):
        return source.name
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{memoryview(source).nbytes} bytes"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else f"a {type(source).__name__}"


def open_source(
    source: VideoSource,
    decoder: str = "pyav",
    time_limit: float | None = None,
    frame_rate: float = 30.0,
    *,
    part: tuple[float, float] | None = None,
    clip_fps: float | None = None,
    index: VideoIndex | None = None,
) -> Video:
    """Returns an open video as open_video does, of a path or of what is in memory; nothing is written to a disk.

    A file object is read from its first byte to its last, wherever it stands, and left open.

    Raises:
        DecodeError: as open_video; also for a folder that cannot be read.
        UserError: none of these kinds; frames without a rate; a file that is text, closed or cannot be sought; bytes
            with a decoder other than pyav.
    """
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        try:
            return open_video(path, decoder, time_limit, frame_rate, part=part, clip_fps=clip_fps, index=index)
        except OSError as error:
            raise DecodeError(path, error.strerror or str(error)) from None
    video = source.video() if isinstance(source, Frames) else _open_bytes(source, decoder, time_limit)
    if part is None and clip_fps is None:
        return video
    try:
        return Excerpt(video, part, clip_fps)
    except BaseException:
        video.close()
        raise


def _open_bytes(source: Any, decoder: str, time_limit: float | None) -> PyavVideo:
    content = source.tobytes() if isinstance(source, memoryview) else source  # which may skip bytes
    file = io.BytesIO(content) if isinstance(content, bytes | bytearray) else source
    if isinstance(source, np.ndarray | Tensor):
        raise UserError(f"an array {tuple(source.shape)} has no rate: give nlvideo.Frames(array, fps=30).")
    if not hasattr(file, "read"):
        kinds = "a path, nlvideo.Frames(frames, fps=30), bytes or a binary file object"
        raise UserError(f"a {type(source).__name__} is no video; give {kinds}.")
    if getattr(file, "closed", False):
        raise UserError(f"{source_name(source)}: the file object is closed.")
    if isinstance(file, io.TextIOBase) or not (hasattr(file, "seekable") and file.seekable()):
        raise UserError(f"{source_name(source)}: a file object must be binary (mode 'rb') and able to seek.")
    if decoder != "pyav":
        raise UserError(f"data.decoder={decoder} reads paths alone: bytes and file objects need data.decoder=pyav.")
    return PyavVideo(source_name(source), time_limit, file=file)
