"""Objects of a store, through fsspec: what is known of one, its download, and what its errors mean.

Clients are made when a process first needs one and are never used by another: neither their threads nor their
connections survive a fork. Credentials are what the libraries find in the environment.
"""

import base64
import binascii
import errno
import hashlib
import importlib
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from nlvideo.data.stores.addresses import SCHEMES, WEB, scheme_of
from nlvideo.data.stores.progress import BrokenDownload, Stopped, UnknownLength, progress
from nlvideo.runtime.errors import RunFailed, UserError

Result = TypeVar("Result")

TRIES = 8  # of one object
FIRST_DELAY, LONGEST_DELAY = 0.5, 15.0  # seconds before the second try, then twice as many each time: 45 in all
CONNECT_SECONDS, STALL_SECONDS = 10.0, 30.0  # without a connection, and without a byte, until a try has failed
HASHED_BYTES = 1 << 20  # bytes that are hashed at a time
NOT_MD5 = ("aws:kms", "aws:kms:dsse")  # server-side encryption under which an ETag is no hash of the content
EXPRESS = "--x-s3"  # ends the names of S3's directory buckets, whose ETags are no hashes either
LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of the disk that is written to
_random = random.Random()  # of its own: delays must not change what training draws


class StoreFailed(RunFailed):
    """A store that does not give an object, or a cache that cannot take it: the run ends, and no video is to blame."""


class MissingObject(Exception):
    """The store says that there is no such object."""


class ObjectFacts(NamedTuple):
    """What a store says of an object."""

    size: int | None  # bytes; None if it does not say
    version: str  # changes with the content; empty if it does not say
    md5: str | None  # of the content, hexadecimal, where the store gives it


def check_package(scheme: str, given: str) -> None:
    """Raises UserError, with the install line, if what reads a scheme is not installed."""
    package, install = SCHEMES[scheme]
    try:
        importlib.import_module(package)
    except ImportError:
        raise UserError(f"{given}: {scheme}:// needs {package} ({install}).") from None


def object_facts(address: str) -> ObjectFacts:
    """Returns what the store says of an object; any error is the library's, see meaning_of."""
    scheme, files = scheme_of(address), _filesystem(scheme_of(address))
    if scheme == "s3":
        bucket, key, _ = files.split_path(address)
        head = files.call_s3("head_object", Bucket=bucket, Key=key)
        etag = head.get("ETag", "").strip('"')
        hashed = re.fullmatch("[0-9a-f]{32}", etag) and head.get("ServerSideEncryption") not in NOT_MD5
        hashed = hashed and "SSECustomerAlgorithm" not in head and not bucket.endswith(EXPRESS)
        return ObjectFacts(
            head.get("ContentLength"), etag or str(head.get("LastModified", "")), etag if hashed else None
        )
    info = files.info(address)
    if scheme in WEB:
        if info.get("url", "").endswith("/"):  # it led to the page of a folder
            raise FileNotFoundError(address)
        # The servers behind one name may call the same file by different ETags.
        version = info.get("Last-Modified") or info.get("ETag") or ""
        # Servers that make an answer as they send it may say 0 when they are only asked about it.
        return ObjectFacts(info["size"] or None, version, _hex(info.get("Content-MD5")))
    if info.get("type") == "directory":
        raise FileNotFoundError(address)
    version = info.get("generation") or info.get("etag") or info.get("updated") or ""
    return ObjectFacts(info.get("size"), str(version), _hex(info.get("md5Hash")))


def download(address: str, file: str | os.PathLike, facts: ObjectFacts, stopped: Callable[[], bool]) -> tuple[int, str]:
    """Writes an object to a file; returns its bytes and their MD5.

    Raises:
        BrokenDownload: not the length or the content that the store has said, another version at the end, or too slow.
        UnknownLength: the store has said neither.
        Stopped: `stopped` has become true meanwhile.
        Exception: the library's, see meaning_of; OSError of the disk.
    """
    watched = progress(facts.size, facts.md5 is not None, stopped)
    _filesystem(scheme_of(address)).get_file(address, os.fspath(file), callback=watched)
    size, md5 = os.path.getsize(file), _md5_of(file)
    if watched.expected is not None and size != watched.expected:
        raise BrokenDownload(f"{size} bytes came of {watched.expected}")
    if facts.md5 is not None and md5 != facts.md5:
        raise BrokenDownload(f"its content has the MD5 {md5}, and the store says {facts.md5}")
    if facts.md5 is None and facts.version and object_facts(address).version != facts.version:
        raise BrokenDownload("it was replaced while it came")
    return size, md5


def with_retries(
    address: str,
    function: Callable[[], Result],
    *,
    tries: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
    folder: str | os.PathLike | None = None,
) -> Result:
    """Returns function(), called again with growing delays while what it raises may pass.

    Args:
        address: what it is about.
        tries: at most; None: TRIES.
        folder: that it is written to.

    Raises:
        MissingObject: there is no such object.
        StoreFailed: no permission, no length, or the last try failed as those before. The line names the address.
        OSError: of the disk that the folder is on.
        Stopped: `stopped` has become true.
    """
    tries = tries or TRIES
    for i in range(tries):
        try:
            return function()
        except (StoreFailed, UserError, Stopped, MissingObject):
            raise
        except Exception as error:
            meaning = meaning_of(error, address, folder)
            if isinstance(meaning, Exception):
                raise meaning from None
            if i == tries - 1:
                times = f"{tries} tries" if tries > 1 else "a try"
                raise StoreFailed(f"{address} cannot be fetched: {meaning} (after {times}).") from None
        end = time.monotonic() + min(FIRST_DELAY * 2**i, LONGEST_DELAY) * _random.uniform(0.5, 1.0)
        while (left := end - time.monotonic()) > 0:
            if stopped():
                raise Stopped
            time.sleep(min(left, 0.2))
    raise AssertionError("the last try returns or raises")


