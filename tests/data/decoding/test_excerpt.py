import numpy as np
import pytest
import torch
from conftest import composed, frame_numbers, write_grey_video
from runs import TINY

from nlvideo.build.data import train_clips, video_views
from nlvideo.config.schema import DataConfig
from nlvideo.data.clips.view_sampling import CLIP_SAMPLINGS
from nlvideo.data.decoding.excerpt import frames_at_rate, frames_within
from nlvideo.data.decoding.opening import open_video
from nlvideo.data.decoding.video import DecodeError
from nlvideo.data.lists.path_list import read_table


@pytest.mark.parametrize(
    ("num_frames", "fps", "clip_fps", "expected"),
    [
        (10, 30, 15, [0, 2, 4, 6, 8]),
        (10, 30, 10, [0, 3, 6, 9]),
        (9, 30, 10, [0, 3, 6]),
        (6, 25, 25, [0, 1, 2, 3, 4, 5]),
        (5, 10, 15, [0, 0, 1, 2, 2, 3, 4, 4]),  # at 0, 0.067, 0.133, 0.2 ... s
        (3, 10, 20, [0, 0, 1, 1, 2, 2]),
        (10, 25, 15, [0, 1, 3, 5, 6, 8]),
        (10, 30000 / 1001, 15, [0, 1, 3, 5, 7, 9]),  # frame 2 is shown from 0.06673 s on, just after 1 / 15
        (1, 30, 15, [0]),
        (2, 60, 1, [0]),
    ],
)
def test_frames_by_time(num_frames, fps, clip_fps, expected):
    assert frames_at_rate(num_frames, fps, clip_fps).tolist() == expected


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 1, (0, 25)),
        (0.04, 0.08, (1, 2)),
        (0.05, 0.09, (2, 3)),
        (0.05, 0.06, (1, 2)),  # no frame begins there; frame 1 is shown
        (3.5, 9, (88, 100)),
        (3.99, 9, (99, 100)),
        (0.1 + 0.2, 0.52, (8, 13)),
    ],
)
def test_parts_in_seconds(start, end, expected):
    assert frames_within(100, 25.0, start, end) == expected


def test_a_part_at_another_rate_is_read_as_a_video(tmp_path):
    path = write_grey_video(tmp_path / "a.mp4", 50)  # 25 frames a second
    with open_video(path, part=(0.4, 1.2), clip_fps=10.0) as video:
        assert (video.num_frames, video.fps) == (8, 10.0)
        assert frame_numbers(video.read(range(8), (48, 64))) == [10, 12, 15, 17, 20, 22, 25, 27]
        assert frame_numbers(video.read([2, 7], (48, 64))) == [15, 27]
    with open_video(path, clip_fps=50.0) as video:
        assert frame_numbers(video.read(range(3, 40), (48, 64))) == [i // 2 for i in range(3, 40)]
        assert video.read([3, 4, 5], (60, 80), (3, 5, 30, 40)).shape == (3, 30, 40, 3)
    with pytest.raises(DecodeError, match=r"the part from 2.5 s on begins past its end at 2.00 s"):
        open_video(path, part=(2.5, 3))


@pytest.fixture
def mixed(tmp_path):
    """The same second and a half at 10 and at 40 frames a second; grey level i is 1 / 40 s."""
    import av

    for name, step, rate in (("slow", 4, 10), ("fast", 1, 40)):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=rate)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            stream.options = {"crf": "1", "threads": "1"}
            for i in range(0, 60, step):
                pixels = np.full((48, 64, 3), 3 * i, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
    (tmp_path / "list.csv").write_text("slow.mp4 0\nfast.mp4 0\n")
    return tmp_path


def data_of(folder, **changes) -> DataConfig:
    config = composed(*TINY, f"data.root={folder}", "data.num_frames=5", "data.frame_stride=1").data
    config.num_workers, config.clip_fps = 0, 10.0
    for key, value in changes.items():
        setattr(config.test, key, value)
    return config


def test_training_clips_have_one_duration(mixed):
    table = read_table(str(mixed), "list.csv", None)
    clips = train_clips(data_of(mixed), table, torch.zeros(2, dtype=torch.bool), seed=0)
    for epoch in range(3):
        for video in (0, 1):
            numbers = frame_numbers(clips[epoch, video].frames)
            assert np.diff(numbers).tolist() == [4] * 4, "frames are 1 / 10 s apart"


@pytest.mark.parametrize("sampling", CLIP_SAMPLINGS)
def test_every_test_sampling_takes_the_same_moments_at_any_rate(mixed, sampling):
    table = read_table(str(mixed), "list.csv", None)
    slow, fast = video_views(data_of(mixed, clip_sampling=sampling, num_crops=1), table, [0, 1])
    numbers = [frame_numbers(views.frames[views.frame_index.flatten()]) for views in (slow, fast)]
    assert numbers[0] == numbers[1]
