"""The size of a video's frames as they are stored, and how they are turned: by the header, or by a decoded frame."""

from typing import Any, NamedTuple

import av

from nlvideo.data.decoding.file_input import FAILURES, FileInput
from nlvideo.data.decoding.orientation import UPRIGHT, Orientation, may_turn, orientation_of
from nlvideo.data.decoding.video import Deadline


class StoredShape(NamedTuple):
    height: int
    width: int
    orientation: Orientation


def stored_shape(container: Any, stream: Any, file: FileInput, deadline: Deadline) -> StoredShape:
    """Returns the shape of a stream's frames; for formats that can turn frames, only a decoded one tells.

    Raises:
        SlowVideo: the deadline is over.
    """
    formats = set(container.format.name.split(","))
    if "matroska" in formats or ("mov" in formats and _may_turn(file)):
        frame = _first_frame(container, stream, deadline)
        if frame is not None:  # otherwise reading will report why
            return StoredShape(frame.height, frame.width, orientation_of(frame))
    return StoredShape(stream.codec_context.height, stream.codec_context.width, UPRIGHT)


def _may_turn(file: FileInput) -> bool:
    with file.bytes() as opened:
        return may_turn(opened)


def _first_frame(container: Any, stream: Any, deadline: Deadline) -> av.VideoFrame | None:
    """Returns any early frame; None if the first ones are corrupt."""
    context = stream.codec_context
    try:
        for alone in (True, False):  # the first packet is a keyframe and mostly enough; an edit list may cut it off
            container.seek(0, stream=stream)
            for packet in container.demux(stream):
                deadline.check()
                frames = packet.decode()
                if alone and packet.size:
                    frames += context.decode(None)
                if frames or alone:
                    break
            context.flush_buffers()
            if frames:
                return frames[0]
    except FAILURES:
        context.flush_buffers()
    return None
