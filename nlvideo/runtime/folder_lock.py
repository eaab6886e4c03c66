"""One process at a time in a folder of results."""

import errno
import fcntl
import os
from pathlib import Path

from nlvideo.runtime.errors import UserFileExistsError


def lock_folder(folder: Path) -> None:
    """Keeps other processes out of this folder as long as this one lives; one that does not exist is free.

    Raises:
        UserError: another one does already.
    """
    if not folder.is_dir():
        return
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)  # never closed
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone, not of the workers that it forks
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserFileExistsError(f"output_dir={folder} is in use by another process.") from None
        # otherwise a file system without locks
