"""Files as real collections hold them: turned, in other colours, of uneven rates, damaged."""

import importlib.util
import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter
from conftest import frame_numbers, write_grey_video
from PIL import Image
from videos import facts_of, plain_decode, remux, write_video

from nlvideo.data.decoding.frame_folder import FrameFolder
from nlvideo.data.decoding.opening import DECODERS, open_video
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.decoding.video import DecodeError, Region, SlowVideo
from nlvideo.data.synthetic.motions import Action, render

REAL = Path(__file__).parents[4] / "shared" / "data"


def full_decode(path):
    """Every frame of a file, first to last, converted whole and turned upright."""
    swscale, frames = VideoReformatter(), []
    with av.open(str(path), metadata_errors="ignore") as container:
        for frame in container.decode(video=0):
            rgb = swscale.reformat(frame, format="rgb24", src_color_range=frame.color_range, threads=1).to_ndarray()
            frames.append(np.rot90(rgb, round(frame.rotation / 90)))
    return frames


def check_against_full_decode(path):
    expected = full_decode(path)
    n, size = len(expected), expected[0].shape[:2]
    for facts in (None, facts_of(path)):
        with PyavVideo(path, facts=facts) as video:
            assert n == video.num_frames and size == (video.height, video.width)
            for wanted in (range(n), range(0, n, 7), [n - 1], [n // 2], range(n // 3, min(n, n // 3 + 20), 2)):
                for i, frame in zip(wanted, video.read(list(wanted), size).numpy(), strict=True):
                    assert np.array_equal(frame, expected[i]), f"frame {i}"


@pytest.fixture(scope="module")
def moving():
    return render([Action(0, 0, 40)] * 3, 40, 96, np.random.default_rng(0))  # (40, 96, 128, 3)


@pytest.mark.parametrize("rotation", [90, -90, 180])
@pytest.mark.parametrize("suffix", [".mov", ".mp4"])
def test_frames_are_turned_upright(tmp_path, moving, rotation, suffix):
    path = write_video(tmp_path / f"turned{suffix}", moving, rotation=rotation)
    check_against_full_decode(path)
    with open_video(path) as video:
        assert (video.height, video.width) == ((96, 128) if rotation == 180 else (128, 96))
        whole = video.read([5], (video.height, video.width))
        part = video.read([5], (video.height, video.width), (10, 20, 24, 30))
    assert torch.equal(part, whole[:, 10:34, 20:50])
    upright = torch.from_numpy(np.rot90(moving[5], round(rotation / 90)).copy())
    assert (whole[0].float() - upright.float()).abs().mean() < 12  # the codec's loss; not turned it is 40 and more


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options"),
    [
        ("444.mp4", "libx264", "yuv444p", {}),
        ("422.mp4", "libx264", "yuv422p", {}),
        ("10bit.mp4", "libx264", "yuv420p10le", {}),
        ("full_range.mp4", "libx264", "yuvj420p", {}),
        ("hevc.mp4", "libx265", "yuv420p", {"x265-params": "bframes=3:keyint=12:log-level=none"}),
        ("short_gops.mp4", "libx264", "yuv420p", {"g": "2", "bf": "3"}),
        ("one_keyframe.mkv", "libx264", "yuv420p", {"g": "250", "bf": "3"}),
        ("mpeg4.avi", "mpeg4", "yuv420p", {"bf": "2", "g": "250"}),
    ],
)
def test_every_kind_of_file_gives_the_frames_of_a_full_decode(tmp_path, moving, name, codec, pix_fmt, options):
    check_against_full_decode(write_video(tmp_path / name, moving, codec, pix_fmt, **options))


@pytest.mark.parametrize("size", [(97, 129), (96, 129), (97, 128)])
def test_odd_sizes(tmp_path, size):
    frames = np.random.default_rng(0).integers(0, 256, (6, *size, 3), dtype=np.uint8)
    path = write_video(tmp_path / "odd.mp4", frames, pix_fmt="yuv444p")
    check_against_full_decode(path)
    with open_video(path) as video:
        whole = video.read([2], size)
        assert torch.equal(video.read([2], size, (31, 41, 50, 60)), whole[:, 31:81, 41:101])


def test_variable_frame_rate_and_a_start_that_is_not_zero(tmp_path, moving):
    times = np.cumsum([50, *np.random.default_rng(0).integers(1, 9, len(moving) - 1)]).tolist()
    check_against_full_decode(write_video(tmp_path / "vfr.mkv", moving, times=times, bf="2", g="8"))
    check_against_full_decode(write_video(tmp_path / "vfr.mp4", moving, times=times, bf="2", g="8"))


def test_frames_that_an_edit_list_cuts_off_are_no_frames(tmp_path, moving):
    source = write_video(tmp_path / "whole.mp4", moving, bf="0", g="10")
    cut = tmp_path / "cut.mp4"
    with av.open(str(source)) as before, av.open(str(cut), "w", options={"avoid_negative_ts": "disabled"}) as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            if packet.size:
                packet.pts -= 5 * packet.duration
                packet.dts -= 5 * packet.duration
                packet.stream = stream
                after.mux(packet)
    check_against_full_decode(cut)
    with open_video(cut) as video:
        assert video.num_frames == 35


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_frames_that_need_others_from_before_the_file_are_no_frames(tmp_path, moving, codec, suffix):
    settings = "open-gop=1:bframes=3:keyint=10:scenecut=0" + ("" if codec == "libx264" else ":log-level=none")
    source = write_video(tmp_path / "source.mkv", moving, codec, **{f"{codec[3:]}-params": settings})
    path, keyframes = tmp_path / f"cut{suffix}", 0
    with av.open(str(source)) as before, av.open(str(path), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            keyframes += packet.is_keyframe
            if packet.size and keyframes >= 2:  # the first group is left out
                packet.stream = stream
                after.mux(packet)
    check_against_full_decode(path)
    with open_video(path) as video:
        assert video.num_frames == 30


def test_an_edit_list_that_ends_early_is_no_damage(tmp_path, moving):
    path = write_video(tmp_path / "trimmed.mp4", moving, bf="2")
    data = bytearray(path.read_bytes())
    duration = data.find(b"elst") + 12  # of the first edit, in the movie's time units
    half = int.from_bytes(data[duration : duration + 4], "big") // 2
    data[duration : duration + 4] = half.to_bytes(4, "big")
    path.write_bytes(data)
    check_against_full_decode(path)
    with open_video(path) as video:
        assert video.num_frames == 20


def test_a_cut_mp4_with_its_index_in_front_is_noticed(tmp_path, moving):
    source, path = write_video(tmp_path / "whole.mp4", moving), tmp_path / "front.mp4"
    check_against_full_decode(remux(source, path, options={"movflags": "+faststart"}))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    with pytest.raises(DecodeError, match=r"the file ends after \d+ of 40 frames"), open_video(path):
        pass


@pytest.mark.parametrize(("space", "weights"), [("ITU709", (0.2126, 0.7152)), ("ITU601", (0.299, 0.587))])
@pytest.mark.parametrize("box", [None, (8, 8, 32, 32)])
def test_the_colour_matrix_of_the_file_is_used(tmp_path, space, weights, box):
    red, green, blue = 200, 60, 30
    kr, kg = weights
    luma = kr * red + kg * green + (1 - kr - kg) * blue
    planes = (
        16 + luma * 219 / 255,
        128 + (blue - luma) / (kr + kg) * 112 / 255,
        128 + (red - luma) / (1 - kr) * 112 / 255,
    )
    path = tmp_path / "colour.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.options = 96, 96, "yuv420p", {"crf": "1"}
        stream.codec_context.colorspace = {"ITU709": 1, "ITU601": 6}[space]
        frame = av.VideoFrame(96, 96, "yuv420p")
        for plane, value in zip(frame.planes, planes, strict=True):
            plane.update(bytes([round(value)]) * plane.buffer_size)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with open_video(path) as video:
        found = video.read([0], (96, 96), box).float().mean((0, 1, 2))
    assert (found - torch.tensor([red, green, blue])).abs().max() < 4


def test_the_range_of_the_file_is_used(tmp_path):
    for pix_fmt, level in (("yuv420p", 16), ("yuvj420p", 0)):
        frame = av.VideoFrame(64, 64, pix_fmt)
        for plane, value in zip(frame.planes, (level, 128, 128), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        path = tmp_path / f"{pix_fmt}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt, stream.options = 64, 64, pix_fmt, {"crf": "1"}
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        for box in (None, (8, 8, 16, 16)):
            with open_video(path) as video:
                assert video.read([0], (64, 64), box).max() <= 1


@pytest.mark.parametrize("name", ["cut.mkv", "cut.webm"])
def test_a_cut_matroska_file_is_noticed(tmp_path, moving, name):
    path = write_video(tmp_path / name, moving, "libvpx-vp9" if name.endswith("webm") else "libx264")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DecodeError, match=r"the file ends after 0.\d\d of 1.6\d? seconds"), open_video(path):
        pass


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["closed.mp4", "closed.mkv", "vp9.webm"])
def test_every_decoder_gives_the_same_frames(tmp_path, decoder, name):
    if importlib.util.find_spec(DECODERS[decoder][1]) is None:
        pytest.skip(f"{decoder} is not installed")
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = write_grey_video(tmp_path / name, 40, codec=codec, bf="3")
    for wanted in ([0], [39], [11, 12, 13], [5, 17, 18, 30], list(range(1, 40, 2))):
        with open_video(path, decoder) as video:
            assert video.num_frames == 40
            assert frame_numbers(video.read(wanted, (48, 64))) == wanted
            assert video.read(wanted[:1], (60, 80), (3, 5, 30, 40)).shape == (1, 30, 40, 3)
            region = Region((48, 64), 3, 5, 20, 30, (40, 50))
            assert frame_numbers(video.read_clip(np.array([12, 3, 3]), region)) == [12, 3, 3]


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options", "reason"),
    [
        ("a.avi", "mpeg4", "yuv420p", {"bf": "2"}, "its frames have no usable presentation times"),
        ("a.mp4", "mpeg4", "yuv420p", {"bf": "2", "g": "12"}, "mpeg4 with B-frames"),
        ("b.mp4", "libx264", "yuv420p10le", {}, "it has 10 bits a colour"),
        (
            "c.mp4",
            "libx264",
            "yuv420p",
            {"x264-params": "open-gop=1:bframes=3:keyint=12"},
            "in open groups of pictures",
        ),
        ("d.mov", "libx264", "yuv420p", {"rotation": 90}, "its frames are to be turned"),
    ],
)
def test_decord_refuses_what_it_would_get_wrong(tmp_path, moving, name, codec, pix_fmt, options, reason):
    pytest.importorskip("decord")
    path = write_video(tmp_path / name, moving, codec, pix_fmt, **options)
    with pytest.raises(DecodeError, match=f"decord would give wrong frames: .*{reason}"), open_video(path, "decord"):
        pass


