"""Whole files in which packets, times and frames are not the same thing. Frames are those of a plain decode."""

import itertools
import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from videos import facts_of, plain_decode, remux, write_video

from nlvideo.data.decoding import decoded_index, pyav_video
from nlvideo.data.decoding.opening import open_video
from nlvideo.data.decoding.orientation import UPRIGHT, Orientation, orientation
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.decoding.video import Crop, DecodeError, Region
from nlvideo.data.synthetic.motions import Action, render


@pytest.fixture(scope="module")
def moving():
    return render([Action(0, 0, 40)] * 3, 40, 96, np.random.default_rng(0))  # (40, 96, 128, 3)


def check(path, count, timed=None):
    """Compares a file with a plain decode: whole, and in parts that are each read alone, also with what an index knows
    of it."""
    expected = plain_decode(path)
    assert len(expected) == count
    parts = (range(count), range(0, count, 7), [count - 1], [count // 2], [0], range(count // 3, count, 5))
    for wanted, facts, distance in itertools.product(parts, (None, facts_of(path)), (1, pyav_video.SEEK_FRAMES)):
        with pytest.MonkeyPatch.context() as patch, PyavVideo(path, facts=facts) as video:
            patch.setattr(pyav_video, "SEEK_FRAMES", distance)
            assert video.num_frames == count
            assert timed is None or video.timed == timed
            for i, frame in zip(wanted, video.read(list(wanted), (video.height, video.width)).numpy(), strict=True):
                assert np.array_equal(frame, expected[i]), f"frame {i}"


X265 = "bframes=3:keyint=10:scenecut=0:log-level=none"


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx265", {"x265-params": X265}),
        ("libx265", {"x265-params": f"open-gop=1:{X265}"}),
        ("libx264", {"x264-params": "open-gop=1:bframes=3:keyint=10:scenecut=0"}),
    ],
)
def test_clips_cut_from_a_video_without_encoding_it_anew(tmp_path, moving, codec, options):
    source = write_video(tmp_path / "source.mp4", moving, codec, **options)

    def earlier(packet, _number):
        packet.pts -= 7 * packet.duration
        packet.dts -= 7 * packet.duration

    path = remux(source, tmp_path / "cut.mp4", earlier, options={"avoid_negative_ts": "disabled"})
    check(path, 33, timed=True)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_stream_that_starts_without_its_keyframe(tmp_path, moving, suffix):
    source = write_video(tmp_path / "source.mp4", moving, bf="2", g="12")
    path = remux(source, tmp_path / f"cut.{suffix}", lambda _packet, number: number >= 5)
    check(path, 28, timed=False)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_broadcast_that_is_recorded_from_the_middle_on(tmp_path, moving, codec):
    source = write_video(tmp_path / "source.ts", moving, codec, bf="2", g="12")
    data = source.read_bytes()
    path = tmp_path / "cut.ts"
    path.write_bytes(data[len(data) // 188 // 4 * 188 :])
    check(path, len(plain_decode(path)), timed=False)


@pytest.mark.parametrize("shift", [-25, 2**33 // 3600 - 20])
def test_transport_streams_from_before_time_zero_and_over_the_end_of_the_clock(tmp_path, moving, shift):
    source = write_video(tmp_path / "source.ts", moving, bf="2", g="12")

    def later(packet, _number):  # the writer takes the lower 33 bits
        packet.pts += shift * 3600
        packet.dts += shift * 3600

    path = remux(source, tmp_path / "shifted.ts", later, options={"avoid_negative_ts": "disabled"})
    check(path, 40, timed=False)


@pytest.mark.parametrize("suffix", ["mp4", "flv"])
def test_times_in_the_order_of_storage_are_no_order(tmp_path, moving, suffix):
    source = write_video(tmp_path / "source.mp4", moving, bf="2", g="12")

    def stored(packet, _number):
        packet.pts = packet.dts

    path = remux(source, tmp_path / f"stored.{suffix}", stored)
    check(path, len(plain_decode(path)), timed=False)


def test_frames_that_are_not_shown_are_no_frames(tmp_path, moving):
    """As VP8's alternate references: bit 4 of a packet says whether its frame is shown."""
    source, path = write_video(tmp_path / "source.webm", moving, "libvpx", g="12"), tmp_path / "hidden.webm"
    with av.open(str(source)) as before, av.open(str(path), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for number, packet in enumerate(p for p in before.demux(video=0) if p.size):
            data = bytearray(bytes(packet))
            data[0] &= ~16 if number in (5, 20) else 255
            changed = av.Packet(bytes(data))
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.is_keyframe, changed.stream = packet.is_keyframe, stream
            after.mux(changed)
    check(path, 38, timed=False)


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libsvtav1"])
def test_packets_of_newer_codecs_are_frames(tmp_path, moving, codec):
    options = {"auto-alt-ref": "1", "lag-in-frames": "16"} if codec == "libvpx-vp9" else {"preset": "12"}
    try:
        path = write_video(tmp_path / "a.webm", moving, codec, **options)
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this FFmpeg has no {codec}")
    check(path, 40, timed=True)
    if hasattr(os, "sched_getscheduler"):
        assert os.sched_getscheduler(0) == os.SCHED_OTHER  # see in_own_thread


def test_frames_that_avi_leaves_out_are_no_damage(tmp_path, moving):
    times = [i + i // 3 for i in range(40)]
    path = write_video(tmp_path / "a.avi", moving, "mpeg4", times=times)
    check(path, 40, timed=False)


def test_mpeg4_with_b_frames_in_avi_is_counted_without_decoding(tmp_path, moving, monkeypatch):
    path = write_video(tmp_path / "a.avi", moving, "mpeg4", bf="2", g="12")
    monkeypatch.setattr(decoded_index, "index_of_frames", None)
    check(path, 40, timed=False)


@pytest.mark.parametrize(
    ("suffix", "codec"), [("h264", "libx264"), ("m2v", "mpeg2video"), ("mxf", "mpeg2video"), ("gif", "gif")]
)
def test_streams_that_cannot_seek(tmp_path, moving, suffix, codec):
    pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
    path = write_video(tmp_path / f"a.{suffix}", moving, codec, pix_fmt)
    check(path, 40)


def test_keyframes_that_are_none_are_not_believed(tmp_path, moving):
    source = write_video(tmp_path / "source.mp4", moving, bf="2", g="12")

    def marked(packet, _number):
        packet.is_keyframe = True

    check(remux(source, tmp_path / "marked.mkv", marked), 40, timed=True)


def test_the_header_does_not_decide_the_rate(tmp_path, moving):
    path = tmp_path / "slow.mkv"
    write_video(path, moving, times=[2 * i for i in range(40)])  # 12.5 frames a second, written as 25
    with open_video(path) as video:
        assert video.fps == pytest.approx(12.5, rel=0.01)


def two_streams(path, first, second, default=None, cover=False):
    """Writes a file with two video streams; `default` has FFmpeg's default flag."""
    with av.open(str(path), "w") as container:
        streams = []
        for frames in (first, second):
            stream = container.add_stream("libx264" if len(frames) > 1 else "mjpeg", rate=25)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuv420p" if len(frames) > 1 else "yuvj420p"
            streams.append(stream)
        if default is not None:
            for i, stream in enumerate(streams):
                stream.disposition = av.stream.Disposition.default if i == default else 0
        if cover:
            streams[0].disposition = av.stream.Disposition.attached_pic
        for stream, frames in zip(streams, (first, second), strict=True):
            for pixels in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
    return path


def test_the_stream_that_moves_is_the_video(tmp_path, moving):
    still = np.full((240, 320, 3), 200, np.uint8)
    path = two_streams(tmp_path / "still.mkv", [still], moving, default=0)
    with open_video(path) as video:
        assert (video.num_frames, video.height, video.width) == (40, 96, 128)
        assert video.read([20], (96, 128)).float().std() > 10


def test_the_stream_that_is_marked_is_the_video(tmp_path, moving):
    small = [np.ascontiguousarray(frame[:48, :64]) for frame in moving]
    path = two_streams(tmp_path / "two.mkv", small, moving, default=1)
    with open_video(path) as video:
        assert (video.height, video.width) == (96, 128)


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_sizes_that_change_are_each_resized(tmp_path, moving, suffix):
    """Two streams one behind the other, the second of half the size, as players of a call record them."""
    small = [np.ascontiguousarray(frame[::2, ::2]) for frame in moving]
    codec = "libvpx" if suffix == "webm" else "libx264"
    parts = [write_video(tmp_path / f"{i}.{suffix}", frames, codec) for i, frames in enumerate((moving, small))]
    path = tmp_path / "both.webm"
    if suffix == "mp4":
        path = tmp_path / "both.ts"
    with av.open(str(path), "w") as after:
        stream, end = None, 0
        for part in parts:
            with av.open(str(part)) as before:
                stream = stream or after.add_stream_from_template(before.streams.video[0])
                bsf = None
                if suffix == "mp4":
                    bsf = av.bitstream.BitStreamFilterContext("h264_mp4toannexb", before.streams.video[0])
                for packet in before.demux(video=0):
                    for out in bsf.filter(packet if packet.size else None) if bsf else [packet]:
                        if out.size:
                            out.pts, out.dts = out.pts + end, out.dts + end
                            out.stream = stream
                            after.mux(out)
                end += int(Fraction(40, 25) / before.streams.video[0].time_base)
    with open_video(path) as video:
        assert (video.num_frames, video.height, video.width) == (80, 96, 128)
        frames = video.read([5, 45], (48, 64)).float()
        crop = video.read([45], (48, 64), (10, 20, 30, 40)).float()
    assert (frames[0] - frames[1]).abs().mean() < 12  # the same picture, once resized from twice the size
    assert (crop[0] - frames[1, 10:40, 20:60]).abs().max() <= 1
    clips = [
        (np.arange(30, 50, 2), Crop((60, 80), 8, 9, 32, 40)),
        (np.arange(36, 56, 2), Region((96, 128), 6, 8, 50, 60, (32, 40))),
    ]
    with open_video(path) as video:
        together, alone = video.read_clips(clips), [video.read_clip(*clip) for clip in clips]
    assert torch.equal(torch.stack(together), torch.stack(alone))


@pytest.mark.parametrize("name", ["12:30.mp4", "50%d %s.mp4", 'it\'s "a" name.mp4', "a\nb.mp4", "x" * 200 + ".mp4"])
def test_any_name_is_a_file(tmp_path, moving, name):
    path = write_video(tmp_path / "a.mp4", moving[:5])
    os.rename(path, tmp_path / name)
    with open_video(tmp_path / name) as video:
        assert video.num_frames == 5


def test_names_need_not_be_utf8(tmp_path, moving):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    os.rename(write_video(tmp_path / "a.mp4", moving[:5]), name)
    with open_video(name) as video:
        assert video.num_frames == 5


def test_a_name_is_no_address(tmp_path):
    with pytest.raises(DecodeError, match="No such file"), open_video("concat:a.mp4|b.mp4"):
        pass


@pytest.mark.parametrize(
    "wanted", [Orientation(*flags) for flags in itertools.product([False, True], repeat=3)], ids=str
)
def test_each_matrix_turns_pixels_to_where_it_says(wanted):
    pixels = np.arange(12).reshape(3, 4)
    out = wanted.apply(pixels)
    # Pixel (column, row) = (1, 0) and (0, 1) as seen from (0, 0), in the picture that comes out.
    place = {value: np.argwhere(out == value)[0] for value in (pixels[0, 0], pixels[0, 1], pixels[1, 0])}
    b, a = place[pixels[0, 1]] - place[pixels[0, 0]]
    d, c = place[pixels[1, 0]] - place[pixels[0, 0]]
    numbers = [a * 65536, b * 65536, 0, c * 65536, d * 65536, 0, 0, 0, 1 << 30]
    assert orientation(struct.pack("=9i", *map(int, numbers))) == wanted
    assert wanted.size(3, 4) == out.shape


def test_other_angles_are_left_alone():
    assert orientation(struct.pack("=9i", 46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30)) == UPRIGHT
    assert orientation(bytes(36)) == UPRIGHT


def test_mirrored_videos_are_mirrored(tmp_path, moving):
    stored = write_video(tmp_path / "plain.mp4", moving)
    path = tmp_path / "mirrored.mp4"
    data = stored.read_bytes()
    identity = struct.pack(">3i", 65536, 0, 0)
    place = data.index(identity, data.index(b"tkhd"))
    path.write_bytes(data[:place] + struct.pack(">3i", -65536, 0, 0) + data[place + 12 :])
    with open_video(stored) as before, open_video(path) as after:
        assert np.array_equal(before.read([3], (96, 128)).numpy()[:, :, ::-1], after.read([3], (96, 128)).numpy())


def test_an_index_by_decoding_is_made_once(tmp_path, moving, monkeypatch):
    path, made = write_video(tmp_path / "a.ts", moving), []
    real = decoded_index.index_of_frames
    monkeypatch.setattr(decoded_index, "index_of_frames", lambda frames: made.append(1) or real(frames))
    for _ in range(3):
        with PyavVideo(path) as video:
            assert video.num_frames == 40
    assert len(made) == 1
    write_video(path, moving[:20])
    with PyavVideo(path) as video:
        assert video.num_frames == 20


def test_keyframes_of_codecs_that_are_not_known_are_not_believed(tmp_path, moving):
    """As phones write them: H.263 in 3GP whose every packet is marked as a keyframe."""
    source = write_video(tmp_path / "source.3gp", moving, "h263")

    def marked(packet, _number):
        packet.is_keyframe = True

    check(remux(source, tmp_path / "marked.3gp", marked), 40, timed=False)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_sound_beside_a_video_changes_nothing(tmp_path, moving, suffix):
    source, path = write_video(tmp_path / "source.mp4", moving, bf="2", g="12"), tmp_path / f"sound.{suffix}"
    with av.open(str(source)) as before, av.open(str(path), "w") as after:
        video, sound = after.add_stream_from_template(before.streams.video[0]), after.add_stream("pcm_s16le", rate=8000)
        for packet in (packet for packet in before.demux(video=0) if packet.size):
            noise = av.AudioFrame.from_ndarray(np.full((1, 320), 99, np.int16), format="s16", layout="mono")
            noise.rate = 8000
            after.mux(sound.encode(noise))
            packet.stream = video
            after.mux(packet)
        after.mux(sound.encode(None))
    check(path, 40)
    with PyavVideo(path) as video:
        (sound,) = video._container.streams.audio
        if hasattr(sound, "discard"):  # from PyAV 18 on
            assert sound.discard == av.stream.Discard.all
