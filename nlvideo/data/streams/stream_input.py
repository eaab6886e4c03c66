"""Opens streams with FFmpeg: cameras, addresses and the standard input, and nothing that their content names.

FFmpeg by itself opens whatever a playlist names, and takes any certificate.
"""

import errno
import os
import socket
import ssl
import stat
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
TIMEOUT = 10.0  # seconds without a byte, after which a stream is taken for broken
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


def without_password(address: str) -> str:
    """Returns an address as it is printed: without user and password."""
    if not is_address(address):
        return address
    scheme, rest = address.split("://", 1)
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2] or place}{slash}{path}"


def open_stream(address: str) -> tuple[Any, Any]:
    """Returns an open container and its video stream.

    Raises:
        StreamBroke: nothing answers within TIMEOUT seconds, or what does has no video; says why.
    """
    try:
        container = _opened(address)
    except STREAM_FAILURES as error:
        raise StreamBroke(_why_not_opened(address, error)) from None
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
        kinds = ", ".join(STREAM_FORMATS)
        return f"it is none of {kinds}; playlists and whatever else names other addresses are not read"
    if is_address(address) and scheme_of(address) == "https" and getattr(error, "errno", 0) == errno.EIO:
        return certificate_problem(address) or reason_of(error)
    return reason_of(error)


def reason_of(error: Exception) -> str:
    """Returns what an error of FFmpeg says, without the address, which may hold a password."""
    if isinstance(error, av.error.ExitError | av.error.TimeoutError):
        return f"nothing came for {TIMEOUT:g} seconds"
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
