"""Opens streams with FFmpeg: cameras, addresses and the standard input, and nothing that their content names.

FFmpeg by itself opens whatever a playlist names, and takes any certificate.
"""

import errno
import os
import re
import socket
import ssl
import stat
import time
from typing import Any, cast
from urllib.parse import urlsplit

import av

from nlvideo.data.stores.addresses import is_address, scheme_of

# scheme: the protocols that FFmpeg may use for it, which includes where a server redirects to
PROTOCOLS = {"rtsp": "rtsp,rtp,udp,tcp", "udp": "udp", "http": "http,tcp", "https": "https,tls,tcp"}
STANDARD_INPUT = "-"
# What FFmpeg may take a stream for. Left out is what names other addresses: hls, dash, sdp, concat and more.
STREAM_FORMATS = (
    "mpegts mov matroska flv rtsp mpjpeg jpeg_pipe h264 hevc m4v mpeg mpegvideo ivf obu ogg avi nut asf".split()
)
_HOST_AND_PORT = re.compile(r"(?P<host>\[[^\[\]]+\]|[^:@\[\]]*)(:(?P<port>[0-9]*))?")
TIMEOUT = 10.0  # seconds without a byte, after which a stream is taken for broken
NOTHING_CAME = "nothing came for {:g} seconds"
ANALYSIS = 1_000_000  # microseconds of a stream that FFmpeg looks at before it gives the first frame
STREAM_FAILURES = (av.FFmpegError, OSError, ValueError)


class StreamBroke(Exception):
    """A stream cannot be opened or read on. Has `reason`."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def is_stream(path: str) -> bool:
    """Returns whether a path given to a command is a stream: the standard input, a device, or one of PROTOCOLS."""
    if is_address(path):
        return scheme_of(path) in PROTOCOLS
    return path == STANDARD_INPUT or _is_device(path)


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False


def without_secrets(address: str) -> str:
    """Returns an address as it is printed: without user, password and query, and without parts of the path that give a
    value, as cameras have it (/user=admin&password=1). Dots stand for whatever may be one of these."""
    if not is_address(address):
        return address
    scheme, rest = address.split("://", 1)
    before, *query = re.split("[?#]", rest, maxsplit=1)
    user, _, shown = before.rpartition("@")
    place, *folders = shown.split("/")
    if not _HOST_AND_PORT.fullmatch(place):
        place = "..."
    parts = [place, *("..." if "=" in folder else folder for folder in folders)]
    hidden = "...@" if "/" in user else ""  # of a path that holds @, or a password that holds /
    return f"{scheme}://{hidden}{'/'.join(parts)}{'?...' if query else ''}"


def problem_of_address(address: str) -> str | None:
    """Returns why nothing can be at a stream's address, None if something can."""
    if not is_address(address):
        return None
    scheme, rest = scheme_of(address), address.split("://", 1)[1]
    found = _HOST_AND_PORT.fullmatch(re.split("[/?#]", rest, maxsplit=1)[0].rpartition("@")[2])
    if found is None or (found["port"] and not 0 < int(found["port"]) < 65536):
        return "what follows :// is not HOST, HOST:PORT or USER:PASSWORD@HOST:PORT, with a port from 1 to 65535"
    if scheme == "udp":  # the host may be left out: all addresses of this machine
        return None if found["port"] or "localport=" in rest else "it names no port"
    return None if found["host"] else "it names no host"


def open_stream(address: str) -> tuple[Any, Any]:
    """Returns an open container and its video stream.

    Raises:
        StreamBroke: nothing answers within TIMEOUT seconds, or what does has no video; says why.
    """
    start = time.monotonic()
    try:
        container = _opened(address)
    except STREAM_FAILURES as error:
        # FFmpeg has other words for it at times: of an RTSP server that is silent, "invalid data"
        is_late = is_address(address) and time.monotonic() - start >= TIMEOUT
        raise StreamBroke(NOTHING_CAME.format(TIMEOUT) if is_late else _why_not_opened(address, error)) from None
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        held = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        container.close()
        raise StreamBroke(f"it holds no video ({held})")
    stream.thread_type = "NONE"  # threads that each decode a frame would hold as many back
    return container, stream


def _opened(address: str) -> Any:
    if _is_device(address):
        return av.open(address, format="v4l2", timeout=TIMEOUT)
    options = {"format_whitelist": ",".join(STREAM_FORMATS), "analyzeduration": str(ANALYSIS)}
    if address == STANDARD_INPUT:
        return av.open("pipe:0", options=options | {"protocol_whitelist": "pipe"}, metadata_errors="ignore")
    scheme = scheme_of(address)
    address = f"{scheme}://{address.split('://', 1)[1]}"  # FFmpeg knows small letters alone
    options |= {"protocol_whitelist": PROTOCOLS[scheme], **_own_options(scheme)}
    return av.open(address, options=options, timeout=TIMEOUT, metadata_errors="ignore")


def _own_options(scheme: str) -> dict[str, str]:
    if scheme == "rtsp":
        return {"rtsp_flags": "prefer_tcp"}
    if scheme == "https":
        authorities = _authorities()
        return {"tls_verify": "1"} | ({"ca_file": authorities} if authorities else {})
    return {"overrun_nonfatal": "1"} if scheme == "udp" else {}


def _authorities() -> str | None:
    """Returns the file of the authorities that certificates are checked by: SSL_CERT_FILE, or the system's."""
    return ssl.get_default_verify_paths().cafile


def _why_not_opened(address: str, error: Exception) -> str:
    if isinstance(error, av.error.InvalidDataError | av.error.ArgumentError):
        if is_address(address) and scheme_of(address) == "rtsp":
            return "it broke off before it said what it holds, or is no RTSP server"
        kinds = ", ".join(STREAM_FORMATS)
        return f"it is none of {kinds}; playlists and whatever else names other addresses are not read"
    if is_address(address) and scheme_of(address) == "https" and getattr(error, "errno", 0) == errno.EIO:
        return certificate_problem(address) or reason_of(error)
    if getattr(error, "errno", 0) == errno.ENOTTY:
        return "it is no camera"
    return reason_of(error)


def reason_of(error: Exception) -> str:
    """Returns what an error of FFmpeg says, without the address, which may hold a password."""
    if isinstance(error, av.error.ExitError | av.error.TimeoutError):
        return NOTHING_CAME.format(TIMEOUT)
    return getattr(error, "strerror", None) or type(error).__name__


def certificate_problem(address: str) -> str | None:
    """Returns what is wrong with a server's certificate, of which FFmpeg says no more than "Input/output error"."""
    place = urlsplit(address)
    context = ssl.create_default_context(cafile=_authorities())
    try:
        with socket.create_connection((cast(str, place.hostname), place.port or 443), TIMEOUT) as plain:
            with context.wrap_socket(plain, server_hostname=place.hostname):
                return None
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is refused: {error.verify_message} (SSL_CERT_FILE names other authorities)"
    except (OSError, ValueError):
        return None
