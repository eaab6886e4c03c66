import os

import pytest

from nlvideo.runtime import files
from nlvideo.runtime.errors import UserError


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a.txt"
    files.write_text(file, "old")
    with pytest.raises(KeyboardInterrupt), files.replacing(file) as partial:
        partial.write_text("half")
        assert file.read_text() == "old"
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a.txt"] and file.read_text() == "old"
    files.write_text(file, "new")
    assert file.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    file = tmp_path / "a.txt"
    with files.replacing(file) as first, files.replacing(file) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert file.read_text() == "first"  # it was replaced last


def test_what_a_kill_left_is_removed(tmp_path):
    for name in (".a.pt.1234abcd.part", ".b.1234abcd.part-journal", ".c\n.d.1234abcd.part", "kept.part"):
        (tmp_path / name).touch()
    assert files.remove_partial_files(tmp_path, lambda name: name.startswith("c"))
    assert sorted(os.listdir(tmp_path)) == [".a.pt.1234abcd.part", ".b.1234abcd.part-journal", "kept.part"]
    assert files.remove_partial_files(tmp_path) and not files.remove_partial_files(tmp_path)
    assert os.listdir(tmp_path) == ["kept.part"] and not files.remove_partial_files(tmp_path / "none")


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_replaces_what_had_it(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError))
    (tmp_path / "new").write_text("new")
    (tmp_path / "name").write_text("old")
    for _ in range(2):
        files.link(tmp_path / "new", tmp_path / "name")
    assert (tmp_path / "name").read_text() == "new" and sorted(os.listdir(tmp_path)) == ["name", "new"]


def test_a_folder_that_cannot_be_written_is_refused_with_its_key(tmp_path):
    files.check_writable(tmp_path / "not/there/yet")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="data.root=.*file/below: .*file is a file, not a folder"):
        files.check_writable(tmp_path / "file/below", "data.root")
    with pytest.raises(UserError, match=r"output_dir=/proc/x cannot be written: .* \(/proc\)"):
        files.check_writable(files.Path("/proc/x"))
