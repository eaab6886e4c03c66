import os
import tracemalloc

import pytest

from nlvideo.data.lists.class_file import read_classes
from nlvideo.data.lists.folder_tree import left_out, videos_below
from nlvideo.data.lists.path_list import read_table


def table_of(tmp_path, text, classes=("a", "b", "c"), **options):
    (tmp_path / "list.csv").write_text(text)
    return read_table(str(tmp_path), "list.csv", classes, **options)


def rows(table):
    return [(table.name(i), int(table.targets[i])) for i in range(len(table))]


@pytest.mark.parametrize(
    "text",
    [
        "x/1.mp4 0\nx y/2.mp4 2\n",
        "x/1.mp4,0\nx y/2.mp4,2\n",
        "x/1.mp4\t0\nx y/2.mp4\t2",
        "path,label\nx/1.mp4, 0\n\nx y/2.mp4, 2\n",
        "video label\r\nx/1.mp4 0\r\nx y/2.mp4 2\r\n",
        '\ufeff"x/1.mp4",0\n"x y/2.mp4",2\n',
    ],
    ids=["space", "comma", "tab", "header", "windows", "quotes"],
)
def test_lists_as_the_field_has_them(tmp_path, text):
    table = table_of(tmp_path, text)
    assert rows(table) == [("x/1.mp4", 0), ("x y/2.mp4", 2)]
    assert table.path(0) == str(tmp_path / "x/1.mp4")


def test_names_may_hold_any_letters_and_be_absolute(tmp_path):
    table = table_of(tmp_path, "grüße/视频, the 2nd.mp4 1\n/elsewhere/a.mp4 0\n")
    assert rows(table) == [("grüße/视频, the 2nd.mp4", 1), ("/elsewhere/a.mp4", 0)]
    assert table.path(1) == "/elsewhere/a.mp4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no video"),
        ("path label\n", "lists no video"),
        ("a.mp4 0\nb.mp4 3\n", "line 2: label 3 of b.mp4 is out of range; there are 3 classes, so .* 0 to 2"),
        ("a.mp4 -1\n", "label -1 of a.mp4 is out of range"),
        ("a.mp4 0\nb.mp4 dancing\n", "line 2: label 'dancing' of b.mp4 is none of the 3 classes"),
        ("a.mp4 0\nb.mp4\n", "line 2: 'b.mp4' is not `path label`"),
    ],
)
def test_wrong_lists_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        table_of(tmp_path, text)


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.csv does not exist"):
        read_table(str(tmp_path), "nothing.csv", None)


def test_a_list_without_class_names_counts_its_labels(tmp_path):
    assert table_of(tmp_path, "a.mp4 0\nb.mp4 4\n", None).classes == ("0", "1", "2", "3", "4")
    assert len(table_of(tmp_path, "a.mp4 0\nb.mp4 4\n", None, num_classes=10).classes) == 10


def test_a_list_of_files_that_do_not_exist_is_refused(tmp_path):
    table = table_of(tmp_path, "a.mp4 0\nb.mp4 1\n")
    with pytest.raises(FileNotFoundError, match=r"none of its 2 videos exists; the first would be .*a\.mp4"):
        table.check_files()
    (tmp_path / "b.mp4").touch()
    table.check_files()


def test_a_folder_tree_gives_classes_in_sorted_order(tmp_path):
    for name in ("b/2.mp4", "b/1.MKV", "a/deep/3.mp4", "a/notes.txt"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    table = read_table(str(tmp_path), "train", None)
    assert table.classes == ("a", "b")
    assert rows(table) == [("a/deep/3.mp4", 0), ("b/1.MKV", 1), ("b/2.mp4", 1)]
    assert rows(read_table(str(tmp_path), "train", ["b", "z", "a"]))[0] == ("a/deep/3.mp4", 2)
    with pytest.raises(ValueError, match="folders b are not among the 1 classes"):
        read_table(str(tmp_path), "train", ["a"])


def test_an_empty_tree_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no sub-folders"):
        read_table(str(tmp_path), ".", None)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="holds no video"):
        read_table(str(tmp_path), ".", None)