def meaning_of(error: Exception, address: str, folder: str | os.PathLike | None = None) -> Exception | str:
    """Returns what to raise instead of a library's error, or the reason as text if trying again may help.

    Args:
        folder: whose files are written; other files that are at fault are the credentials'.
    """
    if isinstance(error, UnknownLength):
        return StoreFailed(
            f"{address} cannot be fetched: the server does not say how long it is, nor its MD5, so that a part of it "
            "could pass for the whole. See docs/data.md."
        )
    chain = list(_causes(error))
    status = next((code for code in map(_status, chain) if code), None)
    root = chain[-1]
    if status in (404, 410) or (status is None and isinstance(root, FileNotFoundError) and _is_remote(root)):
        return MissingObject(address)
    if status in (401, 403) or any(isinstance(part, PermissionError) and _is_remote(part) for part in chain):
        return StoreFailed(
            f"{address} cannot be read: no permission ({_reason(root)}). Stores that do not let you list say so of "
            "missing objects, too. Credentials are taken from the environment: see docs/data.md."
        )
    if any(
        type(part).__name__ in ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
        for part in chain
    ):
        return StoreFailed(
            f"{address} cannot be read: there are no credentials in the environment. See docs/data.md, also for public "
            "buckets."
        )
    if isinstance(root, OSError) and not _is_remote(root) and root.filename is not None:
        if folder is not None and str(root.filename).startswith(f"{os.fspath(folder)}{os.sep}"):
            return root
        return StoreFailed(f"{address} cannot be read: {_reason(root)}.")
    if isinstance(root, OSError) and root.errno in LOCAL_ERRORS:
        return root
    return _reason(root)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and what it was raised from, the first cause last."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _is_remote(error: BaseException) -> bool:
    """Returns whether an OSError is a library's word for what a store says, and not the operating system's."""
    return not isinstance(error, OSError) or error.filename is None


def _status(error: BaseException) -> int | None:
    """Returns the HTTP status that an error is about, None if it is about none."""
    value = error.status if hasattr(error, "status") else getattr(error, "code", None)  # aiohttp's and gcsfs's
    if isinstance(value, int) and 400 <= value < 600:
        return value
    response = getattr(error, "response", None)
    value = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    return value if isinstance(value, int) else None


def _reason(error: BaseException) -> str:
    """Returns an error in one line, without what may be a signature."""
    if type(error).__name__ == "ClientResponseError":  # its text holds the address that a redirect has led to
        return f"HTTP status {error.status} {error.message}".strip()  # type: ignore[attr-defined]
    text = (str(error).strip().splitlines() or [""])[0]
    text = re.sub(r"\?\S+", "?...", re.sub(r"://[^/\s@]+@", "://", text))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# By process. What an earlier process made is kept unused: closing it would take connections from that process.
_made: dict[tuple[int, str], Any] = {}
_making = threading.Lock()


def _after_fork() -> None:
    """Forgets what belongs to the parent's threads, while the child has one thread only."""
    global _making
    _making = threading.Lock()
    if _made:
        import fsspec

        fsspec.asyn.reset_lock()  # older versions would wait for the parent's thread


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _filesystem(scheme: str) -> Any:
    """Returns this process's client. Its threads share it: only one of them makes it, and its connections."""
    key = os.getpid(), "http" if scheme in WEB else scheme
    with _making:
        if key not in _made:
            check_package(scheme, f"{scheme}://")
            import fsspec

            files = fsspec.filesystem(key[1], skip_instance_cache=True, **_options(key[1]))
            if key[1] == "s3":
                files.retries = 1  # with_retries does that, for whole objects
            fsspec.asyn.sync(files.loop, files._set_session if key[1] == "gs" else files.set_session)
            _made[key] = files
        return _made[key]


def _options(scheme: str) -> dict[str, Any]:
    if scheme == "s3":
        timeouts = {"connect_timeout": CONNECT_SECONDS, "read_timeout": STALL_SECONDS}
        return {"config_kwargs": timeouts | {"retries": {"total_max_attempts": 1}}, "max_concurrency": 1}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=STALL_SECONDS)
    if scheme == "gs":
        session = {"trust_env": True}
        return {
            "access": "read_only",
            "requests_timeout": timeout,
            "session_kwargs": session,
            "use_listings_cache": False,
        }
    # A proxy, or a password in ~/.netrc, is taken from the environment. A compressed body has another length.
    client = {"timeout": timeout, "trust_env": True}
    return {"client_kwargs": client, "encoded": True, "headers": {"Accept-Encoding": "identity"}}


def _md5_of(file: str | os.PathLike) -> str:
    found = hashlib.md5(usedforsecurity=False)
    with open(file, "rb") as opened:
        while block := opened.read(HASHED_BYTES):
            found.update(block)
    return found.hexdigest()


def _hex(md5: str | None) -> str | None:
    """Returns an MD5 in base64, as HTTP and Google write it, as hexadecimal; None if it is none."""
    try:
        found = base64.b64decode(md5 or "", validate=True)
    except binascii.Error:
        return None
    return found.hex() if len(found) == 16 else None
