"""The file of an index, an SQLite database, and the notes from which processes add to it.

The database is never changed: what has been learned since is merged into a copy that takes its place. So readers need
no locks, which network file systems may lack, and never see half of a change. A process writes what it learns into a
file of notes of its own beside the index, a line a video. What is lost with a file or a line is learned again.
"""

import base64
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from shutil import copyfile
from typing import Any
from urllib.parse import quote

from nlvideo.data.index.facts import FACT_COLUMNS
from nlvideo.runtime.files import replacing
from nlvideo.runtime.folder_lock import lock_file

VERSION = 1  # of the columns and of what they mean; rises with any change to what opening a video tells
APPLICATION = 0x6E6C7669  # "nlvi", which says whose database it is
KEY_COLUMNS = {"name": "BLOB PRIMARY KEY", "bytes": "INTEGER", "mtime_ns": "INTEGER", "reader": "TEXT"}
COLUMNS = KEY_COLUMNS | FACT_COLUMNS | {"checksum": "INTEGER"}
TABLE = f"CREATE TABLE videos ({', '.join(f'{name} {kind}' for name, kind in COLUMNS.items())}) WITHOUT ROWID"
SELECT = "SELECT * FROM videos WHERE name = ?"
INSERT = f"INSERT OR REPLACE INTO videos VALUES ({', '.join('?' * len(COLUMNS))})"
NOTES = ".notes"  # ending of the files of notes
CACHE = 256  # kB that a reader keeps of the file; the system's cache, which all readers share, holds the rest


class BrokenIndex(Exception):
    """A file that is no index of this version, or is damaged; says why."""


def open_index(file: Path) -> sqlite3.Connection:
    """Returns an index for reading, in any thread.

    Raises:
        FileNotFoundError: there is none.
        BrokenIndex: it is none of this version.
    """
    if not file.exists():
        raise FileNotFoundError(file)
    # Not mapped into memory: another machine that replaces a file on a network disk would end this process.
    database = _connect(file, "mode=ro&immutable=1")
    try:
        database.execute(f"PRAGMA cache_size=-{CACHE}")
        (application,), (version,) = (
            database.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
        if application != APPLICATION:
            raise BrokenIndex("is no index of nlvideo")
        if version != VERSION:
            raise BrokenIndex(f"has version {version} and not {VERSION}")
    except sqlite3.Error as error:
        database.close()
        raise BrokenIndex(f"cannot be read ({error})") from None
    except BrokenIndex:
        database.close()
        raise
    return database


def check_index(file: Path) -> None:
    """Reads an index from end to end.

    Raises:
        FileNotFoundError, BrokenIndex: as open_index, or it is damaged.
    """
    with closing(open_index(file)) as database:
        try:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as error:
            raise BrokenIndex(f"cannot be read ({error})") from None
        if found != "ok":
            raise BrokenIndex("is damaged")


def checked_row(values: Sequence[Any]) -> tuple[Any, ...]:
    """Returns the values of a row with their checksum."""
    return (*values, zlib.crc32(repr(tuple(values)).encode()))


def is_whole(row: Sequence[Any]) -> bool:
    """Returns whether a row is as checked_row has made it."""
    return tuple(row) == checked_row(row[:-1])


def note_line(row: Sequence[Any]) -> bytes:
    """Returns a row as a line of a file of notes."""
    return json.dumps(row, default=lambda data: base64.b64encode(data).decode()).encode() + b"\n"


def notes_files(file: Path) -> list[Path]:
    """Returns the files of notes for an index that may be read, the oldest first."""
    try:
        names = [n for n in os.listdir(file.parent) if n.startswith(f"{file.name}.") and n.endswith(NOTES)]
        found = [path for path in map(file.with_name, names) if os.access(path, os.R_OK)]
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)
    except OSError:
        return []


def merge_notes(file: Path) -> None:
    """Makes one file of the index and the notes for it, unless another process is about to.

    A damaged index, or one of another version, is left out: the notes alone become the new one.

    Raises:
        OSError, sqlite3.Error: it cannot be written; all is as before.
    """
    if not notes_files(file):
        return
    with _lock(file) as held:
        notes = notes_files(file) if held else []
        if not notes:
            return
        with replacing(file) as partial:
            try:
                check_index(file)
                copyfile(file, partial)
            except (FileNotFoundError, BrokenIndex):
                _create(partial)
            with closing(_connect(partial, "nolock=1")) as database:
                database.execute("PRAGMA journal_mode=OFF")
                with database:
                    database.executemany(INSERT, (row for path in notes for row in _read_notes(path)))
        for path in notes:
            path.unlink(missing_ok=True)


def _create(file: Path) -> None:
    with closing(_connect(file, "nolock=1")) as database:
        database.execute(f"PRAGMA application_id={APPLICATION}")
        database.execute(f"PRAGMA user_version={VERSION}")
        database.execute(TABLE)


def _read_notes(path: Path) -> Iterator[list[Any]]:
    """Yields the rows of a file of notes; lines that a kill or a full disk has cut are left out."""
    blobs = [list(COLUMNS).index(name) for name, kind in COLUMNS.items() if kind.startswith("BLOB")]
    with open(path, "rb") as file:
        for line in file:
            try:
                row = json.loads(line)
                for i in blobs:
                    row[i] = base64.b64decode(row[i])
                if len(row) == len(COLUMNS) and is_whole(row):
                    yield row
            except (ValueError, TypeError, IndexError):
                continue


def _connect(file: Path, options: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(os.fsencode(file))}?{options}", uri=True, check_same_thread=False)


@contextmanager
def _lock(file: Path) -> Iterator[bool]:
    """Yields whether this process may merge. Without locks each may, and what one of two merges is learned again."""
    lock = os.open(file.with_name(f"{file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            lock_file(lock, wait=False)
        except (BlockingIOError, PermissionError):
            yield False
        except OSError:
            yield True
        else:
            yield True
    finally:
        os.close(lock)
