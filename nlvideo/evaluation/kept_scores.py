"""Scores on disk while an evaluation runs, so that an interrupted one resumes."""

import hashlib
import json
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nlvideo.runtime.errors import UserFileExistsError
from nlvideo.runtime.files import replacing, write_text
from nlvideo.runtime.folder_lock import lock_folder

FLUSH_SECONDS = 20
IDENTITY_FILE = "identity.json"


class VideoScore(NamedTuple):
    """What is kept of a video's views; K classes."""

    scores: np.ndarray  # (K,) float32, over all views
    # After 1, 2, ... clips with all crops, then after 1, 2, ... crops of all clips: where the target ranks,
    # (num_clips + num_crops,) int64, or for multi-label data the scores, (num_clips + num_crops, K) float32.
    after: np.ndarray
    clips: np.ndarray  # (num_clips, K) float32, of each clip in the order of time; (0, K) unless localisation asks


VideoScores = dict[int, VideoScore | str]  # index in the table -> scores, or the reason why there are none


class KeptScores:
    """The scores of an evaluation in a folder of many files, each of which is whole or absent.

    Args:
        identity: what the scores depend on; a folder with scores of something else is refused.

    Attributes:
        before: what the folder held when it was opened, without the videos that could not be decoded: these are tried
            again.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder, self.identity = folder, identity
        self.digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.before: VideoScores = {}
        self._waiting: VideoScores = {}
        self._flushed = time.monotonic()

    def open(self) -> list[int]:
        """Makes the folder, or takes over the one that is there; returns the videos that it holds scores of.

        Raises:
            UserFileExistsError: it holds scores of another evaluation, or is in use by another process.
        """
        file = self.folder / IDENTITY_FILE
        if file.exists():
            refuse_other(json.loads(file.read_text()), self.identity, f"{self.folder} holds the beginning of")
        self.folder.mkdir(parents=True, exist_ok=True)
        lock_folder(self.folder)
        write_text(file, json.dumps(self.identity, indent=1))
        self.before = {video: value for video, value in self._read().items() if not isinstance(value, str)}
        return sorted(self.before)

    def __setitem__(self, video: int, value: VideoScore | str) -> None:
        self._waiting[video] = value

    def flush_if_due(self) -> None:
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what came since the last time to a new file."""
        if not self._waiting:
            return
        self.folder.mkdir(parents=True, exist_ok=True)  # where machines share no disk
        scored = {video: value for video, value in self._waiting.items() if not isinstance(value, str)}
        failed = {video: value for video, value in self._waiting.items() if isinstance(value, str)}
        arrays = {
            "identity": np.array(self.digest),
            "videos": np.array(list(scored), np.int64),
            "failed": np.array(list(failed), np.int64),
            "reasons": np.array(list(failed.values()), np.str_),
        }
        for i, name in enumerate(VideoScore._fields):
            arrays[name] = np.array([value[i] for value in scored.values()])
        with replacing(self.folder / f"{uuid.uuid4().hex}.npz") as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        self._waiting, self._flushed = {}, time.monotonic()

    def _read(self) -> VideoScores:
        """Returns everything that was kept of this evaluation."""
        found: VideoScores = {}
        for file in sorted(self.folder.glob("*.npz")):
            with np.load(file) as arrays:
                if arrays["identity"] != self.digest:  # left by a rank whose machine has a disk of its own
                    continue
                values = [arrays[name] for name in VideoScore._fields]
                for i, video in enumerate(arrays["videos"].tolist()):
                    found[video] = VideoScore(*(value[i] for value in values))
                failed: VideoScores = dict(zip(arrays["failed"].tolist(), arrays["reasons"].tolist(), strict=True))
                found = failed | found
        return found


def refuse_other(held: dict[str, Any], identity: dict[str, Any], what: str) -> None:
    """Raises UserFileExistsError, naming the first difference, if `held` is of another evaluation.

    Where checkpoint and list lie does not matter: their content is compared.
    """
    for key, value in identity.items():
        if key not in ("checkpoint", "list") and held.get(key) != value:
            raise UserFileExistsError(
                f"{what} another evaluation ({key}: {held.get(key)}, now {value}); give another output_dir."
            )
