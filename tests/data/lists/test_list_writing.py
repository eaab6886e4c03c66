"""Lists that are written back mean what they meant."""

import pytest

from nlvideo.data.lists.list_writing import write_list
from nlvideo.data.lists.path_list import read_table


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("path,fold,label\na.mp4,1,3\nb.mp4,1,0\n", "new/a.mp4,3\n"),
        ("a.mp4,no fight\nb.mp4,fight\n", "new/a.mp4,no fight\n"),
        ("path,start,end,label\na.mp4,3.5,9,run\na.mp4,,,run\nb.mp4,0,1,sit\n",
         "path,start,end,label\nnew/a.mp4,3.5,9,run\nnew/a.mp4,,,run\n"),
        ("a.mp4 2 0\nb.mp4 1\n", "path,labels\nnew/a.mp4,0;2\n"),
    ],
)  # fmt: skip
def test_labels_and_parts_as_the_list_has_them(tmp_path, text, written):
    (tmp_path / "list.csv").write_text(text)
    table = read_table(str(tmp_path), "list.csv", None, multi_label=True)
    write_list(tmp_path / "out.csv", table, {"a.mp4": "new/a.mp4"})
    assert (tmp_path / "out.csv").read_text() == written


@pytest.mark.parametrize("name", ["#1, the 1st.mp4", 'a "quoted" one.mp4', "grüße 3.mp4", "x;y.mp4", " a.mp4 "])
def test_any_path_comes_back(tmp_path, name):
    (tmp_path / "list.csv").write_text('"{}",0\n'.format(name.replace('"', '""')))
    table = read_table(str(tmp_path), "list.csv", None)
    write_list(tmp_path / "out.csv", table, {table.name(0): table.name(0)})
    assert read_table(str(tmp_path), "out.csv", None).names() == table.names() == [name.strip()]
