"""The file of an index, an SQLite database, and the notes from which processes add to it.

The database is never changed: what has been learned since is merged into a copy that takes its place. So readers need
no locks, which network file systems may lack, and never see half of a change. A process writes what it learns into a
file of notes of its own beside the index, a line a video. What is lost with a file or a line is learned again.
"""

import base64
import json
import os
import sqlite3
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from shutil import copyfile
from stat import S_ISREG
from typing import Any
from urllib.parse import quote

from nlvideo.data.index.facts import FACT_COLUMNS
from nlvideo.runtime.files import remove_partial_files, replacing
from nlvideo.runtime.folder_lock import lock_if_possible, open_lock

VERSION = 2  # of the columns and of what they mean; rises with any change to what opening a video tells
APPLICATION = 0x6E6C7669  # "nlvi", which says whose database it is
MAGIC = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat.html#the_database_header, as are the next two
ID_AT = 68  # where in the file APPLICATION is
HEADER_BYTES = 72  # to the end of it
KEY_COLUMNS = {  # the fields of FileState
    "name": "BLOB PRIMARY KEY",
    "bytes": "INTEGER",
    "mtime_ns": "INTEGER",
    "start": "INTEGER",
    "reader": "TEXT",
}
COLUMNS = KEY_COLUMNS | FACT_COLUMNS | {"checksum": "INTEGER"}
TABLE = f"CREATE TABLE videos ({', '.join(f'{name} {kind}' for name, kind in COLUMNS.items())}) WITHOUT ROWID"
SCHEMA = ("table", "videos", TABLE)  # all there is in the database
SELECT = "SELECT * FROM videos WHERE name = ?"
INSERT = f"INSERT OR REPLACE INTO videos VALUES ({', '.join('?' * len(COLUMNS))})"
NOTES = ".notes"  # ending of the files of notes
# What a row that anybody may have noted raises: numbers of too many bits, surrogates, other types (3.10: the third).
NO_VALUES = (OverflowError, UnicodeEncodeError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
CACHE = 256  # kB that a reader keeps of the file; the system's cache, which all readers share, holds the rest


class UnusableIndex(Exception):
    """A file that is not used as an index and is left as it is; says why."""


class ForeignFile(UnusableIndex):
    """A file that nlvideo has not made."""

    def __init__(self) -> None:
        super().__init__("is no index of nlvideo")


class BrokenIndex(UnusableIndex):
    """An index that is damaged, or not of this version: it may be made anew."""


def is_foreign(file: Path) -> bool:
    """Returns whether a file is there that nlvideo has not made, and so shall not replace."""
    try:
        _check_header(file)
    except ForeignFile:
        return True
    except (FileNotFoundError, UnusableIndex):
        return False
    return False


def open_index(file: Path) -> sqlite3.Connection:
    """Returns an index for reading, in any thread.

    Raises:
        FileNotFoundError: there is none.
        UnusableIndex: it is something else, cannot be read now, or is a BrokenIndex.
    """
    _check_header(file)
    try:
        # Not mapped into memory: another machine that replaces a file on a network disk would end this process.
        database = _connect(file, "mode=ro&immutable=1")
    except sqlite3.Error as error:
        raise _unusable(error) from None
    try:
        database.execute(f"PRAGMA cache_size=-{CACHE}")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise BrokenIndex(f"has version {version} and not {VERSION}")
        # Nothing else that SQLite would run on reading or writing, such as a view or a trigger, whoever made the file.
        if database.execute("SELECT type, name, sql FROM sqlite_master LIMIT 2").fetchall() != [SCHEMA]:
            raise BrokenIndex("has other tables")
    except sqlite3.Error as error:
        database.close()
        raise _unusable(error) from None
    except BrokenIndex:
        database.close()
        raise
    return database


def check_index(file: Path) -> None:
    """Reads an index from end to end.

    Raises:
        FileNotFoundError, UnusableIndex: as open_index, or it is damaged.
    """
    with closing(open_index(file)) as database:
        try:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as error:
            raise _unusable(error) from None
        if found != "ok":
            raise BrokenIndex("is damaged")


def _check_header(file: Path) -> None:
    try:
        if not S_ISREG(file.stat().st_mode):
            raise ForeignFile
        with open(file, "rb") as opened:
            header = opened.read(HEADER_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnusableIndex(f"cannot be read ({error.strerror})") from None
    if not header:
        raise BrokenIndex("is empty")
    if not header.startswith(MAGIC) or header[ID_AT:] != APPLICATION.to_bytes(4, "big"):
        raise ForeignFile


def _unusable(error: sqlite3.Error) -> UnusableIndex:
    """Returns what an error means: damage, or something else that may be over the next time."""
    # Those of SQLITE_CORRUPT and SQLITE_NOTADB have no class of their own; sqlite_errorcode is there from 3.11 on.
    kind = BrokenIndex if type(error) is sqlite3.DatabaseError else UnusableIndex
    return kind(f"cannot be read ({error})")


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
        return sorted((path for path in map(file.with_name, names) if os.access(path, os.R_OK)), key=_time_of_change)
    except OSError:
        return []


def _time_of_change(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # another process merges
        return 0


def new_notes(file: Path) -> Path:
    """Returns a name that no file of notes for an index has."""
    return file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}{NOTES}")


def merge_notes(file: Path) -> None:
    """Makes one file of the index and the notes for it, unless another process is about to.

    A damaged index, or one of another version, is left out: the notes alone become the new one.

    Raises:
        OSError, sqlite3.Error, UnusableIndex: it cannot be written, or the file there is not ours; all is as before.
    """
    if not notes_files(file):
        return
    with _lock(file) as held:
        notes = [taken for path in notes_files(file) if (taken := _take(path, file))] if held else []
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
                    for row in (row for path in notes for row in _read_notes(path)):
                        with suppress(*NO_VALUES):
                            database.execute(INSERT, row)
        for path in notes:
            path.unlink(missing_ok=True)


def _take(notes: Path, file: Path) -> Path | None:
    """Renames notes before they are read: whoever finds its file gone after a line writes the line again elsewhere."""
    try:
        return notes.rename(new_notes(file))
    except FileNotFoundError:
        return None
    except OSError:  # Windows renames no open file, and others' files may not be ours to rename: nor to remove
        return notes


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
            except (ValueError, TypeError, IndexError, RecursionError):
                continue


def _connect(file: Path, options: str) -> sqlite3.Connection:
    database = sqlite3.connect(f"file:{quote(os.fsencode(file))}?{options}", uri=True, check_same_thread=False)
    database.execute("PRAGMA trusted_schema=OFF")
    return database


@contextmanager
def _lock(file: Path) -> Iterator[bool]:
    """Yields whether this process may merge. Without locks each may, and what one of two merges is learned again."""
    lock = open_lock(lock_of(file))
    try:
        try:
            alone = lock_if_possible(lock)
        except BlockingIOError:
            yield False
            return
        if alone:
            remove_partial_files(file.parent, lambda name: name == file.name)
        yield True
    finally:
        os.close(lock)


def lock_of(file: Path) -> Path:
    """Returns the file that those who merge lock."""
    return file.with_name(f"{file.name}.lock")
