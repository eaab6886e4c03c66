"""Checks of single values: a choice, a number in its bounds."""

import math
from typing import Any

from nlvideo.runtime.errors import UserError


def check_choice(key: str, value: Any, allowed: tuple) -> None:
    """Raises UserError unless the value is one of those allowed, and of its type."""
    if value not in allowed or type(value) not in map(type, allowed):  # true is no 1
        raise UserError(f"{key}={value}: choose from {', '.join(map(str, allowed))}.")


def check_at_least_one(config: Any, keys: str, prefix: str = "") -> None:
    """Raises UserError for a value below 1.

    Args:
        keys: of the config, separated by spaces; null is allowed.
        prefix: of the keys in messages.
    """
    for key in keys.split():
        value = value_of(config, key)
        if value is not None and value < 1:
            raise UserError(f"{prefix}{key}={value}: must be at least 1.")


def check_at_most(config: Any, keys: str, most: int) -> None:
    """Raises UserError for a value above `most`; null is allowed."""
    for key in keys.split():
        value = value_of(config, key)
        if value is not None and value > most:
            raise UserError(f"{key}={value}: must be at most {most}.")


def check_not_negative(config: Any, keys: str, prefix: str = "") -> None:
    """Raises UserError for a negative or infinite value."""
    for key in keys.split():
        value = value_of(config, key)
        if not 0 <= value < math.inf:
            raise UserError(f"{prefix}{key}={value}: must be a number that is not negative.")


def check_share(config: Any, keys: str, prefix: str = "") -> None:
    """Raises UserError for a value that is not in [0, 1)."""
    for key in keys.split():
        value = value_of(config, key)
        if not 0 <= value < 1:
            raise UserError(f"{prefix}{key}={value}: must be at least 0 and below 1.")


def value_of(config: Any, key: str) -> Any:
    """Returns the value of a key such as snippet.step."""
    for name in key.split("."):
        config = getattr(config, name)
    return config
