"""How long a stream's frames take to become a line of nlvideo-predict, and what memory that takes.

    python tools/benchmark_stream.py CHECKPOINT [--minutes 1] [--speed 1] [KEY=VALUE ...]

The tool sends a video of its own by UDP over loopback: 340x256, 25 frames a second times --speed, H.264 in MPEG-TS
without B-frames. nlvideo-predict runs beside it with the keys given. The latency is the time from when a frame, the
last of a window, was sent to when the window's line was read; lines of the first two seconds, in which FFmpeg looks at
the stream, are left out. Memory is the anonymous one of the process, without libraries: after a tenth of the time, and
the most after it.
Linux only.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np

FPS, HEIGHT, WIDTH, SECONDS = 25, 256, 340, 20
ENCODING = {"preset": "ultrafast", "tune": "zerolatency", "crf": "28", "g": "25", "threads": "1"}
SETTLED = 2.0  # seconds of the stream
MEMORY_EVERY = 0.2  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--minutes", type=float, default=1, help="of the stream (default 1)")
    parser.add_argument("--speed", type=float, default=1, help="times real time (default 1)")
    arguments, keys = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        video = Path(scratch) / "video.ts"
        write_video(video)
        port = free_port()
        words = ["-m", "nlvideo.prediction.command", f"udp://127.0.0.1:{port}", f"checkpoint={arguments.checkpoint}"]
        with started([sys.executable, *words, "sliding=true", "reconnect_seconds=0", *keys]) as process:
            wait_for_port(port, process)
            sent: list[float] = []
            memory: list[int] = []
            over = threading.Event()
            threading.Thread(target=watch_memory, args=(process.pid, memory, over), daemon=True).start()
            count = round(60 * arguments.minutes * FPS)
            sender = threading.Thread(target=send, args=(video, port, FPS * arguments.speed, count, sent), daemon=True)
            sender.start()
            answers = [(time.monotonic(), json.loads(line)) for line in process.stdout or ()]
            over.set()
    show(answers, sent, memory)


@contextmanager
def started(words: list[str]) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def write_video(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8 + FPS * SECONDS, 3), np.uint8)
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=FPS, options=ENCODING)
        stream.width, stream.height, stream.pix_fmt = WIDTH // 8 * 8, HEIGHT, "yuv420p"
        for i in range(FPS * SECONDS):
            pixels = noise[:, i : i + WIDTH // 8].repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels))))
        container.mux(stream.encode(None))


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for_port(port: int, process: subprocess.Popen) -> None:
    """Waits until somebody listens, so that the first frame sent is the first of the stream."""
    while f":{port:04X} " not in Path("/proc/net/udp").read_text():
        if process.poll() is not None:
            sys.exit("nlvideo-predict ended; run it without this tool to see why")
        time.sleep(0.05)


def send(video: Path, port: int, fps: float, count: int, sent: list[float]) -> None:
    """Sends `count` packets, one for each frame, and notes when."""
    with av.open(str(video)) as source:
        packets = [(bytes(p), p.pts, p.is_keyframe) for p in source.demux(video=0) if p.size]
        base = source.streams.video[0].time_base
        start = time.monotonic()
        with av.open(f"udp://127.0.0.1:{port}?pkt_size=1316", "w", format="mpegts") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for number in range(count):
                data, _, is_key = packets[number % len(packets)]
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe = stream, base, is_key
                packet.pts = packet.dts = round(number / FPS / base) + packets[0][1]
                time.sleep(max(0.0, start + number / fps - time.monotonic()))
                sent.append(time.monotonic())
                target.mux(packet)


def watch_memory(pid: int, memory: list[int], over: threading.Event) -> None:
    """Notes the anonymous memory of a process in bytes, until it ends."""
    while not over.wait(MEMORY_EVERY):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            return
        if text:  # a process that is ending says nothing
            memory.append(1024 * int(text.split("\nAnonymous:")[1].split()[0]))


def show(answers: list[tuple[float, dict]], sent: list[float], memory: list[int]) -> None:
    settled = [(read, answer) for read, answer in answers if answer["end"] > SETTLED]
    if not settled:
        sys.exit(f"{len(answers)} lines, none of them after {SETTLED:g} s of the stream: give more --minutes")
    late = [read - sent[round(answer["end"] * FPS)] for read, answer in settled]  # the first frame has time 0
    inside = [answer["latency"] for _, answer in settled]
    print(f"{len(answers)} lines, {len(sent)} frames sent, {sum(a['dropped_frames'] for _, a in answers)} dropped")
    for name, values in (("from sent to line", late), ("from decoded to line", inside)):
        median, high = 1000 * np.quantile(values, [0.5, 0.95])
        print(f"{name:<21} median {median:.0f} ms, 95 % below {high:.0f} ms")
    tenth = len(memory) // 10
    first, most = memory[tenth] / 2**20, max(memory[tenth:]) / 2**20
    print(f"memory after a tenth  {first:.0f} MB, at most after it {most:.0f} MB")


if __name__ == "__main__":
    main()
