"""nlvideo-predict of streams on loopback: answers, drops, cuts, signals, and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import stream_servers
from in_process import run_main
from stream_servers import DeafServer, LiveServer, RtspServer, free_port, sent_by_udp, serving, write_stream

from nlvideo.data.streams import stream_input, stream_reader
from nlvideo.data.streams.rolling_frames import StreamFrame
from nlvideo.prediction import stream_command
from nlvideo.prediction.command import main, take_paths
from nlvideo.prediction.predictor import Predictor

WINDOW = 8


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return write_stream(tmp_path_factory.mktemp("recording") / "recording.ts")


@pytest.fixture
def command(checkpoint, monkeypatch, capsys):
    """Runs nlvideo-predict in this process on a stream; returns (answers, stderr, exit code)."""

    def call(*arguments):
        given = (*arguments, f"checkpoint={checkpoint}", "sliding=true", "num_threads=1")
        done = run_main(main, *given, name="nlvideo-predict", monkeypatch=monkeypatch, capsys=capsys)
        return [json.loads(line) for line in done.stdout.splitlines()], done.stderr, done.returncode

    return call


@pytest.fixture
def quick(monkeypatch):
    """Waits that are too long for tests."""
    monkeypatch.setattr(stream_input, "TIMEOUT", 0.5)
    monkeypatch.setattr(stream_reader, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(stream_input, "ANALYSIS", 100_000)


def scores_of(answer):
    return {guess["class"]: guess["score"] for guess in answer["predictions"]}


def test_answers_are_those_of_the_file(command, predictor, recording):
    timeline = predictor.slide(recording, every_seconds=1 / 25)
    with serving(LiveServer(recording.read_bytes(), pause=0.04)) as server:  # a slow machine keeps up with it
        answers, error, code = command(f"http://127.0.0.1:{server.port}/file", "every_seconds=0.04", "top=3")
    assert code == 0 and f"{len(answers)} answers from 60 frames, 0 reconnects" in error
    assert len(answers) > 5
    for answer in answers:
        start = round(answer["start"] * 25)
        assert answer["end"] - answer["start"] == pytest.approx((WINDOW - 1) / 25, abs=0.002)
        for name, score in scores_of(answer).items():
            assert score == pytest.approx(timeline.scores[start, predictor.classes.index(name)], abs=1e-5)
    assert answers[-1]["end"] == pytest.approx(59 / 25, abs=0.002)
    assert answers[0].keys() >= {"video", "clock", "latency", "dropped_frames", "damaged", "reconnects"}


def test_rtsp(command, recording, quick):
    """Against a server of these tests alone; see the documents."""
    with serving(RtspServer(recording, fps=25)) as server:
        answers, error, code = command(f"rtsp://me:secret@127.0.0.1:{server.port}/x", "reconnect_seconds=0")
    assert code == 1 and "no frames for 0 seconds" in error and "secret" not in error
    assert server.asked[:5] == ["OPTIONS", "DESCRIBE", "SETUP", "SETUP", "PLAY"]
    assert len(answers) > 3 and {answer["video"] for answer in answers} == {f"rtsp://127.0.0.1:{server.port}/x"}


def test_udp_in_real_time(command, recording, quick):
    port = free_port(stream_servers.socket.SOCK_DGRAM)
    with sent_by_udp(recording, port, fps=25, rounds=2):
        answers, error, code = command(f"udp://127.0.0.1:{port}", "reconnect_seconds=0")
    assert code == 1 and "nothing came for 0.5 seconds; no frames for 0 seconds" in error
    assert len(answers) > 10
    ends = [answer["end"] for answer in answers]
    assert ends == sorted(ends) and ends[-1] > 3
    assert sorted(answer["latency"] for answer in answers)[len(answers) // 2] < 0.5


def test_a_slow_network_drops_frames_and_says_how_many(command, recording, monkeypatch):
    score = Predictor.window_scores

    def slow(self, views):
        time.sleep(0.15)
        return score(self, views)

    monkeypatch.setattr(Predictor, "window_scores", slow)
    with serving(LiveServer(recording.read_bytes(), pause=0.03)) as server:
        answers, _, code = command(f"http://127.0.0.1:{server.port}/file")
    assert code == 0 and len(answers) >= 3
    frames = [(round(a["start"] * 25), round(a["end"] * 25)) for a in answers]
    gaps = [start - end - 1 for (_, end), (start, _) in zip(frames, frames[1:], strict=False)]
    assert [a["dropped_frames"] for a in answers[1:]] == [max(gap, 0) for gap in gaps]
    assert sum(max(gap, 0) for gap in gaps) > 0


@pytest.mark.parametrize(
    ("last", "first", "newest", "every", "dropped"),
    [
        (None, 3, 10, 4, 3),
        (10, 7, 14, 4, 0),  # overlapping, as asked for
        (10, 11, 18, 4, 0),  # late, and nothing missing
        (10, 15, 22, 4, 4),
        (10, 23, 30, 20, 0),  # a gap that is asked for
        (10, 26, 33, 20, 3),
        (10, 23, 30, 0.8, 0),
        (10, 26, 33, 0.8, 3),
    ],
)
def test_dropped_frames(last, first, newest, every, dropped):
    frame = lambda number: StreamFrame(None, number, number / 25, 0.0)  # noqa: E731
    window = [frame(number) for number in range(first, newest + 1)]
    assert stream_command.dropped_frames(None if last is None else frame(last), window, every) == dropped


def test_a_cut_stream_goes_on_without_mixing_windows(command, recording, quick):
    with serving(LiveServer(recording.read_bytes())) as server:
        server.cut_after = len(server.content) // server.piece // 2

        def restore():
            while server.num_asked < 3:
                time.sleep(0.01)
            server.cut_after = None
            while server.num_asked < 4:
                time.sleep(0.01)
            server.cut_after = 0  # nothing more

        thread = threading.Thread(target=restore, daemon=True)
        thread.start()
        answers, error, code = command(
            f"http://127.0.0.1:{server.port}/live", "reconnect_seconds=0.7", "every_seconds=0.04"
        )
        thread.join(5)
    assert code == 1 and "; trying again" in error and "no frames for 0.7 seconds" in error
    counts = [answer["reconnects"] for answer in answers]
    assert counts == sorted(counts) and counts[-1] >= 2
    assert all(a["end"] - a["start"] == pytest.approx((WINDOW - 1) / 25, abs=0.002) for a in answers)


def test_a_server_that_goes_away_and_comes_back(command, recording, quick):
    port, content = free_port(), recording.read_bytes()

    def live():
        for _ in range(2):
            with serving(LiveServer(content, port=port)) as server:
                while server.num_asked < 1:
                    time.sleep(0.01)
                time.sleep(0.4)
            time.sleep(0.3)

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    time.sleep(0.1)
    answers, error, code = command(f"http://127.0.0.1:{port}/live", "reconnect_seconds=1.5")
    thread.join(5)
    assert code == 1 and "Connection refused; no frames for 1.5 seconds" in error
    assert answers[-1]["reconnects"] >= 1


def test_a_scheme_in_capitals(command, recording):
    with serving(LiveServer(recording.read_bytes())) as server:
        answers, error, code = command(f"HTTP://127.0.0.1:{server.port}/file?token=secret")
    assert (answers, code) == ([], 1) and "404" in error and "secret" not in error  # it has been asked


def test_a_stream_shorter_than_a_window_is_one_line(command, tmp_path):
    short = write_stream(tmp_path / "short.ts", num_frames=WINDOW - 1)
    with serving(LiveServer(short.read_bytes())) as server:
        answers, error, code = command(f"http://127.0.0.1:{server.port}/file")
    assert (answers, code) == ([], 1)
    assert error.splitlines()[-1].endswith("/file: it ended after 7 frames, before a window of 8 was full.")


def test_the_standard_input(checkpoint, recording):
    with recording.open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "nlvideo.prediction.command", "-", f"checkpoint={checkpoint}", "sliding=true"],
            stdin=file, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers[-1]["video"] == "-" and answers[-1]["end"] == pytest.approx(59 / 25, abs=0.002)


def seconds_to_end(checkpoint, content, number):
    """Sends a signal to the program while its stream, a pipe, says nothing more: its read cannot be woken."""
    read, write = os.pipe()
    words = [sys.executable, "-m", "nlvideo.prediction.command", "-", f"checkpoint={checkpoint}", "sliding=true"]
    process = subprocess.Popen(words, stdin=read, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.close(read)
    try:
        os.write(write, content)
        line = process.stdout.readline()
        assert json.loads(line)["predictions"]
        start = time.monotonic()
        process.send_signal(number)
        out, error = process.communicate(timeout=300)
        seconds = time.monotonic() - start
    finally:
        process.kill()
        os.close(write)
    assert process.returncode == 128 + number and "Traceback" not in error
    for line in out.splitlines():
        json.loads(line)
    return seconds


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_within_a_second(checkpoint, recording, number):
    """The best of three tries counts, as a busy machine delays any of them. See also test_immediate_stop.py."""
    content = recording.read_bytes()[:60000]
    assert any(seconds_to_end(checkpoint, content, number) < 1 for _ in range(3))


@pytest.mark.parametrize(
    ("path", "reason"),
    [("silent", "nothing came for 0.5 seconds"), ("nothing", "Server returned 404 Not Found")],
)
def test_an_address_that_gives_nothing_is_one_line(command, recording, quick, path, reason):
    with serving(LiveServer(recording.read_bytes())) as server:
        answers, error, code = command(f"http://me:secret@127.0.0.1:{server.port}/{path}")
        assert (answers, code) == ([], 1)
        assert error.splitlines()[-1] == f"error: http://127.0.0.1:{server.port}/{path}: {reason}."
        assert "secret" not in error and "Traceback" not in error


@pytest.mark.parametrize("scheme", ["http", "https", "rtsp"])
def test_a_port_where_nobody_listens(command, scheme):
    answers, error, code = command(f"{scheme}://127.0.0.1:{free_port()}/x")
    assert (answers, code) == ([], 1) and error.splitlines()[-1].endswith("/x: Connection refused.")


@pytest.mark.parametrize("answer", [None, b"", b"SSH-2.0-OpenSSH\r\n"])
@pytest.mark.parametrize("scheme", ["rtsp", "https"])
def test_what_is_no_server_of_streams(scheme, answer, monkeypatch):
    monkeypatch.setattr(stream_input, "TIMEOUT", 0.3)
    with serving(DeafServer(answer)) as server, pytest.raises(stream_input.StreamBroke) as caught:
        stream_input.open_stream(f"{scheme}://127.0.0.1:{server.server_address[1]}/x")
    broke = {"rtsp": "it broke off before it said what it holds, or is no RTSP server"}.get(scheme, "")
    assert caught.value.reason == "nothing came for 0.3 seconds" if answer is None else broke in caught.value.reason
    assert "none of" not in caught.value.reason


def test_udp_that_nobody_sends(command, quick):
    answers, error, code = command(f"udp://127.0.0.1:{free_port(stream_servers.socket.SOCK_DGRAM)}")
    assert (answers, code) == ([], 1) and "nothing came for 0.5 seconds." in error


def test_a_stream_without_video(command, tmp_path, quick):
    sound = write_stream(tmp_path / "sound.ts", audio_only=True)
    with serving(LiveServer(sound.read_bytes())) as server:
        answers, error, code = command(f"http://127.0.0.1:{server.port}/file")
    assert (answers, code) == ([], 1) and "/file: it holds no video (audio)." in error


def test_what_a_playlist_names_is_not_opened(command, recording, quick):
    with serving(LiveServer(recording.read_bytes())) as target:
        inside = f"http://127.0.0.1:{target.port}/file"
        playlists = (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{inside}\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile {inside}\n",
            "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        )
        for playlist in playlists:
            with serving(LiveServer(playlist.encode())) as server:
                answers, error, code = command(f"http://127.0.0.1:{server.port}/file")
            assert (answers, code) == ([], 1) and "playlists and whatever else names other addresses" in error
        assert target.num_asked == 0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")
    stream_servers.make_certificates(folder)
    return folder


def test_certificates_are_verified(command, recording, certificates, monkeypatch, quick):
    pair = certificates / "server.pem", certificates / "server.key"
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with serving(LiveServer(recording.read_bytes()), pair) as server:
        place = f"127.0.0.1:{server.port}"
        answers, error, code = command(f"https://{place}/file")
        assert (answers, code) == ([], 1) and server.num_asked == 0
        assert f"https://{place}/file: its certificate is refused: unable to get local issuer certificate" in error
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
        answers, _, code = command(f"https://{place}/file")
        assert code == 0 and answers
        answers, error, code = command(f"https://localhost:{server.port}/file")  # which it is not made out for
        assert (answers, code) == ([], 1) and "certificate is refused: Hostname mismatch" in error


def test_https_does_not_become_http(command, recording, certificates, monkeypatch, quick):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    pair = certificates / "server.pem", certificates / "server.key"
    with serving(LiveServer(recording.read_bytes())) as plain, serving(LiveServer(b""), pair) as server:
        server.location = f"http://127.0.0.1:{plain.port}/file"
        answers, _, code = command(f"https://127.0.0.1:{server.port}/elsewhere")
        assert (answers, code) == ([], 1) and (server.num_asked, plain.num_asked) == (1, 0)


def test_what_makes_no_sense_is_one_line(checkpoint, monkeypatch, capsys, recording):
    def refused(*arguments):
        given = (*arguments, f"checkpoint={checkpoint}")
        done = run_main(main, *given, name="nlvideo-predict", monkeypatch=monkeypatch, capsys=capsys)
        assert done.returncode == 1 and not done.stdout
        return done.stderr.splitlines()[-1]

    address = "rtsp://user:secret@camera/live"
    line = refused(address)
    assert line.startswith("error: rtsp://camera/live is a stream, which has no end: give sliding=true")
    assert "is a stream, which is read alone; 2 videos" in refused(address, recording, "sliding=true")
    assert "write=x.mp4 has no effect with a stream" in refused("-", "sliding=true", "write=x.mp4")
    assert "timeline=x.png has no effect with a stream" in refused("-", "sliding=true", "timeline=x.png")
    assert "reconnect_seconds=-1.0: must be at least 0" in refused("-", "sliding=true", "reconnect_seconds=-1")
    assert "reconnect_seconds has no effect without a stream" in refused(recording, "reconnect_seconds=5")
    assert "copy s3://bucket/a.mp4 first" in refused("s3://bucket/a.mp4", "sliding=true")
    assert "copy rtmp://camera/live?... first" in refused("rtmp://user:secret@camera/live?key=secret", "sliding=true")
    assert refused("http://h:99999/x?y", "sliding=true").startswith("error: http://h:99999/x?...: what follows ://")
    assert refused("/dev/null", "sliding=true") == "error: /dev/null: it is no camera."


def test_addresses_are_paths_and_not_keys():
    argv = ["nlvideo-predict", "udp://127.0.0.1:1?fifo_size=9", "-", "top=2", "checkpoint=s3://a/b", "--help"]
    assert take_paths(argv) == ["udp://127.0.0.1:1?fifo_size=9", "-"]
    assert argv == ["nlvideo-predict", "top=2", "checkpoint=s3://a/b", "--help"]


def test_lost_packets_are_counted(command, recording, quick):
    content = recording.read_bytes()
    packets = [content[i : i + 188] for i in range(0, len(content), 188)]
    kept = packets[: len(packets) // 2] + [p for i, p in enumerate(packets[len(packets) // 2 :]) if i % 40]
    content = b"".join(kept)
    with serving(LiveServer(content)) as server:
        answers, _, code = command(f"http://127.0.0.1:{server.port}/file")
    assert code == 0 and sum(answer["damaged"] for answer in answers) > 0
