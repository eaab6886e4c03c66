"""What decoding a whole video once tells, kept for the process: for files whose packets do not tell their frames."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import av
import numpy as np

from nlvideo.data.decoding.orientation import UPRIGHT, Orientation, orientation_of
from nlvideo.data.shards.video_file import FileStatus, file_status

MAX_KEPT = 20_000  # videos, some hundred bytes each


class DecodedIndex(NamedTuple):
    """Facts about the frames of a decode from the first byte to the last."""

    num_frames: int
    height: int  # of the first frame as it is stored
    width: int
    orientation: Orientation
    times: int | None  # a hash of their presentation times, None if these do not rise from frame to frame
    span: int  # from the first time to the last, 0 without times
    num_keyframes: int
    largest_gap: int  # frames from one keyframe to the next or to the end


def hash_times(times: np.ndarray) -> int:
    """Returns a hash of int64 times."""
    return hash(times.tobytes())


def decoded_index(path: str, decode: Callable[[], Iterator[av.VideoFrame]]) -> DecodedIndex:
    """Returns the index of a file, which is decoded only if this process has not done so since it was written."""
    key = path, file_status(path)
    if key in _kept:
        _kept.move_to_end(key)
        return _kept[key]
    index = _kept[key] = index_of_frames(decode())
    if len(_kept) > MAX_KEPT:
        _kept.popitem(last=False)
    return index


def index_of_frames(frames: Iterator[av.VideoFrame]) -> DecodedIndex:
    """Returns the index of a plain decode."""
    times: list[Any] = []
    keyframes: list[int] = []
    first = None
    for frame in frames:
        first = first or (frame.height, frame.width, orientation_of(frame))
        if frame.key_frame:
            keyframes.append(len(times))
        times.append(frame.pts)
    rise = None not in times and all(a < b for a, b in zip(times, times[1:], strict=False))
    gap = max(np.diff([*keyframes, len(times)]), default=len(times))
    hashed = hash_times(np.array(times, np.int64)) if rise else None
    span = times[-1] - times[0] if rise and times else 0
    return DecodedIndex(len(times), *(first or (0, 0, UPRIGHT)), hashed, span, len(keyframes), int(gap))


_kept: OrderedDict[tuple[str, FileStatus], DecodedIndex] = OrderedDict()
