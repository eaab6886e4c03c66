"""Streams on loopback: a file's packets by UDP, and its bytes by HTTP(S) without an end, with cuts."""

import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer, ThreadingTCPServer
from typing import TypeVar

import av
import numpy as np

Server = TypeVar("Server", bound=TCPServer)


def write_stream(path: Path, num_frames: int = 60, fps: int = 25, audio_only: bool = False) -> Path:
    """Writes MPEG-TS whose frames are noise that moves, each a few kB."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 16 + num_frames, 3), np.uint8)
    with av.open(str(path), "w", format="mpegts") as container:
        if audio_only:
            stream = container.add_stream("mp2", rate=32000)
            for i in range(num_frames):
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 1152 * 2), np.int16), format="s16", layout="stereo")
                sound.sample_rate, sound.pts = 32000, 1152 * i
                container.mux(stream.encode(sound))
        else:
            stream = container.add_stream("libx264", rate=fps, options={"tune": "zerolatency", "g": "5"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for i in range(num_frames):
                pixels = np.kron(noise[:, i : i + 16], np.ones((4, 4, 1), np.uint8))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels))))
        container.mux(stream.encode(None))
    return path


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def sent_by_udp(path: Path, port: int, fps: float, rounds: int = 1) -> Iterator[None]:
    """Sends a file's packets, `fps` a second, as often as `rounds` says, once somebody listens (on Linux)."""
    stop, ports = threading.Event(), Path("/proc/net/udp")

    def send() -> None:
        while ports.exists() and f":{port:04X} " not in ports.read_text() and not stop.wait(0.01):
            pass
        start, sent = time.monotonic(), 0
        with av.open(f"udp://127.0.0.1:{port}?pkt_size=1316", "w", format="mpegts") as target:
            for number in range(rounds):
                with av.open(str(path)) as source:
                    stream = source.streams.video[0]
                    out = target.add_stream_from_template(stream) if not number else out  # noqa: F821
                    for packet in source.demux(stream):
                        if packet.size == 0:
                            continue
                        if stop.wait(max(0.0, start + sent / fps - time.monotonic())):
                            return
                        span = int(stream.duration + stream.average_rate.denominator * 90000 / 25)
                        packet.stream = out
                        packet.pts, packet.dts = packet.pts + number * span, packet.dts + number * span
                        target.mux(packet)
                        sent += 1

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)


class LiveServer(ThreadingHTTPServer):
    """Sends the same bytes to whoever asks for /live, in pieces, without saying how many; /file says it.

    Attributes:
        cut_after: pieces after which the connection is cut; None: after the last.
        num_asked: connections that were made.
    """

    daemon_threads = True

    def __init__(self, content: bytes, piece: int = 1880, pause: float = 0.005, port: int = 0):
        self.content, self.piece, self.pause = content, piece, pause
        self.cut_after: int | None = None
        self.num_asked = 0
        self.location = ""
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def port(self) -> int:
        return self.server_address[1]

    def handle_error(self, *_) -> None:
        pass  # clients leave as they like


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self.server.num_asked += 1
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", self.server.location)
            return self.end_headers()
        if self.path == "/silent":
            time.sleep(3)
            return None
        if self.path not in ("/live", "/file"):
            return self.send_error(404)
        self.send_response(200)
        content = self.server.content
        if self.path == "/file":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for number, first in enumerate(range(0, len(content), self.server.piece)):
            if number == self.server.cut_after:
                return None
            self.wfile.write(content[first : first + self.server.piece])
            time.sleep(self.server.pause)
        return None


@contextmanager
def serving(server: Server, certificate: tuple[Path, Path] | None = None) -> Iterator[Server]:
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class DeafServer(ThreadingTCPServer):
    """Says the same to whatever it is sent, and closes the connection; None: says nothing for three seconds."""

    daemon_threads = True

    def __init__(self, answer: bytes | None):
        self.answer = answer
        super().__init__(("127.0.0.1", 0), _DeafHandler)


class _DeafHandler(StreamRequestHandler):
    server: DeafServer

    def handle(self) -> None:
        if self.server.answer is None:
            time.sleep(3)
        else:
            self.request.recv(1000)
            self.request.sendall(self.server.answer)


class RtspServer(ThreadingTCPServer):
    """Plays a file's video to whoever asks, by RTP over UDP from FFmpeg's muxer; TCP it refuses."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, path: Path, fps: float):
        self.path, self.fps, self.asked = path, fps, []
        super().__init__(("127.0.0.1", 0), _RtspHandler)

    @property
    def port(self) -> int:
        return self.server_address[1]

    def handle_error(self, *_) -> None:
        pass

    def play(self, port: int, stop: threading.Event) -> None:
        start = time.monotonic()
        with av.open(str(self.path)) as source, av.open(f"rtp://127.0.0.1:{port}", "w", format="rtp") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
                if stop.wait(max(0.0, start + number / self.fps - time.monotonic())):
                    return
                packet.stream = stream
                target.mux(packet)


class _RtspHandler(StreamRequestHandler):
    server: RtspServer
    SDP = (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
        "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track0\r\n"
    )

    def handle(self) -> None:
        stop, port = threading.Event(), 0
        while request := self._request():
            method, text = request.split()[0], request.lower()
            self.server.asked.append(method)
            status, head, body = "200 OK", "Session: 1\r\n", ""
            if method == "DESCRIBE":
                body = self.SDP
                head = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            elif method == "SETUP" and "tcp" in text:
                status = "461 Unsupported transport"
            elif method == "SETUP":
                port = int(re.search(r"client_port=(\d+)", text)[1])
                head += f"Transport: RTP/AVP;unicast;client_port={port}-{port + 1};server_port=5100-5101\r\n"
            elif method == "PLAY":
                threading.Thread(target=self.server.play, args=(port, stop), daemon=True).start()
            number = re.search(r"cseq: *(\d+)", text)[1]
            self.wfile.write(f"RTSP/1.0 {status}\r\nCSeq: {number}\r\n{head}\r\n{body}".encode())
        stop.set()

    def _request(self) -> str:
        lines = []
        while (line := self.rfile.readline()).strip():
            lines.append(line.decode())
        return "".join(lines)


def make_certificates(folder: Path) -> None:
    """Writes ca.pem, and server.pem and server.key that it has signed for 127.0.0.1."""

    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=folder)

    new = ["req", "-newkey", "rsa:2048", "-nodes"]
    openssl(*new, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-days", 2, "-subj", "/CN=ca")
    openssl(*new, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", 2]
    openssl("x509", "-req", "-in", "server.csr", "-out", "server.pem", *signed)
