"""Lists without a header: the shapes that are known, and the refusal of all others."""

import numpy as np
import pytest

from nlvideo.data.lists.path_list import read_table


def read(folder, text, classes=None, **options):
    (folder / "list.txt").write_text(text)
    return read_table(str(folder), "list.txt", classes, **options)


def test_several_labels_are_never_dropped(tmp_path):
    text = "train/a.mp4 1 0\ntrain/b.mp4 1 3\ntrain/c.mp4 2\n"
    with pytest.raises(ValueError, match=r"line 1: 'train/a.mp4 1 0' has several labels; .* set data.multi_label=true"):
        read(tmp_path, text)
    table = read(tmp_path, text, multi_label=True)
    assert table.names() == ["train/a.mp4", "train/b.mp4", "train/c.mp4"]
    assert [np.flatnonzero(held).tolist() for held in table.targets] == [[0, 1], [1, 3], [2]]


def test_single_labels_may_be_multi_label_data(tmp_path):
    assert read(tmp_path, "a.mp4 1\nb.mp4 0\n", multi_label=True).targets.tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("separator", [" ", ",", "\t", ";"])
def test_a_number_between_counts_frames_of_folders_only(tmp_path, separator):
    (tmp_path / "b.mp4").mkdir()  # a folder, whatever its name
    for path, options, labels in (
        ("frames/a", {}, [1]),
        ("b.mp4", {}, [1]),
        ("c.mp4", {"multi_label": True}, [1, 30]),
        ("frames/a", {"multi_label": True}, [1]),
    ):
        table = read(tmp_path, separator.join([path, "30", "1"]) + "\n", **options)
        assert table.names() == [path]
        assert (np.flatnonzero(table.targets[0]) if options else table.targets).tolist() == labels


def test_mmactions_lists_with_an_offset(tmp_path):
    table = read(tmp_path, "frames/a 0 30 1\nframes/b 0 20 0\n")
    assert table.names() == ["frames/a", "frames/b"] and table.targets.tolist() == [1, 0]
    with pytest.raises(ValueError, match="line 2: 'frames/b 5 20 0': frames from an offset of 5"):
        read(tmp_path, "frames/a 0 30 1\nframes/b 5 20 0\n")


@pytest.mark.parametrize("separator", [" ", ","])
def test_other_third_columns_are_refused(tmp_path, separator):
    text = "\n".join(separator.join(row) for row in (["a.mp4", "1"], ["b.mp4", "0", "0.5"])) + "\n"
    with pytest.raises(ValueError, match=r"list.txt, line 2: 'b.mp4.0.0.5' is not `path label`.*need a header"):
        read(tmp_path, text)
    with pytest.raises(ValueError, match="line 1: .*need a header"):
        read(tmp_path, f"a.mp4{separator}run{separator}train\n")


def test_one_delimiter_in_a_file(tmp_path):
    with pytest.raises(ValueError, match="line 2: 'b.mp4 0' is not `path label`"):
        read(tmp_path, "a.mp4,1\nb.mp4 0\n")


def test_spaces_digits_and_commas_in_paths(tmp_path):
    (tmp_path / "part 2").mkdir()
    (tmp_path / "part 2/a.mp4 7").touch()
    lines = ["grüße/视频, the 2nd.mp4 1", "part 2/a.mp4 7 0", "lost/take 3.mp4 2", "x.mp4, y.mp4 0", "no suffix 3"]
    assert read(tmp_path, "\n".join(lines)).names() == [line.rpartition(" ")[0] for line in lines]


def test_a_shorter_path_that_exists_is_not_taken_for_one_that_is_missing(tmp_path):
    (tmp_path / "a").mkdir()
    assert read(tmp_path, "a video 1.mp4 0 2\n", multi_label=True).names() == ["a video 1.mp4"]


def test_names_for_labels_without_a_header(tmp_path):
    for text in ("a.mp4,no fight\nb.mp4,fight\n", "v/1,no fight\nv/2,fight\n", "a b.mp4\tno fight\nb.mp4\tfight\n"):
        assert read(tmp_path, text).classes == ("fight", "no fight")
    assert read(tmp_path, "a b.mp4 run\nc.mp4 sit\n").classes == ("run", "sit")
    with pytest.raises(ValueError, match="line 1: 'a.mp4 no fight' is not"):
        read(tmp_path, "a.mp4 no fight\nb.mp4 fight\n")
    assert read(tmp_path, "a.mp4 no fight\nb.mp4 fight\n", ["no fight", "fight"]).targets.tolist() == [0, 1]


def test_a_first_line_that_looks_like_a_header_but_is_a_video(tmp_path):
    assert read(tmp_path, "the video class.mp4 0\n").names() == ["the video class.mp4"]
    (tmp_path / "file").mkdir()
    assert read(tmp_path, "file 0\nother 1\n").names() == ["file", "other"]
