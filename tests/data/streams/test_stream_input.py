"""Addresses of streams: what is printed of them, and which nothing can be at."""

import pytest

from nlvideo.data.streams.stream_input import problem_of_address, without_secrets

PRINTED = {
    "rtsp://camera/live": "rtsp://camera/live",
    "udp://0.0.0.0:5000": "udp://0.0.0.0:5000",
    "http://[::1]:80/x/": "http://[::1]:80/x/",
    "-": "-",
    "/dev/video0": "/dev/video0",
    "rtsp://user:SECRET@h:554/x": "rtsp://h:554/x",
    "http://user:SECRET@h": "http://h",
    "rtsp://user:SEC@RET@h/x": "rtsp://h/x",
    "rtsp://user:SEC/RET@h/x": "rtsp://...@h/x",
    "rtsp://user:SEC?RET@h/x": "rtsp://...?...",
    "rtsp://user:SEC#RET@h/x": "rtsp://...?...",
    "http://h/s?token=SECRET": "http://h/s?...",
    "http://h?auth=user:SECRET@x": "http://h?...",
    "http://h/s#SECRET": "http://h/s?...",
    "rtsp://h/a/user=admin&password=SECRET/b": "rtsp://h/a/.../b",
    "rtsp://h/user=admin_password=SECRET_channel=1.sdp?real_stream": "rtsp://h/...?...",
    "http://h/s;token=SECRET": "http://h/...",
    "HTTPS://user:SECRET@h:443/x": "HTTPS://h:443/x",
    "rtmp://user:SECRET@h/x": "rtmp://h/x",
}


@pytest.mark.parametrize("address", PRINTED)
def test_what_is_printed_of_an_address(address):
    assert without_secrets(address) == PRINTED[address]


@pytest.mark.parametrize(
    "address", ["http://h:99999/x", "http://h:0", "http://[::1/x", "https://h:abc/x", "rtsp://a:b:c"]
)
def test_what_is_no_host_and_port(address):
    assert "is not HOST, HOST:PORT or USER:PASSWORD@HOST:PORT" in problem_of_address(address)


def test_what_an_address_must_name():
    assert problem_of_address("rtsp://") == problem_of_address("http://user:a@:80/x") == "it names no host"
    assert problem_of_address("udp://127.0.0.1") == problem_of_address("udp://") == "it names no port"
    for address in (
        *("-", "/dev/video0", "rtsp://h", "RTSP://user:b@h:554/x?y", "http://[::1]:80/x:y", "https://h/x"),
        *("udp://:5000", "udp://@239.0.0.1:5000?fifo_size=9", "udp://h?localport=5000", "udp://[ff02::1%eth0]:5"),
    ):
        assert problem_of_address(address) is None
