"""Lists with a header: its names decide. Encodings, quotes, comments, and parts of videos."""

import codecs

import numpy as np
import pytest

from nlvideo.data.lists.path_list import read_table


def read(folder, text, classes=None, **options):
    (folder / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(str(folder), "list.csv", classes, **options)


def rows(table):
    return list(zip(table.names(), table.targets.tolist(), strict=True))


TWO = [("train/a.mp4", 1), ("train/b.mp4", 0)]


@pytest.mark.parametrize(
    ("text", "ignored"),
    [
        ("video_path,label,fold\ntrain/a.mp4,1,0\ntrain/b.mp4,0,1\n", " (ignored: fold)"),
        ("fold;Label;Duration;FILE\n2;1;9;train/a.mp4\n1;0;12;train/b.mp4\n", " (ignored: fold, Duration)"),
        (",path,label\n0,train/a.mp4,1\n1,train/b.mp4,0\n", ""),
        ("Unnamed: 0,path,label\n0,train/a.mp4,1\n1,train/b.mp4,0\n", ""),
        ("label\tfilename\n1\ttrain/a.mp4\n0\ttrain/b.mp4\n", ""),
        ("path num_frames label\ntrain/a.mp4 30 1\ntrain/b.mp4 40 0\n", ""),
        ("name,class_id,category\ntrain/a.mp4,1,run\ntrain/b.mp4,0,sit\n", " (ignored: category)"),
        ('"path","label"\n"train/a.mp4",1\n"train/b.mp4",0\n', ""),
    ],
)
def test_names_decide_and_other_columns_are_named_once(tmp_path, text, ignored):
    table = read(tmp_path, text)
    assert rows(table) == TWO
    columns, _, rest = table.note.removeprefix("list.csv: ").partition(";")
    assert columns.endswith(ignored) if ignored else "ignored" not in columns
    assert rest == " 2 videos of 2 classes (labels are numbers)"


def test_of_two_columns_with_the_class_label_is_taken_first(tmp_path):
    table = read(tmp_path, "path,class_id,label\na.mp4,7,sit\nb.mp4,9,run\n")
    assert table.classes == ("run", "sit") and table.targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    "data",
    [
        codecs.BOM_UTF8 + "path,label\r\ngrüße.mp4,0\r\n".encode(),
        "path,label\r\ngrüße.mp4,0\r\n".encode("utf-16"),
        codecs.BOM_UTF16_BE + "path,label\ngrüße.mp4,0\n".encode("utf-16-be"),
        "# ours\npath,label\n\n#a.mp4,7\ngrüße.mp4,0\n".encode(),
        "path,label\rgrüße.mp4,0\r".encode(),
    ],
    ids=["bom", "utf-16", "utf-16 big end first", "comments", "old mac"],
)
def test_encodings_comments_and_line_ends(tmp_path, data):
    assert rows(read(tmp_path, data)) == [("grüße.mp4", 0)]


@pytest.mark.parametrize("data", ["path,label\ngrüße.mp4,0\n".encode("latin-1"), codecs.BOM_UTF16_LE + b"a\0b"])
def test_other_bytes_are_refused_in_one_line(tmp_path, data):
    with pytest.raises(ValueError, match="list.csv is not a text file in UTF-8") as error:
        read(tmp_path, data)
    assert "\n" not in str(error.value)


