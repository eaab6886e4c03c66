"""Progress bars: smooth on a terminal, a line every ten seconds in a log file."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(items: Iterable | None = None, **options: Any) -> tqdm:
    """Returns a tqdm bar on stderr with rate and ETA.

    Args:
        items: what is iterated over; without it the caller gives `total` and calls update().
        options: of tqdm, such as desc, unit, total and disable.
    """
    return tqdm(items, mininterval=0.2 if sys.stderr.isatty() else 10, **options)


def print_above_bars(text: str, file: Any = None) -> None:
    """Prints a line without breaking the bars that are on the terminal."""
    file = file or sys.stdout
    if sys.stderr.isatty():
        tqdm.write(text, file=file)
    else:
        print(text, file=file, flush=True)
