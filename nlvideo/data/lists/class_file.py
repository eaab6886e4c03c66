"""Files that name the classes: text, csv or json, with numbers or without."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlvideo.data.lists.text_file import lines_of_text, read_json
from nlvideo.runtime.errors import UserError, UserFileNotFoundError

# Of several columns of one meaning the first here is read: `label,name` has numbers for labels, `id,label` names.
NUMBER_COLUMNS = "id number index idx label_id class_id class_index label_index label class".split()
NAME_COLUMNS = "name class_name classname label_name class label category action".split()
_NUMBERED = re.compile(r"(\d+)\s*[\s,;:]\s*(\S.*)")  # number; space, tab or one of ",;:"; name
_NUMBER_LAST = re.compile(r"(\S.*?)\s*[\s:]\s*(\d+)")


def read_classes(path: str | Path) -> list[str]:
    """Returns the class names of a file in the order of the labels, whose numbers start at 0 or 1.

    A text has one name a line, `number name` or `name number`, or it is a csv of `name,number` or with a header of the
    two. A json is a list of names, {name: number} or {number: name}.

    Raises:
        UserError: no such file; an empty one; a name or a number that occurs twice; a number that is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserFileNotFoundError(f"The class file {path} does not exist (data.classes).")
    if path.suffix.lower() == ".json":
        found = _from_json(path, read_json(path))
    else:
        found = _from_text(path, [line.strip() for line in lines_of_text(path) if line.strip()])
    names = found if isinstance(found, list) else _in_order(path, found)
    if not names:
        raise UserError(f"The class file {path} is empty.")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"The class file {path} names {', '.join(twice)} more than once.")
    return names


def has_names(classes: Sequence[str]) -> bool:
    """Returns whether classes are more than the numbers that a list without a class file gives them."""
    return list(classes) != [str(k) for k in range(len(classes))]


class _Pairs(dict[int, str]):
    """Names by number."""

    def __init__(self, path: Path, pairs: list[tuple[int, str]]):
        super().__init__(pairs)
        if len(self) < len(pairs):
            numbers = [number for number, _ in pairs]
            twice = next(number for number in numbers if numbers.count(number) > 1)
            names = " and ".join(name for number, name in pairs if number == twice)
            raise UserError(f"The class file {path} gives the number {twice} to {names}.")


def _from_text(path: Path, lines: list[str]) -> "list[str] | _Pairs":
    for delimiter in ",\t;":
        rows = _table(lines, delimiter)
        if rows is None:
            continue
        header = [cell.lower().replace(" ", "_") for cell in rows[0]]
        number = next((header.index(key) for key in NUMBER_COLUMNS if key in header), None)
        name = next((header.index(key) for key in NAME_COLUMNS if key in header and header.index(key) != number), None)
        if name is not None and number is not None:
            return _from_columns(path, rows, number, name)
        if len(rows[0]) == 2 and all(row[1].isdecimal() and not row[0].isdecimal() for row in rows):
            return _Pairs(path, [(int(row[1]), row[0]) for row in rows])
    if path.suffix.lower() == ".csv" and lines and lines[0].lower() in NAME_COLUMNS:
        return [line.strip('"') for line in lines[1:]]
    return _from_lines(path, lines)


def _table(lines: list[str], delimiter: str) -> list[list[str]] | None:
    """Returns the cells of a csv, None if it is none with the same number of columns, two or more, in each row."""
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error:
        return None
    if not rows or len(rows[0]) < 2 or any(len(row) != len(rows[0]) for row in rows):
        return None
    return [[cell.strip() for cell in row] for row in rows]


def _from_columns(path: Path, rows: list[list[str]], number: int, name: int) -> "_Pairs":
    for row in rows[1:]:
        if not row[number].isdecimal():
            raise UserError(f"The class file {path}: {row[number]!r} of {row[name]} is no number.")
    return _Pairs(path, [(int(row[number]), row[name]) for row in rows[1:]])


def _from_lines(path: Path, lines: list[str]) -> "list[str] | _Pairs":
    """Returns the names of `number name` lines by number, or of lines that are names.

    Names may begin with a number themselves ("100 metres", "200 metres"). Then no line has the number 0 or 1 that
    numbers start with, or all are equal but for it ("0 degrees", "90 degrees").
    """
    matches = [_NUMBERED.fullmatch(line) for line in lines]
    pairs = [(int(match[1]), match[2].strip('"')) for match in matches if match]
    if not pairs or min(number for number, _ in pairs) > 1:
        return _numbered_last(path, lines)
    if len(pairs) > 1 and len({name for _, name in pairs}) == 1:
        return lines
    if len(pairs) == len(lines):
        return _Pairs(path, pairs)
    if 2 * len(pairs) < len(lines):  # a name such as "1 on 1 basketball" among others
        return lines
    bare = next(line for line, match in zip(lines, matches, strict=True) if not match)
    raise UserError(f"The class file {path} has lines of `number name`, but {bare!r} has no number.")


def _numbered_last(path: Path, lines: list[str]) -> "list[str] | _Pairs":
    """Returns the names of `name number` lines by number, or of lines that are names.

    Names may end in a number themselves ("level 1", "level 2"). Then they are equal but for it, or it is not in all
    lines, or the numbers are not those of classes, 0 or 1 and those that follow.
    """
    matches = [_NUMBER_LAST.fullmatch(line) for line in lines]
    pairs = [(int(match[2]), match[1].strip('"')) for match in matches if match]
    numbers, count = sorted(number for number, _ in pairs), len(lines)
    of_classes = numbers in ([*range(count)], [*range(1, count + 1)])
    if count == 1 or not of_classes or len({name for _, name in pairs}) < count:
        return lines
    return _Pairs(path, pairs)


def _from_json(path: Path, content: Any) -> "list[str] | _Pairs":
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return content
    if isinstance(content, dict):
        # PySlowFast's names come with quotes of their own.
        if all(str(value).isdecimal() for value in content.values()):
            return _Pairs(path, [(int(value), name.strip('"')) for name, value in content.items()])
        if all(key.isdecimal() and isinstance(value, str) for key, value in content.items()):
            return _Pairs(path, [(int(key), value) for key, value in content.items()])
    raise UserError(f'{path} is not a json of names: ["name", ...], {{"name": number, ...}} or {{"number": "name"}}.')


def _in_order(path: Path, pairs: _Pairs) -> list[str]:
    """Returns the names in the order of their numbers, which follow one another from 0 or 1 on."""
    if not pairs:
        return []
    first = min(pairs)
    if first > 1:
        raise UserError(f"The class file {path}: numbers start at 0 or 1, here at {first} with {pairs[first]}.")
    lacking = [number for number in range(first, first + len(pairs)) if number not in pairs]
    if lacking:
        raise UserError(
            f"The class file {path} has {len(pairs)} names with numbers up to {max(pairs)}, but none with the number "
            f"{lacking[0]}: they must follow one another."
        )
    return [pairs[number] for number in sorted(pairs)]