def test_quoted_paths_may_hold_commas_and_quotes(tmp_path):
    table = read(tmp_path, 'path,label\n"a, ""the"" 1st.mp4",0\n"#b.mp4",1\n')
    assert table.names() == ['a, "the" 1st.mp4', "#b.mp4"]
    assert read(tmp_path, '"a, ""the"" 1st.mp4",0\n').names() == ['a, "the" 1st.mp4']
    assert read(tmp_path, '"a, b.mp4" 0\n').names() == ["a, b.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('path,label\na.mp4,0\n"b.mp4,1\nc.mp4,0\n', "list.csv, line 3: a quote that opens here is never closed"),
        ('a.mp4,0\n"b.mp4,1\nc.mp4,0\n', "line 2: a quote that opens here is never closed"),
        ('a.mp4 0\n"b.mp4 1\n', "line 2: .* a quote that is never closed"),
        ("path,label\na.mp4,1,3\n", "line 2: 'a.mp4,1,3' has 3 columns, the header 2"),
        ("path,label,fold\na.mp4,1\n", "line 2: 'a.mp4,1' has 2 columns, the header 3"),
        ("path,label\na.mp4,\n", "line 2: the label is empty"),
        ("path,label\n,1\n", "line 2: the path is empty"),
        ("path,split\na.mp4,train\n", "line 1: of the columns path, split, none is called like a label"),
        ("path,label,label\na.mp4,1,1\n", "line 1: the column label stands there twice"),
        ("path,label\na.mp4 0\n", "line 2: 'a.mp4 0' has 1 columns"),
        ("vid,klass\na.mp4,run\n", "line 1: 'vid,klass' is neither a video nor a known header"),
        ("path,label\na.mp4,1.0\n", "line 2: label '1.0' of a.mp4 is neither a whole number nor a name"),
        ("path,start,label\na.mp4,1,0\n", "line 1: .* only one of a start and an end"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_names_for_labels(tmp_path):
    text = "path,label\na.mp4,no fight\nb.mp4,fight\n"
    table = read(tmp_path, text)
    assert table.classes == ("fight", "no fight") and table.targets.tolist() == [1, 0]
    assert table.note == "list.csv: columns path, label; 2 videos of 2 classes (names sorted)"
    table = read(tmp_path, text, ["no fight", "dance", "fight"])
    assert table.targets.tolist() == [0, 2] and table.note.endswith("(by their names)")
    with pytest.raises(ValueError, match="line 3: label 'fight' of b.mp4 is none of the 2 classes; did you mean 'figh"):
        read(tmp_path, text, ["no fight", "fights"])


def test_names_and_numbers_do_not_mix_unless_classes_have_both(tmp_path):
    text = "path,label\na.mp4,run\nb.mp4,1\n"
    with pytest.raises(ValueError, match="line 3: label 1 of b.mp4 is a number, but labels before it are names"):
        read(tmp_path, text)
    with pytest.raises(ValueError, match="line 3: label 'run' of b.mp4 is a name, but labels before it are numbers"):
        read(tmp_path, "path,label\na.mp4,1\nb.mp4,run\n")
    assert read(tmp_path, text, ["1", "run"]).targets.tolist() == [1, 0]
    with pytest.raises(ValueError, match="line 3: label 1 of b.mp4 is none of the 2 classes"):
        read(tmp_path, text, ["run", "sit"])
    assert read(tmp_path, "path,label\na.mp4,1\nb.mp4,0\n", ["run", "sit"]).targets.tolist() == [1, 0]


def test_parts_of_videos(tmp_path):
    text = "path,start,end,label\nlong.mp4,3.5,9.0,run\nlong.mp4,21,26.5,jump\nother.mp4,,,run\n"
    table = read(tmp_path, text)
    assert table.names() == ["long.mp4", "long.mp4", "other.mp4"] and table.targets.tolist() == [1, 0, 1]
    assert [table.part(i) for i in range(3)] == [(3.5, 9.0), (21.0, 26.5), None]
    assert table.parts.dtype == np.float64 and np.isnan(table.parts[2]).all()
    assert "3 parts of videos of 2 classes" in table.note
    assert table.digest() != read(tmp_path, text.replace("26.5", "26")).digest()
    whole = read(tmp_path, "label,file\n1,a.mp4\n")
    assert whole.parts is None and whole.part(0) is None
    first = read(tmp_path, "path,t_start,t_end,label\nother.mp4,,,run\nlong.mp4,0,1,run\n")
    assert [first.part(i) for i in range(2)] == [None, (0.0, 1.0)]


@pytest.mark.parametrize("seconds", ["3 3", "3 2", "-1 2", "1 ", "1 soon", "1 inf"])
def test_parts_that_are_none_are_refused(tmp_path, seconds):
    start, end = seconds.split(" ")
    with pytest.raises(ValueError, match="line 2: .*(end after its start|not a number of seconds)"):
        read(tmp_path, f"path,start,end,label\na.mp4,{start},{end},run\n")


def test_several_labels_in_a_cell(tmp_path):
    text = "path,labels\na.mp4,1;0\nb.mp4,3\nc.mp4,\nd.mp4,0 2\n"
    table = read(tmp_path, text, multi_label=True)
    assert [np.flatnonzero(held).tolist() for held in table.targets] == [[0, 1], [3], [], [0, 2]]
    with pytest.raises(ValueError, match="line 2: '1;0' is several labels; .* set data.multi_label=true"):
        read(tmp_path, text)
    table = read(tmp_path, "path,labels\na.mp4,run|jump high\nb.mp4,run\n", multi_label=True)
    assert table.classes == ("jump high", "run") and table.targets.tolist() == [[True, True], [False, True]]
    assert read(tmp_path, "path,label\na.mp4,stop; go\n").classes == ("stop; go",)  # one name, as it is written


def test_a_table_with_several_labels_without_times(tmp_path):
    table = read(tmp_path, "path,labels\na.mp4,run|jump\nb.mp4,sit\n", multi_label=True)
    assert table.multi_label and table.segments is None and table.targets.dtype == bool
    assert table.clip_target(0, 0, 1).tolist() == [True, True, False] and table.target_names(0) == "jump;run"
    moved = table.with_classes(("sit", "run", "jump"))
    assert moved.target_names(0) == "run;jump" and moved.target_names(1) == "sit"
    assert moved.digest() != table.digest()


def test_missing_files_are_counted_and_the_first_three_named(tmp_path):
    (tmp_path / "a.mp4").touch()
    table = read(tmp_path, "path,label\na.mp4,0\n" + "".join(f"v/{i}.mp4,0\n" for i in range(4)) + "v/3.mp4,0\n")
    assert table.check_files().note.endswith("; missing files: 4 (v/0.mp4, v/1.mp4, v/2.mp4, ...)")
    assert read(tmp_path, "path,label\na.mp4,0\n").check_files().note.endswith("(labels are numbers)")
    assert table.check_files().digest() == table.digest()


@pytest.mark.parametrize("text", ["video 0.mp4,1\nvideo 1.mp4,0\n", "file 1.avi;1\nfile 2.avi;0\n"])
def test_a_row_whose_path_begins_with_a_columns_name_is_no_header(tmp_path, text):
    (tmp_path / "list.csv").write_text(text)
    table = read_table(str(tmp_path), "list.csv", None)
    assert table.names() == [line[:-2] for line in text.splitlines()]
    assert table.targets.tolist() == [1, 0]
