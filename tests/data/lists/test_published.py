"""The annotation files of published data sets, with the oddities that they have."""

import json

import numpy as np
import pytest

from nlvideo.data.clips.sampling import clip_indices
from nlvideo.data.clips.train_clips import TrainClips
from nlvideo.data.lists.class_file import read_classes
from nlvideo.data.lists.published import read_videos

CHARADES = (
    "id,subject,script,actions,length\r\n"
    'AAAAA,S1,"He says ""hi, there""; then\nleaves.",c001 0.00 1.00;c000 0.50 9.75,4.00\r\n'
    "BBBBB,S2,nothing happens,,2.00\r\n"
    'CCCCC,S1,"twice",c002 1.00 2.00;c002 3.00 3.50; ,4.00\r\n'
)
NAMES = ("c000 Holding some clothes", "c001 Putting clothes somewhere", "c002 Taking, then holding")


def charades(folder, text=CHARADES, classes=NAMES, num_classes=None):
    (folder / "list.csv").write_text(text, newline="")
    return read_videos("charades", str(folder), "list.csv", "videos", classes, num_classes, training=False)


def test_charades_lists_with_quotes_line_ends_and_videos_without_actions(tmp_path):
    table = charades(tmp_path)
    assert table.names() == ["AAAAA.mp4", "BBBBB.mp4", "CCCCC.mp4"]
    assert table.path(1) == str(tmp_path / "videos/BBBBB.mp4")
    assert table.multi_label and table.targets.tolist() == [
        [True, True, False],
        [False, False, False],
        [False, False, True],
    ]
    assert table.target_names(0) == f"{NAMES[0]};{NAMES[1]}" and table.target_names(1) == ""
    assert table.segments.lengths.tolist() == [4, 2, 4]


def test_charades_frame_folders_are_known_by_any_of_them(tmp_path):
    (tmp_path / "videos/BBBBB").mkdir(parents=True)
    assert charades(tmp_path).names() == ["AAAAA", "BBBBB", "CCCCC"]


def test_a_clip_shows_the_actions_that_share_time_with_it(tmp_path):
    table = charades(tmp_path)
    for (start, end), shown in {
        (0, 0.5): [1],  # an action that begins as the clip ends is not in it
        (0.4, 0.6): [0, 1],
        (1.0, 2.0): [0],
        (8.0, 9.0): [0],  # past the video's end, as annotated
        (9.75, 20): [],
    }.items():
        assert np.flatnonzero(table.clip_target(0, start, end)).tolist() == shown
    assert not table.clip_target(1, 0, 100).any()
    assert [int(table.clip_target(2, t, t + 0.1)[2]) for t in (0.5, 1.5, 2.5, 3.2)] == [0, 1, 0, 1]
    assert table.segments.at(0, 0.5).tolist() == [True, True, False]  # at a moment both ends count
    assert table.segments.at(0, 1.0).tolist() == [True, True, False]


def test_classes_are_known_by_their_number_or_counted(tmp_path):
    assert charades(tmp_path, classes=None).classes == ("c000", "c001", "c002")
    assert len(charades(tmp_path, classes=None, num_classes=157).classes) == 157
    moved = charades(tmp_path).with_classes((NAMES[2], NAMES[0], NAMES[1]))
    assert moved.targets[0].tolist() == [False, True, True] and moved.clip_target(2, 1, 2).tolist() == [True] + 2 * [
        False
    ]


def test_training_clips_have_the_targets_of_their_time(tmp_path, video_folder):
    (tmp_path / "videos").mkdir()
    (video_folder / "train/a video 0.mp4").read_bytes()
    (tmp_path / "videos/AAAAA.mp4").write_bytes(
        (video_folder / "train/a video 0.mp4").read_bytes()
    )  # 40 frames, 25 fps
    text = "id,actions,length\nAAAAA,c000 0.00 0.44;c001 1.20 9.00,1.60\n"
    clips = TrainClips(
        charades(tmp_path, text), num_frames=2, frame_stride=4, scale_range=(48, 48), crop_size=40, flip=False, seed=0
    )
    seen = set()
    for epoch in range(16):
        clip, start = clips[epoch, 0], clips.draw(epoch, 0).start
        shown = clip_indices(start, 40, 8, 1) / 25
        # frame i stands for the time from i / 25 to (i + 1) / 25
        assert clip.target.tolist() == [bool(shown[0] < 0.44), bool(shown[-1] + 1 / 25 > 1.2), False]
        seen.add(tuple(clip.target))
    assert len(seen) == 3  # the first, none, the second


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("AAAAA,c009 0 1,4", "list.csv, AAAAA: c009 is none of the 3 classes"),
        ("AAAAA,holding 0 1,4", "'holding 0 1' is not an action as in"),
        ("AAAAA,c000 0,4", "'c000 0' is not an action"),
        ("AAAAA,c000 0 soon,4", "'soon' is not a number of seconds"),
        ("AAAAA,c000 nan 1,4", "'nan' is not a number of seconds"),
        ("AAAAA,c0000 0 1,4", "'c0000 0 1' is not an action"),
        (",,4", "the id '' is empty or stands there twice"),
        ("AAAAA,,4\nAAAAA,,4", "the id 'AAAAA' is empty or stands there twice"),
        ('AAAAA,"c000 0 1,4\nBBBBB,,4', "is not a complete csv file: unexpected end of data"),
        ("AAAAA,,long", "list.csv, AAAAA, length: 'long' is not a number"),
    ],
)
def test_wrong_rows_of_charades_are_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        charades(tmp_path, f"id,actions,length\n{row}\n")


