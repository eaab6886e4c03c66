"""One process at a time in a folder of results."""

import errno
import fcntl
import os
from pathlib import Path

from nlvideo.runtime.errors import UserFileExistsError


def lock_folder(folder: Path) -> None:
    """Locks a folder for as long as this process lives; a folder that does not exist is not locked.

    Raises:
        UserFileExistsError: another process holds the lock.
    """
    if not folder.is_dir():
        return
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)  # never closed
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by this process alone, not by workers that it forks
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserFileExistsError(f"output_dir={folder} is in use by another process.") from None
        # any other error: a file system without locks
