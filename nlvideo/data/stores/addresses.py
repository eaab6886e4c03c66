"""Addresses of objects in stores: which paths are ones, and how they are put together and taken apart."""

import os
import re
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from nlvideo.data.shards.video_file import TAR
from nlvideo.runtime.errors import UserError

# scheme: (package that fsspec reads it with, how it is installed)
SCHEMES = {
    "s3": ("s3fs", "pip install nlvideo[s3]"),
    "gs": ("gcsfs", "pip install nlvideo[gs]"),
    "http": ("aiohttp", "pip install nlvideo[http]"),
    "https": ("aiohttp", "pip install nlvideo[http]"),
}
WEB = ("http", "https")
NAME_BYTES = 200  # of a file's name in the cache; file systems take 255
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two letters at least: C:// is a drive


class ObjectPlace(NamedTuple):
    """What an address names: an object, or a member of one that is a tar file."""

    object: str
    member: str | None


def is_address(path: str | os.PathLike) -> bool:
    """Returns whether a path is an address, of whatever scheme, and not one of this machine's file systems."""
    return _ADDRESS.match(os.fspath(path)) is not None


def scheme_of(address: str) -> str:
    found = _ADDRESS.match(address)
    assert found, "the caller asks is_address"
    return found[1].lower()


def check_address(address: str, given: str) -> None:
    """Refuses an address that cannot be read or holds a secret, which is not printed.

    Args:
        given: where the user wrote it, such as "data.root".

    Raises:
        UserError: an unknown scheme, no host or bucket, a user or password, a query or a fragment.
    """
    scheme = scheme_of(address)
    if scheme == "file":
        raise UserError(f"{given}: give a folder of this machine as a path, without file://.")
    if scheme not in SCHEMES:
        raise UserError(f"{given}: {scheme}:// is unknown. Choose from: {', '.join(f'{name}://' for name in SCHEMES)}.")
    if not address.startswith(scheme):
        raise UserError(f"{given}: write {scheme}:// in small letters.")
    rest = address.split("://", 1)[1]
    place, _, _ = rest.partition("/")
    if "@" in place:
        raise UserError(
            f"{given}: an address with a user or password before @ is refused, because configs and lists are printed "
            "and saved. Credentials belong into the environment: see docs/data.md."
        )
    if "?" in rest:
        raise UserError(
            f"{given}: an address with a query (?...) is refused: a signature in it would be printed and saved. "
            "Credentials belong into the environment: see docs/data.md."
        )
    if "#" in rest and scheme in WEB:
        raise UserError(f"{given}: an address with # is refused: servers are not told what follows. Write %23 for it.")
    if not _is_place(place):
        raise UserError(
            f"{given}: what follows the : in the {'host' if scheme in WEB else 'bucket'} is no port. An address with a "
            "password is refused: see docs/data.md."
        )
    if not place:
        raise UserError(f"{given}={address}: names no {'host' if scheme in WEB else 'bucket'}.")


def _is_place(place: str) -> bool:
    """Returns whether a place may be a host with or without a port, or a bucket, and holds no user and password."""
    if place.startswith("arn:"):  # of an access point of S3
        return True
    _, _, port = re.sub(r"^\[[0-9A-Fa-f:.]+\]", "host", place).partition(":")
    return ":" not in place or place.startswith("[") and not port or port.isdecimal() and int(port) <= 65535


def joined(folder: str, name: str) -> str:
    """Returns the path or address of a name in a folder, as os.path.join for paths; a name may be an address itself.

    In the addresses of the web, characters of a name that mean something else in an address are escaped.
    """
    if is_address(name):
        return _quoted(name)
    if not is_address(folder) or os.path.isabs(name):
        return os.path.join(folder, name)
    if scheme_of(folder) in WEB:
        name = quote(name, safe="/", errors="surrogateescape")
    folder = _quoted(folder)
    return f"{folder.rstrip('/')}/{name}" if name else folder


def _quoted(address: str) -> str:
    return quote(address, safe="/:%@!$&'()*+,;=~[]") if scheme_of(address) in WEB else address


def split_shard(address: str) -> ObjectPlace:
    """Returns the object that an address names and, where it is a tar file, the member in it.

    Whatever stands before `.tar/` is taken for a tar file: a store has no folders that could be called so.
    """
    found = TAR.search(address)
    if found is None or not address[found.end() + 1 :]:
        return ObjectPlace(address, None)
    member = address[found.end() + 1 :]
    return ObjectPlace(address[: found.end()], unquote(member) if scheme_of(address) in WEB else member)


def file_name(address: str) -> str:
    """Returns a name for a local copy of an object: its own, because its ending says what it is, if a disk takes it."""
    path = urlsplit(address).path if scheme_of(address) in WEB else address
    name = path.rsplit("/", 1)[-1]
    name = unquote(name, errors="surrogateescape") if scheme_of(address) in WEB else name
    name = name.replace("/", "_").replace("\0", "_")
    while len(os.fsencode(name)) > NAME_BYTES:
        name = name[1:]
    return f"_{name}" if name.startswith(".") or not name else name  # names with a dot are the cache's own
