import os
import pickle
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import GREY_STEP, frame_numbers, write_grey_video

from nlvideo.data.decoding.opening import open_video
from nlvideo.data.decoding.video import DecodeError
from nlvideo.data.synthetic.motions import Action, render

REAL_CLIPS = Path(__file__).parents[4] / "shared" / "data"


def reference_frames(path, size):
    """Every frame of a file, decoded from first to last, converted whole and resized."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None]
            pixels = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", antialias=True)
            frames.append(pixels[0].permute(1, 2, 0))
    return frames


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("b_frames.mp4", "libx264", {"bf": "3"}),
        ("open_gop.mp4", "libx264", {"x264-params": "open-gop=1:bframes=3:b-pyramid=normal"}),
        ("one_keyframe.mp4", "libx264", {"g": "250"}),
        ("all_keyframes.mkv", "libx264", {"g": "1"}),
        ("mpeg4.avi", "mpeg4", {"bf": "2", "q:v": "2"}),
        ("mpeg4.mp4", "mpeg4", {"bf": "2", "q:v": "2"}),
        ("mpeg2.mpg", "mpeg2video", {"bf": "2", "q:v": "2"}),
        ("vp9.webm", "libvpx-vp9", {}),
    ],
)
def test_every_frame_of_every_kind_is_the_one_asked_for(tmp_path, name, codec, options):
    path = write_grey_video(tmp_path / name, 40, codec=codec, **options)
    expected = reference_frames(path, (48, 64))
    with open_video(path) as video:
        assert (video.num_frames, video.height, video.width) == (40, 48, 64)
        for wanted in ([0], [39], [11, 12, 13], [5, 17, 18, 30], list(range(1, 40, 2)), list(range(40)), [23]):
            frames = video.read(wanted, (48, 64))
            if codec.startswith("lib"):  # the others are too coarse to tell neighbouring levels apart
                assert frame_numbers(frames) == wanted
            assert all(torch.equal(frame, expected[i]) for i, frame in zip(wanted, frames, strict=True))


def test_the_box_is_cut_from_the_resized_frame(tmp_path):
    path = tmp_path / "gradient.mp4"
    ramp = np.broadcast_to(np.linspace(0, 255, 128, dtype=np.uint8)[None, :, None], (96, 128, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.options = 96, 128, "yuv420p", {"crf": "1"}
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(ramp), format="rgb24")))
        container.mux(stream.encode(None))
    with open_video(path) as video:
        whole = video.read([0], (48, 64))
        part = video.read([0], (48, 64), (5, 20, 30, 40))
    assert whole.shape == (1, 48, 64, 3) and part.shape == (1, 30, 40, 3)
    assert torch.equal(part, whole[:, 5:35, 20:60])


def test_what_cannot_be_opened_is_a_decode_error_with_its_reason(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    for name, reason in (
        ("text.mp4", "Invalid data"),
        ("empty.mp4", "Invalid data"),
        ("missing.mp4", "No such file"),
        ("sound.wav", "no video stream"),
    ):
        with pytest.raises(DecodeError, match=reason) as caught, open_video(tmp_path / name):
            pass
        assert caught.value.path == str(tmp_path / name)


def test_damage_is_a_decode_error_and_frames_before_it_still_come(tmp_path):
    path = tmp_path / "damaged.mp4"
    frames = render([Action(0, 0, 40)] * 3, 40, 96, np.random.default_rng(0))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.options = 96, 128, "yuv420p", {"g": "20", "bf": "0"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    whole = reference_frames(path, (96, 128))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        second, size = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.is_keyframe][1]
    data[second + 40 : second + size] = bytes(size - 40)  # inside the second keyframe
    path.write_bytes(data)
    with open_video(path) as video:
        assert torch.equal(video.read([15], (96, 128))[0], whole[15])
        with pytest.raises(DecodeError, match="frame 2[05]"):
            video.read([15, 25], (96, 128))


def test_a_decode_error_survives_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "why")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "why", "a.mp4: why")


def test_grey_levels_tell_the_frames_apart():
    assert frame_numbers(torch.full((1, 4, 4, 3), 7 * GREY_STEP, dtype=torch.uint8)) == [7]


@pytest.mark.skipif(not REAL_CLIPS.exists(), reason="the real clips are not on this machine")
@pytest.mark.parametrize(
    "name", ["bench/test.mp4", "odd/vfr.mp4", "odd/out_of_order_pts.avi", "odd/h265_video.mp4", "odd/no_duration.webm"]
)
def test_real_clips_give_the_frames_of_a_full_decode(name):
    expected = reference_frames(REAL_CLIPS / name, (64, 80))
    with open_video(REAL_CLIPS / name) as video:
        assert video.num_frames == len(expected)
        for wanted in ([len(expected) // 2], list(range(0, len(expected), 7)), [len(expected) - 1]):
            frames = video.read(wanted, (64, 80))
            assert all(torch.equal(frame, expected[i]) for i, frame in zip(wanted, frames, strict=True))


def test_a_title_in_another_encoding_does_no_harm(tmp_path):
    path = tmp_path / "titled.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "XXXXcafe"
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    assert data.count(b"XXXXcafe") == 1
    path.write_bytes(data.replace(b"XXXXcafe", b"XXXXcaf\xe9"))
    with open_video(path) as video:
        assert video.read([0], (48, 64)).shape == (1, 48, 64, 3)


def test_transport_streams_give_every_frame(tmp_path):
    path = write_grey_video(tmp_path / "b_frames.ts", 40, bf="2")
    with open_video(path) as video:
        for wanted in ([0], [13], [39], [5, 17, 30]):
            assert frame_numbers(video.read(wanted, (48, 64))) == wanted


def test_a_cut_avi_is_noticed(tmp_path):
    path = write_grey_video(tmp_path / "cut.avi", 60, height=96, width=128, codec="mpeg4", **{"q:v": "2"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DecodeError, match=r"the file ends after \d+ of 60 frames"), open_video(path):
        pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_pipe_is_no_video(tmp_path, decoder):
    """Opening one would wait for somebody who writes into it."""
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(DecodeError, match="it is neither a file nor a folder"):
        open_video(tmp_path / "pipe.mp4", decoder)