def test_a_missing_decoder_is_named_with_its_install_line(monkeypatch, tmp_path):
    monkeypatch.setitem(
        DECODERS, "torchcodec", ("torchcodec_video.TorchcodecVideo", "no_such_package", "pip install x")
    )
    with pytest.raises(ValueError, match=r"data.decoder=torchcodec needs no_such_package \(pip install x\)"):
        open_video(tmp_path / "a.mp4", "torchcodec")
    with pytest.raises(ValueError, match="data.decoder='opencv' is unknown. Choose from: pyav, decord, torchcodec"):
        open_video(tmp_path / "a.mp4", "opencv")


def test_time_over_is_noticed_between_packets(tmp_path):
    path = write_grey_video(tmp_path / "a.mp4", 20)
    with (
        pytest.raises(SlowVideo, match="takes longer than data.time_limit_seconds=1e-06"),
        open_video(path, time_limit=1e-6),
    ):
        pass


def damaged_copies(data, count):
    """Yields copies with bits flipped, an end cut off, or a part overwritten with zeros or noise."""
    rng = np.random.default_rng(0)
    for i in range(count):
        copy = bytearray(data)
        place, length = rng.integers(len(data)), rng.integers(1, 400)
        if i % 4 == 0:
            for _ in range(rng.integers(1, 4)):
                copy[rng.integers(len(data))] ^= 1 << rng.integers(8)
        elif i % 4 == 1:
            del copy[place:]
        elif i % 4 == 2:
            copy[place : place + length] = bytes(len(copy[place : place + length]))
        else:
            part = len(copy[place : place + length])
            copy[place : place + length] = rng.integers(0, 256, part, dtype=np.uint8).tobytes()
        yield bytes(copy)


