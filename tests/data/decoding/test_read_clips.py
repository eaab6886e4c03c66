"""Several clips of one video, whose frames are decoded once for all: each is what it is by itself."""

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from videos import write_video

from nlvideo.data.decoding.opening import DECODERS, open_video
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.decoding.video import Crop, Region
from nlvideo.data.synthetic.motions import Action, render


@pytest.fixture(scope="module")
def moving():
    return render([Action(0, 0, 40)] * 3, 40, 96, np.random.default_rng(0))  # (40, 96, 128, 3)


def clips_of(video, rng):
    """Clips that overlap, one that is far, one that loops and repeats frames; crops and regions, small and large."""
    h, w, n = video.height, video.width, video.num_frames
    small = Crop((h + 8, w + 10), 20, 30, 16, 24)
    large = Crop((h // 2 + 7, w // 2 + 9), 1, 2, h // 2, w // 2)
    starts = [int(rng.integers(n)) for _ in range(4)]
    wanted = [np.arange(12) + 3, np.arange(9, 25, 2), np.array([n - 1]), (n - 4 + 3 * np.arange(6)) % n]
    wanted += [np.sort(np.array(starts)), np.array([5, 5, 7])]
    region = Region((h, w), 5, 7, 31, 22, (40, 44))
    crops = [small, large, region, Region((h, w), 0, 0, h, w, (24, 24)), Crop((h, w), 2, 4, 32, 40), small]
    return list(zip(wanted, crops, strict=True))


def check(path, decoder="pyav", **options):
    with open_video(path, decoder, **options) as video:
        clips = clips_of(video, np.random.default_rng(1))
        alone = [video.read_clip(*clip) for clip in clips]
        for some in (clips, clips[:2], clips[3:], clips[::-1]):
            for clip, frames in zip(some, video.read_clips(some), strict=True):
                expected = alone[next(i for i, c in enumerate(clips) if c is clip)]
                assert frames.shape == (len(clip[0]), *clip[1].output, 3) and torch.equal(frames, expected)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options"),
    [
        ("a.mp4", "libx264", "yuv420p", {"bf": "2", "g": "12"}),
        ("444.mp4", "libx264", "yuv444p", {}),
        ("10bit.mp4", "libx264", "yuv420p10le", {}),
        ("mpeg4.avi", "mpeg4", "yuv420p", {"bf": "2", "g": "250"}),
        ("turned.mov", "libx264", "yuv420p", {"rotation": 90}),
    ],
)
def test_clips_read_together_are_those_read_alone(tmp_path, moving, name, codec, pix_fmt, options):
    check(write_video(tmp_path / name, moving, codec, pix_fmt, **options))


@pytest.mark.parametrize("decoder", DECODERS)
def test_by_every_decoder(tmp_path, moving, decoder):
    if importlib.util.find_spec(DECODERS[decoder][1]) is None:
        pytest.skip(f"{decoder} is not installed")
    check(write_video(tmp_path / "a.mp4", moving), decoder)


def test_of_odd_sizes(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (30, 97, 129, 3), dtype=np.uint8)
    check(write_video(tmp_path / "odd.mp4", frames, pix_fmt="yuv444p"))


def test_of_parts_and_other_rates(tmp_path, moving):
    path = write_video(tmp_path / "a.mp4", moving)  # 25 frames a second
    check(path, part=(0.2, 1.3))
    check(path, clip_fps=50.0)
    check(path, clip_fps=18.0)


def test_of_folders_of_pictures(tmp_path, moving):
    for i, frame in enumerate(moving):
        Image.fromarray(frame).save(tmp_path / f"img_{i}.png")
    check(tmp_path)


def test_each_frame_is_decoded_once(tmp_path, moving, monkeypatch):
    read, asked = PyavVideo.frames, []

    def noted(video, indices):
        asked.append(indices.tolist())
        return read(video, indices)

    monkeypatch.setattr(PyavVideo, "frames", noted)
    crops = [Crop(size, 9, 9, 32, 32) for size in ((48, 64), (60, 80))]
    with open_video(write_video(tmp_path / "a.mp4", moving)) as video:
        video.read_clips([(np.arange(4, 20, 2), crops[0]), (np.arange(8, 24, 2), crops[1])])
        assert asked == [list(range(4, 24, 2))]
        video.read_clips([(np.arange(4, 8), crops[0])])
        assert asked[1:] == [[4, 5, 6, 7]]
