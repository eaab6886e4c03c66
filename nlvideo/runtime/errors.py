"""Errors that a command reports in one line. Any other exception is a bug or a broken machine and keeps its traceback.

Set NLVIDEO_TRACEBACK=1 to see the traceback of these too.
"""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

TRACEBACK_VARIABLE = "NLVIDEO_TRACEBACK"


class UserError(ValueError):
    """Something the user can fix: a key, a value, a file. The message names it and says what to do."""


class UserFileNotFoundError(UserError, FileNotFoundError):
    """A file that the user named, or that a command needs, does not exist."""


class UserFileExistsError(UserError, FileExistsError):
    """A file or folder that would have to be overwritten exists already, or is in use."""


class UserPermissionError(UserError, PermissionError):
    """A file that the user named, or that a command needs, belongs to somebody else."""


class RunFailed(RuntimeError):
    """A run that cannot continue, for a reason that its message fully explains: a full disk, a NaN loss."""


REPORTED_ERRORS = (UserError, RunFailed)


def error_line(error: Exception) -> str:
    """Returns the line that a command exits with; it names the rank where there are several."""
    rank = os.environ.get("RANK")
    line = f"error: {error}" if rank is None else f"rank {rank}: error: {error}"
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        line = "".join(traceback.format_exception(error)) + line
    return line


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Exits with code 1 and one line where the block raises one of REPORTED_ERRORS."""
    try:
        yield
    except REPORTED_ERRORS as error:
        sys.exit(error_line(error))
