"""A folder of features: what made them, which videos are finished, and which failed.

Each video's arrays come with a json file, which is written just before them: a video is finished when all of them are
there. A file is ours if a json file of ours says so; what else is there is left alone.
"""

import csv
import errno
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nlvideo.features.names import SETTINGS_NAME, ListedVideo
from nlvideo.features.video_state import difference
from nlvideo.runtime.errors import RunFailed, UserError, UserFileExistsError
from nlvideo.runtime.files import make_folder, remove_partial_files, replacing, write_text

SETTINGS_FILE = f"{SETTINGS_NAME}.json"
# Where a checkpoint lies does not matter, its content does. Threads and versions move last bits only.
NOT_COMPARED = ("checkpoint", "num_threads", "versions")
FAILED_COLUMNS = ("path", "start", "end", "name", "reason")
NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


class FeatureFolder:
    """The features of one network and recipe.

    Args:
        output: the folder that the user named, with the record of the settings.
        arrays: where the arrays are, in it.
        settings: everything that they depend on.
        endings: of the names of each video's arrays.
    """

    def __init__(self, output: Path, arrays: Path, settings: Mapping[str, Any], endings: Sequence[str]):
        self.output, self.arrays, self.endings = output, arrays, endings
        self.settings = json.loads(json.dumps(settings))  # as they will be read

    def open(self, videos: Iterable[ListedVideo]) -> list[ListedVideo]:
        """Makes the folder, or takes over the one that is there; returns the videos that are not finished.

        Raises:
            UserError: the folder cannot be written.
            UserFileExistsError: it holds features of another network, settings or video, or not of ours.
        """
        record = self.output / SETTINGS_FILE
        held = read_made(record)
        if held is not None:
            self.refuse_other(held["made_by"], record)
        remaining = [video for video in videos if not self.is_finished(video)]
        make_folder(self.arrays, f"output={self.output}")
        if held is None:
            write_text(record, json.dumps({"made_by": self.settings}, indent=1))
        return remaining

    def refuse_other(self, held: Mapping[str, Any], file: Path) -> None:
        """Raises UserFileExistsError, naming the first difference, if `held` in `file` are other settings."""
        for key, value in self.settings.items():
            if key not in NOT_COMPARED and held.get(key) != value:
                raise UserFileExistsError(
                    f"output={self.output} holds features of another network or settings ({file.name}: {key} is "
                    f"{held.get(key)}, now {value}); give another output."
                )

    def refuse_other_video(self, facts: Mapping[str, Any], video: ListedVideo, file: Path) -> None:
        """Raises UserFileExistsError, naming the first difference, if the facts in `file` are of another video, or of
        another state of it.

        One that is no longer there counts as it was.
        """
        if found := difference(facts, video):
            raise UserFileExistsError(
                f"output={self.output} holds {video.name} of another video or another state of it ({file.name}: "
                f"{found}); give another output."
            )

    def array_files(self, video: ListedVideo) -> list[Path]:
        return [self.arrays / f"{video.name}{ending}.npy" for ending in self.endings]

    def facts_file(self, video: ListedVideo) -> Path:
        return self.arrays / f"{video.name}.json"

    def facts(self, video: ListedVideo) -> dict[str, Any]:
        """Returns what is known of a video that is finished."""
        return json.loads(self.facts_file(video).read_text(encoding="utf-8"))

    def is_finished(self, video: ListedVideo) -> bool:
        """Returns whether a video's features are there.

        Raises:
            UserFileExistsError: they are those of another network, other settings or another video, or not ours.
        """
        there = [file for file in self.array_files(video) if os.path.lexists(file)]
        facts = read_made(self.facts_file(video))
        if facts is None:
            if there:
                raise _not_ours(there[0], f"and no {self.facts_file(video).name} says what made it")
            return False
        self.refuse_other(facts["made_by"], self.facts_file(video))
        self.refuse_other_video(facts, video, self.facts_file(video))
        return len(there) == len(self.endings)

    def claim(self, video: ListedVideo, facts: Mapping[str, Any]) -> None:
        """Writes what is known of a video whose arrays are complete and get their names next."""
        write_text(self.facts_file(video), json.dumps({**facts, "made_by": self.settings}))

    def remove(self, videos: Iterable[ListedVideo]) -> None:
        """Removes what is there of these videos, and the folders that are empty then."""
        for video in videos:
            for file in (*self.array_files(video), self.facts_file(video)):
                file.unlink(missing_ok=True)
        for folder, _, _ in os.walk(self.arrays, topdown=False):
            with suppress(OSError):  # others are there
                os.rmdir(folder)

    def remove_partial_files(self, videos: Iterable[ListedVideo], others: Iterable[Path]) -> None:
        """Removes what killed processes left of these videos and of other files. The caller holds their lock."""
        names = defaultdict[Path, set[str]](set)
        for file in others:
            names[file.parent].add(file.name)
        for video in videos:
            for file in (*self.array_files(video), self.facts_file(video)):
                names[file.parent].add(file.name)
        for folder, own in names.items():
            if os.path.isdir(folder):  # also where no folder can have that name
                remove_partial_files(folder, own.__contains__)


def refuse_other_failures(file: Path) -> None:
    """Raises UserFileExistsError if there is a list of failures that write_failures has not written."""
    header = f"{','.join(FAILED_COLUMNS)}\r\n".encode()
    if os.path.lexists(file) and not (file.is_file() and file.read_bytes().startswith(header)):
        raise _not_ours(file, "and nlvideo-extract has not made it")


def write_failures(file: Path, failures: Sequence[tuple[ListedVideo, str]]) -> None:
    """Writes which videos failed and why, as a list that the command reads; without any, removes that of an earlier
    attempt."""
    if not failures:
        file.unlink(missing_ok=True)
        return
    options: Any = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
    with replacing(file) as partial, open(partial, "w", **options) as table:
        writer = csv.writer(table)
        writer.writerow(FAILED_COLUMNS)
        for video, reason in failures:
            writer.writerow((os.path.abspath(video.path), *(video.part or ("", "")), video.name, reason))


def recorded_settings(output: Path) -> dict[str, Any]:
    """Returns what made the features in a folder; {} if it holds none.

    Raises:
        UserFileExistsError: there is something else of that name.
    """
    return (read_made(output / SETTINGS_FILE) or {}).get("made_by", {})


def read_made(file: Path) -> dict[str, Any] | None:
    """Returns the object in a json file of ours, whose `made_by` holds settings; None if there is no such file.

    Raises:
        UserFileExistsError: something else made it, or it cannot be read.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        if error.errno in NO_SUCH_FILE and not os.path.islink(file):
            return None
        raise _not_ours(file, f"and cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise _not_ours(file, "and nlvideo-extract has not made it") from None
    if not (isinstance(content, dict) and isinstance(content.get("made_by"), dict)):
        raise _not_ours(file, "and nlvideo-extract has not made it")
    return content


def _not_ours(file: Path, reason: str) -> UserFileExistsError:
    return UserFileExistsError(f"{file} exists, {reason}; nothing is overwritten: give another output, or move it.")


@contextmanager
def reporting_full_disks(folder: Path) -> Iterator[None]:
    """Makes one line of what a disk refuses; what was finished before stays."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise RunFailed(f"output={folder} cannot be written: {error.strerror or error}.") from None
