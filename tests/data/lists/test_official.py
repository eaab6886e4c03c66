"""Kinetics's, ActivityNet's and HACS's lists as they are published, and the files that they mean."""

import json

import pytest

from nlvideo.data.lists.path_list import read_table

KINETICS = (
    "label,youtube_id,time_start,time_end,split,is_cc\n"
    "abseiling,AAAAAAAAAA1,417,427,val,0\n"
    "air drumming,BBBBBBBBBB2,8,18,val,0\n"
    '"massaging person\'s head",-CCCCCCCCC3,1036,1046,val,1\n'
    "yoga,DDDDDDDDDD4,0,10,val,1\n"
)
CLASSES = ("abseiling", "air drumming", "massaging person's head", "yoga")


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def read(folder, text, name="list.csv", classes=None, **options):
    (folder / name).write_text(text if isinstance(text, str) else json.dumps(text))
    return read_table(str(folder), name, classes, videos="videos", **options)


def test_kinetics_files_by_all_their_names(tmp_path):
    files = [
        "abseiling/AAAAAAAAAA1_000417_000427.mp4",
        "air_drumming/BBBBBBBBBB2.webm",
        "massaging_persons_head/-CCCCCCCCC3_001036_001046.mkv",
        "DDDDDDDDDD4.mp4",
    ]
    touch(tmp_path / "videos", *files, "yoga/other.mp4", "DDDDDDDDDD4.txt", "DDDDDDDDDD4.mp4.part")
    table = read(tmp_path, KINETICS)
    assert table.names() == files and table.classes == CLASSES and table.targets.tolist() == [0, 1, 2, 3]
    assert table.parts is None and "missing" not in table.note
    assert table.path(0) == str(tmp_path / "videos/abseiling/AAAAAAAAAA1_000417_000427.mp4")


@pytest.mark.parametrize("split", ["val", "validate"])
def test_kinetics_below_a_folder_of_the_split_and_in_another_order_of_columns(tmp_path, split):
    touch(tmp_path / "videos", f"{split}/air drumming/BBBBBBBBBB2_000008_000018.mp4", "train/yoga/DDDDDDDDDD4.mp4")
    lines = [",".join(row.split(",")[i] for i in (1, 2, 3, 4, 0)) for row in KINETICS.splitlines()]
    table = read(tmp_path, "\n".join(lines), training=False)
    assert table.names() == [f"{split}/air drumming/BBBBBBBBBB2_000008_000018.mp4"] and table.classes == CLASSES


def test_missing_videos_are_left_out_counted_and_named(tmp_path):
    touch(tmp_path / "videos", "yoga/DDDDDDDDDD4.mp4")
    table = read(tmp_path, KINETICS)
    assert table.names() == ["yoga/DDDDDDDDDD4.mp4"] and table.targets.tolist() == [3] and table.classes == CLASSES
    assert table.note.endswith("; missing videos left out: 3 (AAAAAAAAAA1, BBBBBBBBBB2, -CCCCCCCCC3)")
    (tmp_path / "videos/yoga/DDDDDDDDDD4.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"none of its 4 videos exists .*AAAAAAAAAA1_000417_000427\.\*"):
        read(tmp_path, KINETICS)


def test_kinetics_json_and_its_subsets(tmp_path):
    touch(tmp_path / "videos", "yoga/A_000001_000011.mp4", "B.mp4")
    content = {
        "A": {"annotations": {"label": "yoga", "segment": [1.0, 11.0]}, "subset": "train", "duration": 10.0},
        "B": {"annotations": {"label": "abseiling", "segment": [5.0, 15.0]}, "subset": "validate", "duration": 10.0},
    }
    both = read(tmp_path, content, "list.json")
    assert both.names() == ["yoga/A_000001_000011.mp4", "B.mp4"] and both.classes == ("abseiling", "yoga")
    assert read(tmp_path, content, "list.json", training=True).names() == ["yoga/A_000001_000011.mp4"]
    assert read(tmp_path, content, "list.json", classes=both.classes, training=False).names() == ["B.mp4"]
    del content["B"]
    assert len(read(tmp_path, content, "list.json", training=False)) == 1  # a file of one split is read whole


def test_activitynet_and_its_parts(tmp_path):
    touch(tmp_path / "videos", "v_A.mp4", "Long jump/B.mkv")
    content = {
        "version": "1.3",
        "database": {
            "A": {
                "subset": "training",
                "annotations": [
                    {"label": "Long jump", "segment": [3.5, 9]},
                    {"label": "Ballet", "segment": [20.0, 26.5]},
                    {"label": "Ballet", "segment": [7, 7]},
                ],
            },
            "B": {"subset": "validation", "annotations": [{"label": "Long jump", "segment": [0.5, 2]}]},
            "C": {"subset": "training", "annotations": [{"label": "Ballet", "segment": [0.5, 2]}]},
            "D": {"subset": "testing", "annotations": []},
        },
    }
    table = read(tmp_path, content, "list.json", training=True)
    assert table.names() == ["v_A.mp4", "v_A.mp4"] and table.classes == ("Ballet", "Long jump")
    assert [table.part(i) for i in range(2)] == [(3.5, 9.0), (20.0, 26.5)] and table.targets.tolist() == [1, 0]
    assert (
        "segments that do not end after their start left out: 1 (A 7 to 7)" in table.note
        and "left out: 1 (C)" in table.note
    )
    val = read(tmp_path, content, "list.json", classes=table.classes, training=False)
    assert val.names() == ["Long jump/B.mkv"] and val.part(0) == (0.5, 2.0) and val.targets.tolist() == [1]


def test_hacs_clips_without_the_negative_ones(tmp_path):
    touch(tmp_path / "videos", "v_A.mp4", "B.mp4")
    text = (
        "classname,youtube_id,subset,start,end,label\n"
        "Archery,A,training,1.0,3.0,1\nArchery,A,training,8.0,10.0,-1\n"
        "Ballet,B,training,0.0,2.0,1\nBallet,B,validation,4.0,6.0,1\n"
    )
    table = read(tmp_path, text, training=True)
    assert table.names() == ["v_A.mp4", "B.mp4"] and table.classes == ("Archery", "Ballet")
    assert [table.part(i) for i in range(2)] == [(1.0, 3.0), (0.0, 2.0)]
    assert "clips that do not show their class left out: 1" in table.note


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "youtube_id,time_start,time_end,split\nA,1,2,test\n", "l.csv, line 1: .*test lists have no labels"),
        ("l.csv", "label,youtube_id,time_start,time_end,split\nyoga,A,9,2,val\n", "l.csv, line 2: .*end after its st"),
        ("l.csv", "label,youtube_id,time_start,time_end,split\nyoga,A,1,2\n", "l.csv, line 2: 4 columns"),
        ("l.json", "[1]", "l.json is no json list that is known"),
        ("l.json", '{"database": {"A": {"annotations": [{"label": "x"}]}}}', "l.json, A: .* no label with a segment"),
    ],
)
def test_wrong_official_lists_are_refused(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text, name)


def test_unknown_classes_are_refused_with_their_line_and_near_names(tmp_path):
    touch(tmp_path / "videos", "AAAAAAAAAA1.mp4", "BBBBBBBBBB2.mp4")
    with pytest.raises(ValueError, match="line 3: label 'air drumming' .* did you mean 'air_drumming'"):
        read(tmp_path, KINETICS, classes=["abseiling", "air_drumming", "yoga"])
