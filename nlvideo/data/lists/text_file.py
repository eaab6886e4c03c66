"""Text files as people bring them: UTF-8 with or without a byte-order mark, or UTF-16 with one; any line ends."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nlvideo.runtime.errors import UserError, UserFileNotFoundError


def lines_of_text(path: Path) -> Iterator[str]:
    """Yields the lines of a text file with their ends, one at a time, because lists are long.

    Raises:
        UserFileNotFoundError: no such file.
        UserError: bytes that are no text in one of these encodings.
    """
    if not path.is_file():
        raise UserFileNotFoundError(f"The list {path} does not exist.")
    with open(path, "rb") as file:
        mark = file.read(2)
    encoding = "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        with open(path, encoding=encoding, newline="") as text:
            yield from text
    except UnicodeError as error:
        where = f": {error.reason} at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise UserError(f"{path} is not a text file in UTF-8, or in UTF-16 with a byte-order mark{where}.") from None


def list_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a list, with nothing but a line end for a comment, so that lines can still be counted."""
    for line in lines_of_text(path):
        yield "\n" if line.startswith("#") else line


def read_json(path: Path) -> Any:
    """Returns the content of a json file.

    Raises:
        UserError: no json; an object with one key twice, of which the other would be lost.
    """
    try:
        return json.loads("".join(lines_of_text(path)), object_pairs_hook=lambda pairs: _object(pairs, path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not a json file: {error}.") from None


def _object(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise UserError(f"{path} has {next(key for key in keys if keys.count(key) > 1)!r} twice.")
    return found
