"""Stores on loopback: S3 as moto serves it, and a web server that fails when it is told to."""

import hashlib
import http.client
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

BUCKET = "videos"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
ENVIRONMENT |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}  # a proxy would answer 403
STALL_SECONDS = 4.0  # that a server is silent; clients of the tests wait for less
Plan = Callable[[int, str, str], str | None]  # of the number of a request, its method and path: what goes wrong


class FaultyServer(ThreadingHTTPServer):
    """Serves a folder, or what another server has, and does to each request what the plan says.

    A plan answers None for a request that works, a status such as "500", "drop" (no answer), "stall" (half of it, then
    silence), "cut" (half of it), "short" (half of it as if it were whole), "wrong" (other bytes of the same length),
    "long" (twice of it), "empty" (it has a length of 0), "unsaid" (half of it, without a length) or "drip" (a byte each
    0.05 s).
    """

    daemon_threads = True
    at = ("127.0.0.1", 0)

    def __init__(self, folder: Path | None = None, upstream: str = "", plan: Plan = lambda *_: None, md5: bool = False):
        super().__init__(self.at, _Handler)
        self.folder, self.upstream, self.plan, self.md5 = folder, upstream, plan, md5
        self.lock, self.number = threading.Lock(), 0
        self.gets: Counter[str] = Counter()  # whole answers to GET, by path
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "FaultyServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        pass  # clients leave in the middle


class _Handler(BaseHTTPRequestHandler):
    protocol_version, server = "HTTP/1.1", None
    timeout = 20

    def do_GET(self) -> None:
        server: FaultyServer = self.server
        with server.lock:
            server.number += 1
            fault = server.plan(server.number, self.command, unquote(urlsplit(self.path).path))
        if fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, headers, body = self._answer() if fault is None or not fault.isdecimal() else (int(fault), {}, b"")
        if fault == "301":  # as of a folder, whose page it has
            headers["Location"] = f"{self.path}/"
        if fault == "wrong":
            body = bytes(byte ^ 1 for byte in body)
        if fault == "short":
            body = body[: len(body) // 2]
            headers["Content-Length"] = str(len(body))
        if fault == "long":
            body *= 2
        if fault == "empty":
            headers["Content-Length"] = "0"
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if fault != "unsaid" or name != "Content-Length":
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "drip":
            for byte in body[:100]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
        if fault in ("stall", "cut", "unsaid"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            time.sleep(STALL_SECONDS if fault == "stall" else 0)
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(body)
        with server.lock:
            server.gets[unquote(self.path)] += status == 200

    do_HEAD = do_GET

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        if self.server.upstream:
            upstream = http.client.HTTPConnection(urlsplit(self.server.upstream).netloc)
            upstream.request(self.command, self.path, headers=dict(self.headers))
            answer = upstream.getresponse()
            body = answer.read()
            upstream.close()
            dropped = ("transfer-encoding", "connection", "date", "server")
            return answer.status, {k: v for k, v in answer.headers.items() if k.lower() not in dropped}, body
        if self.path.endswith("/"):
            return 200, {"Content-Type": "text/html"}, b"<html>the files of a folder</html>"
        file = self.server.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if not file.is_file():
            return 404, {}, b""
        body = file.read_bytes()
        digest = hashlib.md5(body)
        headers = {"ETag": f'"{digest.hexdigest()}"'}
        if self.server.md5:
            import base64

            headers["Content-MD5"] = base64.b64encode(digest.digest()).decode()
        return 200, headers, body

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Yields the endpoint of an S3 server whose BUCKET holds the files of a folder; sets no environment."""
    pytest.importorskip("s3fs", reason="needs s3fs")
    boto3 = pytest.importorskip("boto3", reason="needs moto")
    server = pytest.importorskip("moto.server", reason="needs moto[server]").ThreadedMotoServer("127.0.0.1", 0, False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
        before = {key: os.environ.get(key) for key in ("NO_PROXY", "no_proxy")}
        os.environ.update(NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
        try:
            client = boto3.client("s3", endpoint_url=endpoint, **keys)
            client.create_bucket(Bucket=BUCKET)
            for file in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
                client.put_object(Bucket=BUCKET, Key=f"set/{file.relative_to(folder)}", Body=file.read_bytes())
            client.close()
        finally:
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.update({key: value})
        yield endpoint
    finally:
        server.stop()
