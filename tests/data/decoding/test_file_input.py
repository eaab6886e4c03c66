"""What a video's bytes or name lead to is never opened: no address, and no other file."""

import io
import tarfile
import tempfile

import numpy as np
import pytest
import torch
from conftest import write_grey_video
from PIL import Image
from stream_servers import LiveServer, serving

from nlvideo.data.decoding import file_input
from nlvideo.data.decoding.file_input import NAMING_FORMATS, _readable_formats
from nlvideo.data.decoding.opening import open_video
from nlvideo.data.decoding.sources import open_source
from nlvideo.data.decoding.video import DecodeError


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_grey_video(path, 8)
    return path


@pytest.fixture
def server(video):
    with serving(LiveServer(video.read_bytes(), piece=1 << 20)) as started:
        yield started


class Named(io.BytesIO):
    """A file in memory with a name, which FFmpeg is told."""

    def __init__(self, content, name):
        super().__init__(content)
        self.name = name


def given_as(content, name, folder):
    """Yields a file in every way that a video may be given: by path, in a tar file, and in memory."""
    path, tar = folder / name, folder / "shard.tar"
    path.write_bytes(content)
    with tarfile.open(tar, "w") as written:
        written.add(path, name)
    yield path
    yield tar / name
    yield content
    yield Named(content, name)
    yield Named(content, str(path))


def playlists(place):
    """Returns (name, content) of files that name the video at a place."""
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{place}\n#EXT-X-ENDLIST\n"
    sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    sdp += "a=rtpmap:96 H264/90000\n"
    return [
        ("list.m3u8", hls.encode()),
        ("list.mp4", hls.encode()),
        ("list.mp4", f"ffconcat version 1.0\nfile '{place}'\n".encode()),
        ("list.mp4", sdp.encode()),
    ]


@pytest.mark.parametrize("any_format", [False, True])
def test_no_address_that_a_file_names_is_asked(server, tmp_path, monkeypatch, any_format):
    """Not even by a format that is not known to name addresses."""
    if any_format:
        monkeypatch.setattr(file_input, "_readable_formats", lambda: _readable_formats() | NAMING_FORMATS)
    for name, content in playlists(f"http://127.0.0.1:{server.port}/segment.ts"):
        for given in given_as(content, name, tmp_path):
            with pytest.raises(DecodeError):
                open_source(given)
    assert server.num_asked == 0


def test_no_file_that_a_file_names_is_read(video, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside.mp4").write_bytes(video.read_bytes())
    for place in ("beside.mp4", video, f"file:{video}"):
        for name, content in playlists(place):
            for given in given_as(content, name, tmp_path):
                with pytest.raises(DecodeError) as caught:
                    open_source(given)
                if b"EXTM3U" not in content:  # which FFmpeg does not take for a playlist under another name
                    assert "playlists and whatever else names other files are not read" in caught.value.reason


def test_a_name_is_no_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        Image.new("RGB", (16, 16), (i * 50, 0, 0)).save(tmp_path / f"{i}.png")
    content = (tmp_path / "2.png").read_bytes()
    (tmp_path / "%d.png").write_bytes(content)
    for given in (tmp_path / "%d.png", tmp_path / "2.png", content, Named(content, str(tmp_path / "2.png"))):
        with open_source(given) as opened:
            assert opened.num_frames == 1
            assert opened.read(np.arange(1), (16, 16))[0, 0, 0].tolist() == [100, 0, 0]
    with pytest.raises(DecodeError):  # FFmpeg would read 0.png to 2.png instead of what is given
        open_source(Named(content, str(tmp_path / "%d.png")))


def test_formats_are_left_out_by_their_names():
    """A name that FFmpeg spells otherwise would let the format in."""
    assert {"mov", "matroska", "avi", "mpegts", "mpeg", "image2", "gif", "asf"} <= _readable_formats()
    assert not NAMING_FORMATS & _readable_formats()
    assert {"hls", "concat", "sdp", "rtp", "rtsp"} <= NAMING_FORMATS


@pytest.mark.parametrize("mode", ["rb", "r+b", "a+b", "w+b"])
def test_a_file_is_read_in_whatever_mode_it_was_opened(video, tmp_path, mode):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"" if mode == "w+b" else video.read_bytes())
    with path.open(mode) as file:
        if mode == "w+b":
            file.write(video.read_bytes())
        with open_source(file) as opened, open_video(video) as wanted:
            assert torch.equal(opened.read(np.arange(8), (16, 16)), wanted.read(np.arange(8), (16, 16)))
    assert path.read_bytes() == video.read_bytes()


def test_a_spooled_file_is_read(video):
    with tempfile.SpooledTemporaryFile() as file:
        file.write(video.read_bytes())
        with open_source(file) as opened:
            assert opened.num_frames == 8