def test_wrong_files_of_charades_are_named(tmp_path):
    with pytest.raises(ValueError, match="has no column actions"):
        charades(tmp_path, "id,action\nAAAAA,\n")
    with pytest.raises(ValueError, match="lists no video"):
        charades(tmp_path, "id,actions\n")
    with pytest.raises(FileNotFoundError, match="nowhere.csv does not exist"):
        read_videos("charades", str(tmp_path), "nowhere.csv", "", NAMES, None, training=True)


def rows(table):
    return [(name, table.classes[target]) for name, target in zip(table.names(), table.targets, strict=True)]


def test_ucf101(tmp_path):
    (tmp_path / "trainlist01.txt").write_text("Archery/v_a_01.avi 2\r\nBilliards/v b.avi 1\r\n\r\n")
    (tmp_path / "testlist01.txt").write_text("Billiards/v_c.avi\nArchery/v_d.avi\n")
    (tmp_path / "classInd.txt").write_text("1 Billiards\n2 Archery\n")
    classes = read_classes(tmp_path / "classInd.txt")
    assert classes == ["Billiards", "Archery"]
    train = read_videos("ucf101", str(tmp_path), "trainlist01.txt", "UCF-101", classes, None, training=True)
    assert rows(train) == [("Archery/v_a_01.avi", "Archery"), ("Billiards/v b.avi", "Billiards")]
    assert train.path(0) == str(tmp_path / "UCF-101/Archery/v_a_01.avi")
    test = read_videos("ucf101", str(tmp_path), "testlist01.txt", "UCF-101", None, None, training=False)
    assert rows(test) == [("Billiards/v_c.avi", "Billiards"), ("Archery/v_d.avi", "Archery")]
    assert test.classes == ("Archery", "Billiards")
    with pytest.raises(ValueError, match="trainlist01.txt, line 1: 'Archery' is none of the 1 classes"):
        read_videos("ucf101", str(tmp_path), "trainlist01.txt", "", ["Billiards"], None, training=True)


def test_hmdb51(tmp_path):
    (tmp_path / "brush_hair_test_split1.txt").write_text("a.avi 1 \nb.avi 2 \nc.avi 0 \n")
    (tmp_path / "wave_test_split1.txt").write_text("d.avi 2 \n")
    (tmp_path / "wave_test_split2.txt").write_text("d.avi 1 \n")
    pattern = "*_test_split1.txt"
    train = read_videos("hmdb51", str(tmp_path), pattern, "", ["brush_hair", "wave"], None, training=True)
    test = read_videos("hmdb51", str(tmp_path), pattern, "", None, None, training=False)
    assert rows(train) == [("brush_hair/a.avi", "brush_hair")]
    assert rows(test) == [("brush_hair/b.avi", "brush_hair"), ("wave/d.avi", "wave")]
    (tmp_path / "wave_test_split1.txt").write_text("d.avi 3 \n")
    with pytest.raises(ValueError, match="wave_test_split1.txt, line 1: 'd.avi 3' is not"):
        read_videos("hmdb51", str(tmp_path), pattern, "", None, None, training=False)
    with pytest.raises(FileNotFoundError, match="No file is called .*split3"):
        read_videos("hmdb51", str(tmp_path), "*_test_split3.txt", "", None, None, training=False)


def test_something_something(tmp_path):
    entries = [
        {"id": "7", "label": "holding a bottle", "template": "Holding [something]", "placeholders": ["a bottle"]},
        {"id": "8", "label": "", "template": "Putting [something] next to [something]", "placeholders": []},
    ]
    (tmp_path / "train.json").write_text(json.dumps(entries))
    (tmp_path / "labels.json").write_text(
        json.dumps({"Putting something next to something": "1", "Holding something": "0"})
    )
    classes = read_classes(tmp_path / "labels.json")
    assert classes == ["Holding something", "Putting something next to something"]
    table = read_videos("something", str(tmp_path), "train.json", "", classes, None, training=True)
    assert rows(table) == [("7.webm", classes[0]), ("8.webm", classes[1])]
    (tmp_path / "test.json").write_text(json.dumps([{"id": "9"}]))
    with pytest.raises(ValueError, match="has no id or no template; the test list has no labels"):
        read_videos("something", str(tmp_path), "test.json", "", classes, None, training=False)
    (tmp_path / "test.json").write_text("[")
    with pytest.raises(ValueError, match="is not a json file"):
        read_videos("something", str(tmp_path), "test.json", "", classes, None, training=False)


@pytest.mark.parametrize("text", ["1 a\nb\n", "1 a\n3 b\n"])
def test_class_files_with_numbers_are_checked(tmp_path, text):
    (tmp_path / "classInd.txt").write_text(text)
    with pytest.raises(ValueError, match="classInd.txt"):
        read_classes(tmp_path / "classInd.txt")


def test_an_action_that_ends_before_it_starts_is_at_no_time_but_one_of_the_videos(tmp_path):
    table = charades(tmp_path, "id,actions,length\nAAAAA,c001 18.00 10.00;c000 0.00 32.50,20.50\nBBBBB,,2\n")
    assert table.targets.tolist() == [[True, True, False], [False] * 3]
    for start, end in ((0, 100), (9, 11), (10, 18), (17, 19)):
        assert table.clip_target(0, start, end).tolist() == [True, False, False]  # an end past the video's is no error
    assert not any(table.segments.at(0, second)[1] for second in (9, 10, 14, 18, 19))
    assert table.note.endswith("; actions that end before they start, at no time: 1 (AAAAA c001 18 10)")


def test_charades_in_utf_16(tmp_path):
    (tmp_path / "list.csv").write_bytes(CHARADES.encode("utf-16"))
    table = read_videos("charades", str(tmp_path), "list.csv", "", NAMES, None, training=True)
    assert len(table) == 3 and "end before" not in table.note
