"""How a project names its weights, in both directions, from one table of templates."""

import re
from collections.abc import Sequence
from typing import NamedTuple


class _Field(NamedTuple):
    """What a {field} of a template stands for: a part of a key, of which there are pairs (theirs, ours)."""

    theirs: str  # regular expressions
    ours: str
    pairs: dict[str, str] = {}  # where the two differ


_FIELDS = {
    "stage": _Field("[2-5]", "[1-4]", {"2": "1", "3": "2", "4": "3", "5": "4"}),  # s2 .. s5 are layer1 .. layer4
    "layer": _Field("[1-4]", "[1-4]"),
    "block": _Field(r"\d+", r"\d+"),
    "number": _Field(r"\d", r"\d"),
    "branch": _Field("[abc]", "[123]", {"a": "1", "b": "2", "c": "3"}),
    "part": _Field("theta|phi|g|out", "theta|phi|g|out"),
    "inner": _Field("theta|phi|g", "theta|phi|g"),
    "pooled": _Field("phi|g", "phi|g"),
    "kind": _Field(r"(?!scale$)\w+", r"\w+"),  # weight, bias, running_mean, ...
}


class KeyNames:
    """Translates the keys of a state dict.

    Args:
        rows: pairs of templates (theirs, ours). Where several fit, the first that does wins.
    """

    def __init__(self, *rows: tuple[str, str]):
        self.rows = rows
        self._from_theirs = [(_pattern(theirs, 0), ours) for theirs, ours in rows]
        self._from_ours = [(_pattern(ours, 1), theirs) for theirs, ours in rows]

    def ours(self, key: str) -> str | None:
        """Returns our key for one of theirs, None where it is unknown."""
        found = _translated(key, self._from_theirs, reverse=False)
        return found[0] if found else None

    def theirs(self, key: str) -> list[str]:
        """Returns their keys for one of ours: none, one, or those that it uses by turns, the usual one first."""
        return _translated(key, self._from_ours, reverse=True)


def _translated(key: str, rows: Sequence[tuple[re.Pattern, str]], *, reverse: bool) -> list[str]:
    found = []
    for pattern, template in rows:
        if match := pattern.fullmatch(key):
            values = {name: _other(name, value, reverse) for name, value in match.groupdict().items()}
            found.append(template.format(**values))
    return found


def _other(name: str, value: str, reverse: bool) -> str:
    pairs = _FIELDS[name].pairs
    return ({ours: theirs for theirs, ours in pairs.items()} if reverse else pairs).get(value, value)


def _pattern(template: str, side: int) -> re.Pattern:
    parts = re.split(r"\{(\w+)\}", template)
    text = [f"(?P<{part}>{_FIELDS[part][side]})" if i % 2 else re.escape(part) for i, part in enumerate(parts)]
    return re.compile("".join(text))
