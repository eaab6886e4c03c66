import pytest

from nlvideo.data.lists.list_warnings import list_warnings, video_source
from nlvideo.data.lists.path_list import read_table


def warnings_of(tmp_path, train, val, classes=("walks", "runs")):
    for name, rows in (("train", train), ("val", val)):
        (tmp_path / f"{name}.csv").write_text("".join(f"{path} {label}\n" for path, label in rows))
    return list_warnings(*(read_table(str(tmp_path), f"{name}.csv", list(classes)) for name in ("train", "val")))


GOOD = [("a.mp4", 0), ("b.mp4", 1)], [("c.mp4", 0), ("d.mp4", 1)]


def test_nothing_is_said_about_good_lists(tmp_path):
    assert warnings_of(tmp_path, *GOOD) == []
    numbered = [(f"train/video {i}.mp4", i % 2) for i in range(6)], [(f"val/video {i}.mp4", i % 2) for i in range(6)]
    assert warnings_of(tmp_path, *numbered) == []


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        ([], [("./a.mp4", 0)], "1 video is in both lists: ./a.mp4"),
        (
            [("v_Archery_g01_c01.avi", 0), ("v_Archery_g02_c01.avi", 0)],
            [("v_Archery_g01_c02.avi", 0), ("v_Archery_g01_c03.avi", 0), ("v_Archery_g03_c01.avi", 0)],
            "judging by names, 2 validation videos come from 1 recording that the training list has clips of too: "
            "v_Archery_g01_c02.avi, v_Archery_g01_c03.avi",
        ),
        (
            [("x/AAAAAAAAAAA_000010_000020.mp4", 0)],
            [("y/AAAAAAAAAAA_000120_000130.mp4", 0)],
            "judging by names, 1 validation video comes from 1 recording that the training list has clips of too: "
            "y/AAAAAAAAAAA_000120_000130.mp4",
        ),
        ([("a.mp4", 1)], [], "1 video has several labels in the training list: a.mp4"),
        ([], [("c.mp4", 1)], "1 video has several labels in the validation list: c.mp4"),
        (
            [(f"x{chr(97 + i)}.mp4", 0) for i in range(10)],
            [],
            "classes are uneven: 11 training videos of walks, 1 of runs",
        ),
    ],
)
def test_each_warning_is_one_line(tmp_path, train, val, expected):
    assert warnings_of(tmp_path, GOOD[0] + train, GOOD[1] + val) == [expected]


def test_classes_without_videos_are_named(tmp_path):
    found = warnings_of(tmp_path, GOOD[0], GOOD[1][:1], ["walks", "runs", "falls", "sits", "jumps", "sleeps"])
    assert found == [
        "4 of 6 classes have no training video: falls, sits, jumps, ...",
        "5 of 6 classes have no validation video: runs, falls, sits, ...",
    ]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("v_HandstandPushups_g01_c04.avi", "v_HandstandPushups_g01_c"),
        ("abseiling/_-aBcDeFgHi_000010_000020.mp4", "_-aBcDeFgHi"),
        ("video12.mp4", None),
        ("12345.webm", None),
        ("walk.mp4", None),
    ],
)
def test_what_a_name_says_about_its_recording(name, source):
    assert video_source(name) == source
