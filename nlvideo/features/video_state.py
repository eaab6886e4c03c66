"""What tells a video, or one state of it, from another wherever it lies: its part, its size and the ends of its bytes.

Videos move to other disks, are reached through links, and get new times when they are copied; that changes no feature.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nlvideo.data.decoding.frame_folder import SUFFIXES as PICTURE_SUFFIXES
from nlvideo.data.decoding.opening import is_special
from nlvideo.data.shards.video_file import file_status, open_bytes, split_member
from nlvideo.features.names import ListedVideo

END_BYTES = 2**20  # of the start and of the end of a file, where containers keep their tables


class _State(NamedTuple):
    """Bytes of a file, or of the pictures in a folder, and when it last changed."""

    size: int
    mtime_ns: int


def description_of(video: ListedVideo) -> dict[str, Any]:
    """Returns what is recorded of a video; size, time and fingerprint are None where it has none."""
    facts = {"video": os.path.abspath(video.path), "part": _part_of(video)}
    try:
        size, mtime_ns = _state_of(video.path)
        return facts | {"size": size, "mtime_ns": mtime_ns, "fingerprint": _fingerprint(video.path, size)}
    except (OSError, ValueError):  # no such file, or no name of a file
        return facts | {"size": None, "mtime_ns": None, "fingerprint": None}


def difference(facts: Mapping[str, Any], video: ListedVideo) -> str | None:
    """Returns how a video is not the one of which `facts` are recorded; None if it is, or is there no longer."""
    if _part_of(video) != facts.get("part"):
        return f"part is {facts.get('part')}, now {_part_of(video)}"
    try:
        size, mtime_ns = _state_of(video.path)
        if size != facts.get("size"):
            return f"size is {facts.get('size')}, now {size}"
        here = (os.path.abspath(video.path), mtime_ns) == (facts.get("video"), facts.get("mtime_ns"))
        if here and not os.path.isdir(video.path):  # the time of a folder is not that of its files
            return None
        if _fingerprint(video.path, size) != facts.get("fingerprint"):
            return f"the content of {video.path} is another than that of {facts.get('video')}"
    except (OSError, ValueError):
        return None
    return None


def _part_of(video: ListedVideo) -> list[float] | None:
    return None if video.part is None else list(video.part)


def _state_of(path: str) -> _State:
    """Returns the state of a file, a member of a tar file or a folder of frames.

    Raises:
        OSError: there is none of these.
    """
    if split_member(path) is not None:
        return _State(*file_status(path)[:2])
    if is_special(path):
        raise OSError(errno.EINVAL, "neither a file nor a folder", path)
    status = os.stat(path)
    size = sum(_pictures(path).values()) if stat.S_ISDIR(status.st_mode) else status.st_size
    return _State(size, status.st_mtime_ns)


def _fingerprint(path: str, size: int) -> str:
    """Returns the SHA-256 of the first and last MiB of a file, or of the names and sizes of a folder's pictures."""
    digest = hashlib.sha256()
    if os.path.isdir(path):
        for name, length in sorted(_pictures(path).items()):
            digest.update(os.fsencode(name) + f"\0{length}\n".encode())
    else:
        with open_bytes(path) as file:
            digest.update(file.read(END_BYTES))
            file.seek(max(0, size - END_BYTES))
            digest.update(file.read(END_BYTES))
    return digest.hexdigest()


def _pictures(folder: str) -> dict[str, int]:
    """Returns {name: bytes} of the pictures in a folder."""
    with os.scandir(folder) as found:
        return {
            entry.name: entry.stat().st_size
            for entry in found
            if Path(entry.name).suffix.lower() in PICTURE_SUFFIXES and not entry.name.startswith(".")
        }
