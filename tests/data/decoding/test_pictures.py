"""Folders of pictures of the kinds that cameras and programs write."""

import numpy as np
import pytest
from PIL import Image

from nlvideo.data.decoding.frame_folder import FrameFolder
from nlvideo.data.decoding.video import DecodeError

SIZE = (64, 48)


def frames_of(folder):
    with FrameFolder(folder) as video:
        return video.read(range(video.num_frames), (video.height, video.width)).numpy()


def folder_of(tmp_path, *pictures, suffix=".png", **options):
    for i, picture in enumerate(pictures, 1):
        picture.save(tmp_path / f"img_{i:05d}{suffix}", **options)
    return tmp_path


def test_16_bit_grey_is_scaled_to_8(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
    frames = frames_of(folder_of(tmp_path, Image.fromarray(ramp), Image.fromarray(ramp)))
    assert frames.shape == (2, 48, 64, 3)
    assert np.array_equal(frames[0], np.repeat((ramp >> 8)[..., None], 3, 2))


def test_16_bit_grey_is_as_in_video(tmp_path):
    """FFmpeg's conversion of grey16 is the reference."""
    import av

    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
    video = av.VideoFrame.from_ndarray(ramp, format="gray16le").to_ndarray(format="rgb24")
    assert np.abs(frames_of(folder_of(tmp_path, Image.fromarray(ramp)))[0].astype(int) - video).max() <= 1


@pytest.mark.parametrize("mode", ["P", "CMYK", "RGBA", "LA", "L", "1"])
def test_colours_are_pillows(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    suffix = ".jpg" if mode == "CMYK" else ".png"
    folder = folder_of(tmp_path, picture, suffix=suffix)
    expected = Image.open(folder / f"img_00001{suffix}").convert("RGB")
    assert np.array_equal(frames_of(folder)[0], np.array(expected))


@pytest.mark.parametrize(("orientation", "quarter_turns"), [(3, 2), (6, 3), (8, 1)])
def test_exif_orientations_are_applied(tmp_path, orientation, quarter_turns):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:16, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    frames = frames_of(folder_of(tmp_path, Image.fromarray(pixels), suffix=".jpg", exif=exif, quality=95))
    assert np.abs(frames[0].astype(int) - np.rot90(pixels, quarter_turns)).mean() < 2


def test_the_odd_frame_is_named(tmp_path):
    same = [Image.new("RGB", SIZE, (i, i, i)) for i in range(4)]
    folder = folder_of(tmp_path, *same[:2], Image.new("RGB", (32, 48)), same[3])
    with (
        FrameFolder(folder) as video,
        pytest.raises(DecodeError, match=r"img_00003.png is 32x48, the first frame 64x48"),
    ):
        video.read(range(4), (48, 64))
    Image.new("RGB", SIZE).save(folder / "poster2.png")
    with pytest.raises(DecodeError, match=r"two frames have the number 2: img_00002.png and poster2.png"):
        FrameFolder(folder)
