"""What a job over a collection has done so far, in a csv file."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nlvideo.runtime.errors import UserError
from nlvideo.runtime.files import replacing, sync_folder


@contextmanager
def resumable(file: Path) -> Iterator[None]:
    """Raises UserError where the block cannot write a file of a job, as on a full disk."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(
            f"{error.filename or file} cannot be written ({why}). Then the same command resumes where this one ended."
        ) from None


class Records:
    """A csv file with one line for each finished video, written as they finish, so that a killed job resumes.

    A line that a kill or a full disk cut in two is dropped when the file is opened again.

    Attributes:
        rows: all lines.
        last: the last line of each video, which the first column names.

    Raises:
        UserError: on opening, adding and sync, the file cannot be written.
    """

    def __init__(self, file: Path, columns: Sequence[str]):
        self.file, self.columns = file, columns
        self.rows = read_records(file, columns) if file.exists() else []
        self.last = {row[columns[0]]: row for row in self.rows}
        with (
            resumable(file),
            replacing(file) as partial,
            open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape") as out,
        ):
            writer = csv.DictWriter(out, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def add(self, row: dict[str, Any]) -> None:
        with (
            resumable(self.file),
            open(self.file, "a", newline="", encoding="utf-8", errors="surrogateescape") as out,
        ):
            csv.DictWriter(out, self.columns).writerow(row)
        self.rows.append({key: str(value) for key, value in row.items()})
        self.last[self.rows[-1][self.columns[0]]] = self.rows[-1]

    def sync(self) -> None:
        """Makes what was added outlast a power failure."""
        with resumable(self.file):
            with open(self.file, "r+b") as file:
                os.fsync(file.fileno())
            sync_folder(self.file.parent)


def open_records(folder: Path, stem: str, which: str, columns: Sequence[str]) -> Records:
    """Returns the records of one part of a job, or of the whole job (which = "1/1") with what its parts have done."""
    if which != "1/1":
        return Records(folder / f"{stem}.{which.replace('/', '-of-')}.csv", columns)
    records = Records(folder / f"{stem}.csv", columns)
    known = {row["video"] for row in records.rows}
    for part in sorted(folder.glob(f"{stem}.*-of-*.csv")):
        for row in read_records(part, columns):
            if row["video"] not in known:
                records.add(row)
    return records


def read_records(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Returns the complete lines of a file of Records.

    Raises:
        UserError: it has other columns.
    """
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as opened:
        text = opened.read()
    reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    if text and tuple(reader.fieldnames or ()) != tuple(columns):
        raise UserError(f"{file} has other columns than {', '.join(columns)}: another program or version wrote it.")
    return [row for row in reader if None not in row and None not in row.values()]
