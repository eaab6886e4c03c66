"""Class files in every form that they come in."""

import json

import pytest

from nlvideo.data.lists.class_file import read_classes

NAMES = ["stays", "goes left", "goes right"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "stays\ngoes left\ngoes right\n"),
        ("a.txt", "\ufeffstays\r\n\r\ngoes left\r\ngoes right"),
        ("a.txt", "2 goes right\n0 stays\n1 goes left\n"),
        ("a.txt", "1 stays\n2 goes left\n3 goes right\n"),
        ("a.txt", "0\tstays\n1\tgoes left\n2\tgoes right\n"),
        ("a.txt", "stays 0\ngoes right 2\ngoes left 1\n"),
        ("a.txt", "goes left: 2\nstays: 1\ngoes right: 3\n"),
        ("a.txt", "0: stays\n2: goes right\n1: goes left\n"),
        ("a.csv", "0,stays\n2,goes right\n1,goes left\n"),
        ("a.csv", 'id,name\n0,stays\n1,"goes left"\n2,goes right\n'),
        ("a.csv", "Name;ID\nstays;0\ngoes right;2\ngoes left;1\n"),
        ("a.csv", "label,name\n1,goes left\n0,stays\n2,goes right\n"),
        ("a.csv", "id,label\n1,goes left\n0,stays\n2,goes right\n"),
        ("a.csv", "stays,0\ngoes right,2\ngoes left,1\n"),
        ("a.csv", "name\nstays\ngoes left\ngoes right\n"),
        ("a.json", json.dumps(NAMES)),
        ("a.json", '{"goes left": 1, "stays": 0, "\\"goes right\\"": "2"}'),
        ("a.json", '{"1": "goes left", "0": "stays", "2": "goes right"}'),
    ],
)
def test_names_are_in_the_order_of_their_numbers(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_classes(tmp_path / name) == NAMES


@pytest.mark.parametrize(
    "names",
    [
        ["3d printing", "9 pin bowling"],
        ["100 metres", "200 metres"],
        ["1 on 1 basketball", "dancing", "fencing"],
        ["0 degrees", "90 degrees", "45 degrees"],
        ["c000 Holding, then putting", "c001 Taking, then holding"],
        ["run, fast", "sit"],
        ["level 2", "level 1"],
        ["level 1"],
        ["take 2", "drop 5"],
        ["take 1", "drop", "hold 2"],
    ],
)
def test_names_may_begin_or_end_with_a_digit_and_hold_commas(tmp_path, names):
    (tmp_path / "a.txt").write_text("\n".join(names))
    assert read_classes(tmp_path / "a.txt") == names


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "0 a\n2 b\n", "a.txt has 2 names with numbers up to 2, but none with the number 1"),
        ("a.txt", "0 a\n0 b\n", "a.txt gives the number 0 to a and b"),
        ("a.txt", "1 a\nb\n", "a.txt has lines of `number name`, but 'b' has no number"),
        ("a.csv", "id,name\n0,a\n1,a\n", "a.csv names a more than once"),
        ("a.csv", "id,name\n0,a\nx,b\n", "a.csv: 'x' of b is no number"),
        ("a.csv", "id,name\n5,a\n6,b\n", "numbers start at 0 or 1, here at 5 with a"),
        ("a.json", '{"a": 0, "b": 0}', "gives the number 0 to a and b"),
        ("a.json", '{"a": 0, "a": 1}', "has 'a' twice"),
        ("a.json", '{"a": 0, "b": 3}', "none with the number 1"),
        ("a.json", '{"a": [0]}', "is not a json of names"),
        ("a.json", "[]", "is empty"),
        ("a.json", "[", "is not a json file"),
    ],
)
def test_gaps_and_duplicates_are_refused_by_name(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_classes(tmp_path / name)
