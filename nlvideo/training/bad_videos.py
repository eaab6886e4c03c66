"""Training videos that could not be decoded: printed, counted, and listed in bad_videos.csv."""

import csv
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlvideo.data.clips.batch import Failure
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.runtime import distributed
from nlvideo.runtime.files import replacing

LEDGER_FILE = "bad_videos.csv"
LEDGER_COLUMNS = ("step", "epoch", "video", "reason", "replaced_by")


class BadVideos:
    """Counts samples and the failures among them over all ranks. A sample is a draw of a video, with all its clips.

    Args:
        table: the training videos.
        num_samples: of the steps before.
        num_bad: of these, how many could not be decoded.
    """

    def __init__(self, table: VideoTable, num_samples: int, num_bad: int):
        self.table, self.num_samples, self.num_bad = table, num_samples, num_bad
        self._rows: list[dict[str, Any]] = []

    @property
    def share(self) -> float:
        return self.num_bad / self.num_samples

    def count(self, num_samples: int, num_bad: int) -> None:
        """Adds a step's samples and failures, summed over ranks."""
        self.num_samples += num_samples
        self.num_bad += num_bad

    def note(self, step: int, failures: Sequence[Failure]) -> None:
        """Prints this rank's failures of a step and keeps them for the ledger."""
        for failure in failures:
            row = {
                "step": step,
                "epoch": failure.epoch,
                "video": self.table.name(failure.video),
                "reason": failure.reason,
                "replaced_by": None if failure.replaced_by is None else self.table.name(failure.replaced_by),
            }
            print("step {step}: {video}: {reason}; replaced by {replaced_by}".format(**row), file=sys.stderr)
            self._rows.append(row)

    def too_many(self, allowed: float) -> str | None:
        """Returns a message if more samples were bad than allowed, of all so far or of the first thousand."""
        counted = max(self.num_samples, min(1000, len(self.table)))
        if self.num_bad <= allowed * counted:
            return None
        return (
            f"{self.num_bad} of the first {self.num_samples} samples could not be decoded, more than "
            f"data.max_bad_share={allowed} allows"
        )

    def take(self) -> list[dict[str, Any]]:
        """Returns the rows of all ranks since the last call, in the order of steps; every rank must call it."""
        rows = [row for rows in distributed.gather(self._rows) for row in rows]
        self._rows = []
        return sorted(rows, key=lambda row: row["step"])


def append_to_ledger(ledger: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Adds rows to the ledger, which exists only if there are any."""
    if not rows:
        return
    new = not ledger.exists()
    with open(ledger, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
        _write(file, rows, header=new)
        file.flush()
        os.fsync(file.fileno())


def drop_later_rows(ledger: Path, step: int) -> None:
    """Removes the rows of steps after `step`, which a resumed run writes again, and one that a kill cut in two."""
    if not ledger.exists():
        return
    with open(ledger, newline="", encoding="utf-8", errors="surrogateescape") as file:
        text = file.read()
    whole = io.StringIO(text[: text.rfind("\r\n") + 2], newline="")
    rows = [row for row in csv.DictReader(whole) if int(row["step"]) <= step]
    with (
        replacing(ledger) as partial,
        open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        _write(file, rows, header=True)


def _write(file: Any, rows: Sequence[dict[str, Any]], header: bool) -> None:
    writer = csv.DictWriter(file, LEDGER_COLUMNS)
    if header:
        writer.writeheader()
    writer.writerows(rows)
