"""What FFmpeg opens of a video: a file, a member of a tar file, or a file in memory, and nothing that these name.

FFmpeg by itself opens whatever a playlist names, also addresses: of a file in memory, with any of its protocols.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO

import av
from av.format import ContainerFormat, formats_available

from nlvideo.data.decoding.decoded_index import DecodedIndex, decoded_index, index_of_frames
from nlvideo.data.decoding.video import DecodeError
from nlvideo.data.shards.video_file import member_address, open_bytes

# What PyAV raises for corrupt files: IndexError for a packet of a stream that appears midway, ValueError for text.
FAILURES = (av.FFmpegError, OSError, IndexError, ValueError)
# FFmpeg's formats whose files name other files or addresses, hold scripts, or have parts beside them that are looked
# for by name. `image2`, which reads a picture, is the last kind: see `FileInput`.
NAMING_FORMATS = frozenset(
    "hls dash concat sdp rtp rtsp sap imf webm_dash_manifest vobsub mlv lavfi avisynth vapoursynth dvdvideo".split()
)
TRIM_EVERY = 200  # videos; trimming takes some milliseconds


class FileInput:
    """A video's bytes, for FFmpeg and for Python.

    Formats that name other files are refused, and so are all protocols but those that lead to the bytes themselves. A
    picture's name is taken as it is, not as a pattern for many.

    Args:
        path: of a file, or of a member of a tar file.
        file: binary and seekable: is read instead of the path, which is then its name in messages; stays open.
    """

    def __init__(self, path: str | os.PathLike, file: BinaryIO | None = None):
        self.path, self._file = os.fspath(path), file
        self._decoded: DecodedIndex | None = None

    def open(self) -> Any:
        """Returns a container at the first byte.

        Raises:
            DecodeError: FFmpeg refuses to look for a video in it.
            one of FAILURES: it cannot be read, or is no video.
        """
        try:
            return av.open(self._input(), "r", options=self._options(), metadata_errors="ignore")
        except av.error.ArgumentError as error:  # also of a format that is not allowed
            reason = f"{failure_reason(error)} (playlists and whatever else names other files are not read)"
            raise DecodeError(self.path, reason) from None

    def _input(self) -> Any:
        """Returns what PyAV opens."""
        if self._file is not None:
            self._file.seek(0)
            return self._file
        # Without the protocol, FFmpeg takes what stands before a colon in a file's name for one.
        return member_address(self.path) or f"file:{self.path}"

    def _options(self) -> dict[str, str]:
        if self._file is not None:  # whose name may be a picture's by pattern, and FFmpeg would read those instead
            return {"format_whitelist": ",".join(_readable_formats() - {"image2"}), "protocol_whitelist": ""}
        return {
            "format_whitelist": ",".join(_readable_formats()),
            "protocol_whitelist": "file,subfile",
            "pattern_type": "none",
        }

    @contextmanager
    def bytes(self) -> Iterator[BinaryIO]:
        """Yields the file from its first byte on; FFmpeg finds it where it was."""
        if self._file is None:
            with open_bytes(self.path) as opened:
                yield opened
            return
        place = self._file.tell()
        self._file.seek(0)
        try:
            yield self._file
        finally:
            self._file.seek(place)

    def decoded(self, decode: Callable[[], Iterator[av.VideoFrame]]) -> DecodedIndex:
        """Returns what a plain decode tells: of a path, the process keeps it."""
        if self._file is None:
            return decoded_index(self.path, decode)
        if self._decoded is None:
            self._decoded = index_of_frames(decode())
        return self._decoded


@cache
def _readable_formats() -> frozenset[str]:
    """Returns the names of what this FFmpeg reads, without NAMING_FORMATS."""
    names: set[str] = set()
    for name in formats_available:
        try:
            names.update(ContainerFormat(name, "r").name.split(","))
        except ValueError:  # one that it writes alone
            continue
    return frozenset(names - NAMING_FORMATS)


def failure_reason(error: Exception) -> str:
    """Returns what one of FAILURES says."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def give_memory_back() -> None:
    """Returns freed memory to the system, now and then, when a video is closed: FFmpeg's aligned buffers, of other
    sizes for every video, leave holes that glibc keeps, 10 kB and more per video, without end."""
    global _num_closed
    _num_closed += 1
    if _num_closed % TRIM_EVERY == 0 and _trim is not None:
        _trim(0)


_num_closed = 0
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
