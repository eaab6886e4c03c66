"""Which of many files and members exist, without asking for each."""

import gzip
import os
import tarfile

import pytest

from nlvideo.data.lists.path_list import read_table
from nlvideo.data.shards.shard_writing import write_shard
from nlvideo.data.shards.video_file import Listing, exists


@pytest.fixture
def asked(monkeypatch):
    """The paths that the file system is asked about."""
    calls = []
    for module, name in ((os, "stat"), (os.path, "isfile"), (os.path, "exists"), (os, "scandir")):
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path, *a, plain=plain, **k: calls.append(path) or plain(path, *a, **k))
    return calls


@pytest.mark.parametrize("written", [True, False])
def test_a_tar_file_is_asked_about_once_not_for_each_of_its_members(tmp_path, asked, written):
    names = [f"{i % 3}/{i}.mp4" for i in range(300)]
    (tmp_path / "v").touch()
    if written:
        write_shard(tmp_path / "x.tar", [(name, tmp_path / "v") for name in names])
    else:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for name in names:
                tar.addfile(tarfile.TarInfo(name))
    asked.clear()
    listing = Listing()
    assert all(listing.has(str(tmp_path / "x.tar" / name)) for name in names)
    assert not any(listing.has(f"{tmp_path}/x.tar/{i}.avi") for i in range(300))
    assert len(asked) < 5


def test_a_tar_file_that_is_missing_is_asked_about_once(tmp_path, asked):
    listing = Listing()
    assert not any(listing.has(f"{tmp_path}/gone.tar/{i % 50}/{i}.mp4") for i in range(300))
    assert len(asked) < 5
    (tmp_path / "folder.tar/a").mkdir(parents=True)
    (tmp_path / "folder.tar/a/b.mp4").symlink_to(tmp_path)
    assert Listing().has(f"{tmp_path}/folder.tar/a/b.mp4")


def test_the_note_on_missing_files_says_why_the_first_one_is_not_found_in_its_tar_file(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "x.tar").write_bytes(gzip.compress(b"shard"))
    (tmp_path / "list.csv").write_text("a.mp4,0\nx.tar/b.mp4,1\ny.mp4,1\n")
    note = read_table(str(tmp_path), "list.csv", None).check_files().note
    assert "; missing files: 2 (x.tar/b.mp4, y.mp4) (x.tar is compressed (gzip); members are read in place" in note


def test_a_folder_is_listed_once(tmp_path, asked):
    for i in range(100):
        (tmp_path / f"{i}.mp4").touch()
    asked.clear()
    listing = Listing()
    assert all(listing.has(f"{tmp_path}/{i}.mp4") for i in range(100)) and len(asked) == 1


def test_a_link_is_what_it_leads_to(tmp_path):
    (tmp_path / "whole.mp4").touch()
    (tmp_path / "folder").mkdir()
    for name, target in (("a.mp4", "whole.mp4"), ("b.mp4", "gone.mp4"), ("c", "folder"), ("d", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / target)
    listing = Listing()
    for name in ("whole.mp4", "folder", "a.mp4", "b.mp4", "c", "d", "e"):
        expected = name not in ("b.mp4", "d", "e")
        assert listing.has(str(tmp_path / name)) == exists(str(tmp_path / name)) == expected, name
