"""A folder of features: what made them, which videos are finished, and which failed.

Each video's arrays come with a json file, which is written after them: without it they do not count.
"""

import csv
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nlvideo.features.video_list import ListedVideo
from nlvideo.runtime.errors import RunFailed, UserError, UserFileExistsError
from nlvideo.runtime.files import make_folder, remove_partial_files, replacing, write_text
from nlvideo.runtime.folder_lock import lock_file

SETTINGS_FILE = "extraction.json"
FAILED_FILE = "failed.csv"
# Where a checkpoint lies does not matter, its content does. Threads and versions move last bits only.
NOT_COMPARED = ("checkpoint", "num_threads", "versions")


class FeatureFolder:
    """The features of one network and recipe.

    Args:
        folder: where they are.
        settings: everything that they depend on.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder, self.settings = folder, json.loads(json.dumps(settings))  # as they will be read

    def open(self, videos: Sequence[ListedVideo]) -> list[ListedVideo]:
        """Makes the folder, or takes over the one that is there; returns the videos that are not finished.

        Raises:
            UserError: the folder cannot be written.
            UserFileExistsError: it holds features of another network or other settings, or not of ours.
        """
        make_folder(self.folder, f"output={self.folder}")
        held = recorded_settings(self.folder)
        if held:
            self.refuse_other(held, self.folder / SETTINGS_FILE)
        else:
            self._refuse_foreign(videos)
            write_text(self.folder / SETTINGS_FILE, json.dumps(self.settings, indent=1))
        return [video for video in videos if not self.is_finished(video)]

    def _refuse_foreign(self, videos: Iterable[ListedVideo]) -> None:
        for video in videos:
            for file in (self.array_file(video), self.facts_file(video)):
                if file.exists():
                    raise UserFileExistsError(
                        f"output={self.folder}: {file} exists, and no {SETTINGS_FILE} says what made it; "
                        "give another output."
                    )

    def refuse_other(self, held: Mapping[str, Any], file: Path) -> None:
        """Raises UserFileExistsError, naming the first difference, if `held` in `file` are other settings."""
        for key, value in self.settings.items():
            if key not in NOT_COMPARED and held.get(key) != value:
                raise UserFileExistsError(
                    f"output={self.folder} holds features of another network or settings ({file.name}: {key} is "
                    f"{held.get(key)}, now {value}); give another output."
                )

    def array_file(self, video: ListedVideo, ending: str = "") -> Path:
        return self.folder / f"{video.name}{ending}.npy"

    def facts_file(self, video: ListedVideo) -> Path:
        return self.folder / f"{video.name}.json"

    def is_finished(self, video: ListedVideo) -> bool:
        """Returns whether a video's features are there.

        Raises:
            UserFileExistsError: they are those of another network or other settings.
        """
        facts = read_object(self.facts_file(video))
        if not facts or not self.array_file(video).exists():
            return False
        self.refuse_other(facts.get("made_by") or {}, self.facts_file(video))
        return True

    def finish(self, video: ListedVideo, facts: Mapping[str, Any]) -> None:
        """Writes what is known of a video whose arrays are there."""
        write_text(self.facts_file(video), json.dumps({**facts, "made_by": self.settings}))

    def remove_partial_files(self, videos: Sequence[ListedVideo]) -> None:
        """Removes what killed processes left of these videos. The caller holds the lock of their shard."""
        names = defaultdict[Path, set[str]](set)
        for video in videos:
            for target in (self.array_file(video), self.facts_file(video)):
                names[target.parent].add(target.name)
        for folder, own in names.items():
            remove_partial_files(folder, own.__contains__)

    def write_failed(self, failures: Mapping[str, str], ending: str = "") -> None:
        """Writes which videos failed and why, or removes the file of an earlier attempt if none did."""
        file = self.folder / f"{Path(FAILED_FILE).stem}{ending}.csv"
        if not failures:
            file.unlink(missing_ok=True)
            return
        options: Any = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
        with replacing(file) as partial, open(partial, "w", **options) as table:
            csv.writer(table).writerows([("video", "reason"), *failures.items()])


def recorded_settings(folder: Path) -> dict[str, Any]:
    """Returns what made the features in a folder; {} if it holds none of ours."""
    return read_object(folder / SETTINGS_FILE)


def read_object(file: Path) -> dict[str, Any]:
    """Returns the object in a json file; {} if there is no such file, or it holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def shard_lock(folder: Path, ending: str) -> Iterator[None]:
    """Keeps one shard of a folder for the block.

    Raises:
        UserFileExistsError: another process has it.
    """
    descriptor = os.open(folder / f".lock{ending}", os.O_RDWR | os.O_CREAT)
    try:
        try:
            lock_file(descriptor, wait=False)
        except (BlockingIOError, PermissionError):
            raise UserFileExistsError(f"output={folder} is in use by another process.") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


@contextmanager
def reporting_full_disks(folder: Path) -> Iterator[None]:
    """Makes one line of what a disk refuses; what was finished before stays."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise RunFailed(f"output={folder} cannot be written: {error.strerror or error}.") from None
