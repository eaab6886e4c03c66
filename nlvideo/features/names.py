"""The name under which the features of each video are kept, decided once for all videos, and refused where two meet."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from nlvideo.data.lists.list_source import has_video_suffix
from nlvideo.runtime.errors import UserError

VideoPart = tuple[float, float]  # of a video, from start to end in seconds

SETTINGS_NAME = "extraction"  # of the json file that says what made a folder


class FoundVideo(NamedTuple):
    """A video as a list or folder names it: its path, the path as written there, and the part wanted."""

    path: str
    written: str
    part: VideoPart | None = None


class ListedVideo(NamedTuple):
    """A video, or a part of one, and the name of its features, without an ending."""

    path: str
    name: str
    part: VideoPart | None = None


def named(found: Iterable[FoundVideo]) -> list[ListedVideo]:
    """Names features as the videos are, without their endings; with them where that would be another's name too.

    What is listed twice is there once.

    Raises:
        UserError: two videos that are written differently outside the output and alike inside of it.
    """
    rows: dict[tuple[str, VideoPart | None], FoundVideo] = {}
    for video in found:
        inside = _inside(video)
        other = rows.setdefault((inside, video.part), video)
        if other is not video and os.path.realpath(other.path) != os.path.realpath(video.path):
            raise _both(other.path, video.path, inside)
    taken = Counter([SETTINGS_NAME])
    for inside in {inside for inside, _ in rows}:
        taken.update({_folded(inside), _folded(_stem(inside))})
    return [
        ListedVideo(video.path, f"{_stem(name) if taken[_folded(_stem(name))] == 1 else name}{_part_name(part)}", part)
        for (name, part), video in rows.items()
    ]


def check_names(videos: Sequence[ListedVideo], endings: Sequence[str]) -> None:
    """Raises UserError if two files of these videos would be one, also on a disk that ignores case, or one of them
    would be the folder of another.

    Args:
        endings: of the names of each video's arrays.
    """
    owners: dict[str, ListedVideo] = {}
    for video in videos:
        for file in (f"{video.name}.json", *(f"{video.name}{end}.npy" for end in endings)):
            other = owners.setdefault(_folded(file), video)
            if other is not video:
                raise _both(other.path, video.path, file)
    if clash := owners.get(f"{SETTINGS_NAME}.json"):
        raise UserError(f"{clash.path}: {SETTINGS_NAME}.json says what made the folder; rename the video.")
    for video in videos:
        for parent in Path(video.name).parents:
            if clash := owners.get(_folded(str(parent))):
                raise _both(clash.path, f"the folder of {video.path}", str(parent))


def check_array_names(names: Iterable[str], file_format: str) -> None:
    """Raises UserError if one file of this format cannot hold arrays with these names."""
    names = set(names)
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise _refused(file_format, name, "is no valid text") from None
        if file_format == "safetensors" and name == "__metadata__":
            raise _refused(file_format, name, "is the name of something else there")
    if file_format == "hdf5":
        folders = {str(parent) for name in names for parent in Path(name).parents}
        for name in sorted(names & folders):
            raise _refused(file_format, name, "is a video and a folder of others, which cannot have one name")


def _refused(file_format: str, name: str, reason: str) -> UserError:
    shown = name.encode(errors="backslashreplace").decode()
    return UserError(f"format={file_format}: {shown} {reason}; rename it, or use format=npy.")


def _both(first: str, second: str, file: str) -> UserError:
    return UserError(
        f"{first} and {second} would both be kept as {file}, upper and lower case aside; rename one, or give it "
        "another output."
    )


def _inside(video: FoundVideo) -> str:
    """Returns the path as written, so that it stays below the folder it is joined to."""
    written = Path(video.written)
    parts = [part for part in written.parts if part not in (written.anchor, "..")]
    return str(Path(*parts)) if parts else os.path.basename(os.path.abspath(video.path))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _stem(name: str) -> str:
    return os.path.splitext(name)[0] if has_video_suffix(name) else name


def _part_name(part: VideoPart | None) -> str:
    return "" if part is None else "#" + "-".join(repr(second).removesuffix(".0") for second in part)