@pytest.mark.parametrize(
    ("name", "codec", "options", "unseen"),
    [
        # At most so many of 125 copies differ without a word: the damage lies in a frame that no other refers to and
        # that was not wanted, or the decoder itself is not deterministic (VP8).
        ("a.mp4", "libx264", {"bf": "2", "g": "12"}, 2),
        ("b.mkv", "libx264", {"bf": "2", "g": "12"}, 3),
        ("c.avi", "mpeg4", {"bf": "2", "g": "12"}, 0),
        ("d.ts", "libx264", {"g": "12"}, 0),
        ("e.webm", "libvpx", {"g": "12"}, 3),
    ],
)
def test_damaged_files_give_the_frames_of_a_plain_decode_or_an_error(tmp_path, moving, name, codec, options, unseen):
    path = write_video(tmp_path / name, moving, codec, **options)
    outcomes = {"frames": 0, "error": 0, "other": 0}
    bad = tmp_path / f"bad{path.suffix}"
    for data in damaged_copies(path.read_bytes(), 125):
        bad.write_bytes(data)
        try:
            with open_video(bad, time_limit=20) as video:
                indices = list(range(0, video.num_frames, 3))
                frames = video.read(indices, (96, 128)).numpy()
        except DecodeError:
            outcomes["error"] += 1
            continue
        expected = dict(zip(range(0, 1000, 3), plain_decode(bad)[::3], strict=False))
        same = all(np.array_equal(frame, expected.get(i)) for i, frame in zip(indices, frames, strict=True))
        outcomes["frames" if same else "other"] += 1
    assert outcomes["frames"] > 5 and outcomes["error"] > 5 and outcomes["other"] <= unseen, outcomes


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_thousands_of_decodes_do_not_grow_the_process(tmp_path, moving):
    good = write_grey_video(tmp_path / "a.mp4", 40, bf="2")
    other = write_grey_video(tmp_path / "b.mp4", 40, codec="mpeg4", bf="2")
    counted = write_grey_video(tmp_path / "c.ts", 40, bf="2")
    data = bytearray(good.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(data)

    def decode(count):
        for i in range(count):
            try:
                with open_video((good, bad, other, counted)[i % 4]) as video:
                    video.read([3, 9, 17, 30], (60, 80), (5, 7, 40, 40))
            except DecodeError:
                pass

    decode(400)
    before, files = resident_bytes(), len(os.listdir("/proc/self/fd"))
    decode(5000)
    assert resident_bytes() - before < 20e6 and len(os.listdir("/proc/self/fd")) == files


def write_folder(folder, numbers, size=(64, 48), suffix=".jpg"):
    folder.mkdir()
    for i in numbers:
        Image.new("RGB", size, (3 * i,) * 3).save(folder / f"img_{i:05d}{suffix}")
    return folder


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_folder_of_frames_is_a_video(tmp_path, suffix):
    folder = write_folder(tmp_path / "v", range(1, 21), suffix=suffix)
    with open_video(folder) as video:
        assert (video.num_frames, video.height, video.width) == (20, 48, 64)
        assert frame_numbers(video.read([0, 4, 19], (48, 64))) == [1, 5, 20]
        assert video.read([3], (60, 80), (2, 3, 40, 50)).shape == (1, 40, 50, 3)


def test_a_folder_with_gaps_damage_or_other_sizes_is_refused(tmp_path):
    for name, numbers, reason in (
        ("gap", (1, 2, 4), "frame 3 is missing between 1 and 4"),
        ("none", (), "no numbered"),
    ):
        with pytest.raises(DecodeError, match=reason):
            FrameFolder(write_folder(tmp_path / name, numbers))
    folder = write_folder(tmp_path / "v", range(1, 6))
    (folder / "img_00003.jpg").write_bytes((folder / "img_00003.jpg").read_bytes()[:300])
    Image.new("RGB", (10, 10)).save(folder / "img_00004.jpg")
    with FrameFolder(folder) as video:
        assert frame_numbers(video.read([1], (48, 64))) == [2]
        for index, reason in ((2, "img_00003.jpg"), (3, "img_00004.jpg is 10x10, the first frame 64x48")):
            with pytest.raises(DecodeError, match=reason):
                video.read([index], (48, 64))


ODD = {
    "corrupted.mp4": "at frame 28",
    "demo_cut_half.mp4": "Invalid data",
    "zero_bytes.mp4": "Invalid data",
    "text_not_video.mp4": "Invalid data",
    "audio_only.mp3": "no video stream",
}


@pytest.mark.skipif(not REAL.exists(), reason="the real clips are not on this machine")
@pytest.mark.parametrize("name", sorted(p.name for p in (REAL / "odd").glob("*")) if REAL.exists() else [])
def test_odd_files_do_what_their_table_says(name):
    path = REAL / "odd" / name
    if name not in ODD:
        check_against_full_decode(path)
        return
    with pytest.raises(DecodeError, match=ODD[name]), open_video(path) as video:
        assert video.read([0, 28], (48, 64)).shape == (2, 48, 64, 3)  # 28 is whole, and held back at the damage
        video.read([29], (48, 64))
