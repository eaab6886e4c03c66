"""Lists and class files, which may lie in a store: read anew each time, so that a changed list is never missed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from nlvideo.data.shards.video_file import exists
from nlvideo.data.stores.addresses import check_address, file_name, is_address, scheme_of, split_shard
from nlvideo.data.stores.cache import facts_with_retries
from nlvideo.data.stores.store import MissingObject, StoreFailed, check_package, download, object_facts, with_retries
from nlvideo.runtime.errors import UserError, UserFileNotFoundError


@contextmanager
def local_copy(path: str, what: str) -> Iterator[Path]:
    """Yields a file with what is at a path or an address. UserErrors of the block name the address, not the file.

    Args:
        what: it is, for messages, such as "list".

    Raises:
        UserFileNotFoundError: there is no such object.
        StoreFailed: the store does not give it.
    """
    if not is_address(path):
        yield Path(path)
        return
    check_address(path, f"The {what}")
    check_package(scheme_of(path), f"The {what} {path}")
    with TemporaryDirectory(prefix="nlvideo-") as folder:
        file = Path(folder, file_name(path))
        try:
            with_retries(path, lambda: download(path, file, object_facts(path), lambda: False), folder=folder)
        except MissingObject:
            raise UserFileNotFoundError(
                f"The {what} {path} does not exist: the store has no such object. Folders are not listed."
            ) from None
        except OSError as error:
            raise StoreFailed(f"The {what} {path} cannot be copied to {folder}: {error.strerror}.") from None
        try:
            yield file
        except UserError as error:
            raise type(error)(str(error).replace(str(file), path)) from None


def is_there(path: str) -> bool:
    """Returns whether there is a file at a path, or an object at an address.

    Raises:
        StoreFailed: the store does not say.
    """
    if not is_address(path):
        return exists(path)
    try:
        facts_with_retries(split_shard(path).object)
    except MissingObject:
        return False
    return True