def test_class_files(tmp_path):
    (tmp_path / "classes.txt").write_text("abseiling\nair drumming\n")
    assert read_classes(tmp_path / "classes.txt") == ["abseiling", "air drumming"]
    (tmp_path / "twice.txt").write_text("a\nb\na\n")
    with pytest.raises(ValueError, match="names a more than once"):
        read_classes(tmp_path / "twice.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_classes(tmp_path / "empty.txt")
    with pytest.raises(FileNotFoundError, match="none.txt does not exist"):
        read_classes(tmp_path / "none.txt")


def test_the_digest_follows_names_targets_and_classes(tmp_path):
    digest = table_of(tmp_path, "a.mp4 0\nb.mp4 1\n").digest()
    assert digest == table_of(tmp_path, "a.mp4,0\nb.mp4,1\n").digest()
    assert digest != table_of(tmp_path, "a.mp4 1\nb.mp4 0\n").digest()
    assert digest != table_of(tmp_path, "a.mp4 0\nc.mp4 1\n").digest()
    assert digest != table_of(tmp_path, "a.mp4 0\nb.mp4 1\n", ("b", "a", "c")).digest()


@pytest.mark.parametrize("separator", [" ", ",", "\t", ", ", " , "])
def test_every_separator_of_the_field(tmp_path, separator):
    (tmp_path / "list.txt").write_text(f"a b/c 1.mp4{separator}3\nd.mp4{separator}0\n")
    table = read_table(str(tmp_path), "list.txt", None)
    assert [table.name(i) for i in range(2)] == ["a b/c 1.mp4", "d.mp4"] and table.targets.tolist() == [3, 0]


def test_mmactions_lists_of_frame_folders_have_a_number_of_frames_between(tmp_path):
    (tmp_path / "abseiling/v 1").mkdir(parents=True)  # a path with spaces is known by what exists
    (tmp_path / "frames.txt").write_text("abseiling/v 1 163 0\nzumba/v2 44 1\n")
    table = read_table(str(tmp_path), "frames.txt", None)
    assert [table.name(i) for i in range(2)] == ["abseiling/v 1", "zumba/v2"] and table.targets.tolist() == [0, 1]


def test_a_folder_whose_name_ends_in_a_number_is_taken_as_it_is(tmp_path):
    (tmp_path / "v 1").mkdir()
    (tmp_path / "frames.txt").write_text("v 1 0\nv2 1\n")
    table = read_table(str(tmp_path), "frames.txt", None)
    assert [table.name(i) for i in range(2)] == ["v 1", "v2"]


def test_rows_of_two_kinds_are_refused_with_their_line(tmp_path):
    (tmp_path / "frames.txt").write_text("v1 163 0\nv2 1\n")
    with pytest.raises(ValueError, match="line 2: 'v2 1' is not `path number_of_frames label`, as the first"):
        read_table(str(tmp_path), "frames.txt", None)


def test_a_tree_may_hold_folders_of_frames(tmp_path):
    for name in ("run/v1/img_00001.jpg", "run/v2.mp4", "sit/v3/img_00001.png", "sit/v3/.hidden/img_1.png"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    table = read_table(str(tmp_path), "train", None)
    assert [table.name(i) for i in range(len(table))] == ["run/v1", "run/v2.mp4", "sit/v3"]
    assert table.targets.tolist() == [0, 0, 1]


def test_many_rows_take_little_more_than_their_text(tmp_path):
    rows = [f"class {i % 400}/{i:011d}_000010_000020.mp4 {i % 400}\n" for i in range(20_000)]
    (tmp_path / "list.csv").write_text("".join(rows))
    tracemalloc.start()
    table = read_table(str(tmp_path), "list.csv", None)
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    text = sum(len(row) for row in rows)
    assert len(table) == 20_000 and size < 2 * text and peak < 4 * text  # a list of str alone takes three times that
    assert table.name(19_999) == "class 399/00000019999_000010_000020.mp4"


def test_folders_say_what_is_left_out(tmp_path):
    for name in ("a/1.mp4", "a/2.M2TS", "b/3.gif", "b/notes.txt", "b/x.xyz", "b/y.xyz", "b/README", "b/.hidden.xyz"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    table = read_table(str(tmp_path), "train", None)
    assert table.names() == ["a/1.mp4", "a/2.M2TS", "b/3.gif"]
    assert table.note.endswith("; 4 files left out: 2 .xyz, 1 .txt, 1 no ending")


def test_pictures_beside_videos_are_not_frames(tmp_path):
    for name in (
        "a/v.mp4",
        "a/cover.jpg",
        "a/1.jpg",
        "frames/img_1.jpg",
        "frames/img_2.jpg",
        "scans/plan.png",
        "3.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(str(path.relative_to(tmp_path)) for path in videos_below(tmp_path)) == ["a/v.mp4", "frames"]
    assert left_out(tmp_path) == "4 files left out: 2 .jpg, 2 .png"


def test_linked_folders_are_read_once_and_their_loops_end(tmp_path):
    for name in ("src/Abuse/1.mp4", "src/Arson/2.mp4", "src/Arson/frames/img_1.jpg", "mix/Own/3.mp4", "mix/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    mix = tmp_path / "mix"
    links = {
        "Abuse": "../src/Abuse",
        "Arson": "../src/Arson",
        "A": "Own",
        "Own/loop": "..",
        "Own/gone": "x",
        "Z.avi": "x",
    }
    for name, target in links.items():
        (mix / name).symlink_to(target)
    videos = ["Abuse/1.mp4", "Arson/2.mp4", "Arson/frames", "Own/3.mp4", "Z.avi"]  # whoever opens Z.avi reports it
    assert sorted(str(path.relative_to(mix)) for path in videos_below(mix)) == videos
    assert left_out(mix) == (
        "1 file left out: 1 .txt; 2 links that lead nowhere: Own/gone, Z.avi; "
        "2 links to folders of other names here: A, Own/loop"
    )


def test_a_tree_of_linked_classes(tmp_path):
    for name in ("src/a/1.mp4", "src/2.mp4", "train/b/3.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name, target in {"a": "../src/a", "b/more": "../../src", "c": "nowhere"}.items():
        (tmp_path / "train" / name).symlink_to(target)
    table = read_table(str(tmp_path), "train", None)
    assert table.names() == ["a/1.mp4", "b/3.mp4", "b/more/2.mp4", "b/more/a/1.mp4"]
    assert "1 link that leads nowhere: c" in table.note


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every folder")
def test_folders_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    assert left_out(tmp_path) == "1 folder that cannot be read: closed"
