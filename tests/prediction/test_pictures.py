import numpy as np
from conftest import write_grey_video

from nlvideo.data.decoding.opening import open_video
from nlvideo.prediction.pictures import LabelBox, chosen_classes, clock, write_labelled


def test_times_are_printed_to_a_tenth_of_a_second():
    assert [clock(t) for t in (7.46, 59.99, 3723)] == ["0:07.5", "1:00.0", "1:02:03.0"]


def test_plotted_classes_are_in_temporal_order():
    scores = np.array([[0.2, 0.8], [0.7, 0.3], [0.9, 0.1]], np.float32)
    assert chosen_classes(scores, np.array([0, 1, 2, 3])) == [1, 0]


def test_the_labelled_video_differs_from_its_source_in_the_box_only(halves, tmp_path):
    labels = [[("jumping", 0.9), ("running", 0.1)], [("running far away", 0.8), ("jumping", 0.2)]]
    made = tmp_path / "made.mp4"
    with open_video(halves) as source:
        write_labelled(made, source, labels, np.array([0, 24]), lambda count: None)
        pixels = source.read(range(48), (48, 64)).numpy().astype(int)
    with open_video(made) as video:
        assert (video.num_frames, video.fps, video.height, video.width) == (48, 25, 48, 64)
        found = video.read(range(48), (48, 64)).numpy().astype(int)
    high, wide = LabelBox(labels, 48, 64).draw(labels[0]).shape[:2]
    change = abs(found - pixels)
    assert wide == 64 and high < 24  # the long name takes the full width
    assert change[:, :high, :wide].mean() > 30 and change[:, high + 4 :].mean() < 3
    assert abs(found[0] - found[23])[:high].mean() < 8  # the first label stays until the middle, where it changes
    assert abs((found[23] > 100).astype(int) - (found[24] > 100))[:high].mean() > 0.05


def test_odd_sizes_are_rounded_down_to_even_ones(tmp_path):
    write_grey_video(tmp_path / "odd.mkv", 3, 33, 51, "ffv1", pix_fmt="yuv444p")
    with open_video(tmp_path / "odd.mkv") as source:
        write_labelled(tmp_path / "even.mp4", source, [[("a", 1.0)]], np.array([0]), lambda count: None)
    with open_video(tmp_path / "even.mp4") as video:
        assert (video.num_frames, video.height, video.width) == (3, 32, 50)
