"""What is known of a video file without reading it, as one record of an index."""

import struct
import zlib
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from nlvideo.data.decoding.orientation import Orientation

HEADER = struct.Struct("<qqI")  # of packed times: the first, the step (0: they are not regular), their number
DELTAS = ("<u1", "<u2", "<u4", "<u8")


@dataclass(frozen=True, eq=False)
class VideoFacts:
    """What opening a file by reading all of it has told; see PyavVideo, whose attributes these are.

    Attributes:
        stream: index of the stream that is the video.
        times: presentation times of all frames, ascending (num_frames,) int64 in units of time_base. Empty where these
            do not say which frame is which: then frames are counted from the first.
        key_times: presentation times of the keyframes where decoding can start, ascending, int64. Empty as `times`.
    """

    stream: int
    codec: str
    num_frames: int
    fps: float
    height: int
    width: int
    orientation: Orientation
    time_base: Fraction
    bit_depth: int
    interlaced: bool
    pixel_aspect: Fraction
    timed: bool
    reordered: bool
    open_gops: bool
    num_keyframes: int
    largest_gap: int
    times: np.ndarray
    key_times: np.ndarray

    def as_row(self) -> tuple[Any, ...]:
        """Returns the values of FACT_COLUMNS."""
        upright = self.orientation
        turns = upright.transposed + 2 * upright.flip_rows + 4 * upright.flip_columns
        return (
            self.stream,
            self.codec,
            self.num_frames,
            self.fps,
            self.height,
            self.width,
            turns,
            str(self.time_base),
            self.bit_depth,
            int(self.interlaced),
            str(self.pixel_aspect),
            int(self.timed),
            int(self.reordered),
            int(self.open_gops),
            self.num_keyframes,
            self.largest_gap,
            packed(self.times),
            packed(self.key_times),
        )


TYPES = {"INTEGER": int, "REAL": float, "TEXT": str, "BLOB": bytes}
# In the order of the fields of VideoFacts; types of SQLite.
FACT_COLUMNS = {
    "stream": "INTEGER",
    "codec": "TEXT",
    "num_frames": "INTEGER",
    "fps": "REAL",
    "height": "INTEGER",
    "width": "INTEGER",
    "turns": "INTEGER",  # 1: transposed, then 2: rows in reverse, 4: columns in reverse
    "time_base": "TEXT",
    "bit_depth": "INTEGER",
    "interlaced": "INTEGER",
    "pixel_aspect": "TEXT",
    "timed": "INTEGER",
    "reordered": "INTEGER",
    "open_gops": "INTEGER",
    "num_keyframes": "INTEGER",
    "largest_gap": "INTEGER",
    "times": "BLOB",  # see `packed`
    "key_times": "BLOB",
}


def facts_of_row(row: tuple[Any, ...], size: int) -> VideoFacts:
    """Returns the facts that `as_row` has written.

    Args:
        size: bytes of the video file, which cannot have more frames.

    Raises:
        Exception: anybody may have written the row, and it is not of such a file.
    """
    values: dict[str, Any] = dict(zip(FACT_COLUMNS, row, strict=True))
    if any(not isinstance(values[name], TYPES[kind]) for name, kind in FACT_COLUMNS.items()):
        raise TypeError("values of other types")
    num_frames, turns = values["num_frames"], values.pop("turns")
    if not (0 < num_frames <= size and 0 < values["fps"] < float("inf")):
        raise ValueError(f"{num_frames} frames, {values['fps']} a second")
    values |= {name: bool(values[name]) for name in ("interlaced", "timed", "reordered", "open_gops")}
    # Not Fraction(text): of "1e999999999" it would make a number of as many digits.
    values |= {name: Fraction(*map(int, values[name].split("/"))) for name in ("time_base", "pixel_aspect")}
    values |= {name: unpacked(values[name], num_frames) for name in ("times", "key_times")}
    if len(values["times"]) not in (0, num_frames):
        raise ValueError(f"{len(values['times'])} times of {num_frames} frames")
    return VideoFacts(orientation=Orientation(bool(turns & 1), bool(turns & 2), bool(turns & 4)), **values)


def packed(times: np.ndarray) -> bytes:
    """Returns ascending int64 times in few bytes: 20 where they are regular, else their differences, compressed."""
    steps = np.diff(times)
    first = int(times[0]) if len(times) else 0
    step = int(steps[0]) if len(steps) else 1
    if step > 0 and (steps == step).all():
        return HEADER.pack(first, step, len(times))
    kind = next(kind for kind in DELTAS if steps.max() <= np.iinfo(kind).max)
    return HEADER.pack(first, 0, len(times)) + zlib.compress(steps.astype(kind).tobytes())


def unpacked(data: bytes, most: int) -> np.ndarray:
    """Returns the int64 times that `packed` has written.

    Args:
        most: there may be at most so many, and no more memory than they need is used.

    Raises:
        ValueError, TypeError, struct.error, zlib.error: anything else has written the data.
    """
    first, step, count = HEADER.unpack_from(data)
    if count > most or step < 0:
        raise ValueError(f"{count} times in steps of {step}, of {most} frames")
    if step or count < 2:
        return first + step * np.arange(count, dtype=np.int64)
    deltas = zlib.decompressobj().decompress(data[HEADER.size :], 8 * (count - 1))
    steps = np.frombuffer(deltas, f"<u{len(deltas) // (count - 1)}")
    if len(steps) != count - 1:
        raise ValueError(f"{len(steps)} steps between {count} times")
    return np.concatenate([[first], first + np.cumsum(steps, dtype=np.int64)])
