"""Videos of stores as the opener gives them."""

import errno
import os
import time
from pathlib import Path

import pytest
from conftest import write_grey_video
from store_servers import FaultyServer

from nlvideo.data.decoding import opening
from nlvideo.data.decoding.opening import Opener
from nlvideo.data.decoding.video import DecodeError
from nlvideo.data.index.video_index import VideoIndex
from nlvideo.data.lists.path_list import read_table
from nlvideo.data.stores import local_copy, store
from nlvideo.data.stores.cache import Cache
from nlvideo.data.stores.store import StoreFailed
from nlvideo.runtime.errors import UserError, UserFileNotFoundError

pytest.importorskip("aiohttp", reason="needs aiohttp")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(store, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(store, "TRIES", 2)


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "served"
    write_grey_video(folder / "a b.mp4", 20)
    (folder / "broken.mp4").write_bytes(b"no video")
    with FaultyServer(folder) as server:
        yield server


def test_the_time_limit_does_not_count_the_fetch(served, tmp_path):
    def slow(*_):
        time.sleep(0.4)

    served.plan = slow
    opener = Opener(time_limit=0.3, cache=Cache(tmp_path / "cache", 1))
    started = time.monotonic()
    with opener(f"{served.address}/a%20b.mp4") as video:
        assert video.num_frames == 20
    assert time.monotonic() - started > 0.4


@pytest.mark.parametrize("decoder", ["pyav", "decord", "torchcodec"])
@pytest.mark.parametrize("name", ["broken.mp4", "none.mp4"])
def test_what_cannot_be_decoded_is_named_by_its_address(served, tmp_path, decoder, name):
    if decoder != "pyav":
        pytest.importorskip(decoder, reason=f"needs {decoder}")
    opener = Opener(decoder, cache=Cache(tmp_path / "cache", 1))
    with pytest.raises(DecodeError) as caught, opener(f"{served.address}/{name}"):
        pass
    assert caught.value.path == f"{served.address}/{name}" and str(tmp_path) not in str(caught.value)


def test_a_file_that_goes_from_the_cache_is_no_bad_video(served, tmp_path, monkeypatch):
    opener = Opener(cache=Cache(tmp_path / "cache", 1))

    def vanished(file, *_, **__):
        os.unlink(file)
        raise DecodeError(file, os.strerror(errno.ENOENT))

    monkeypatch.setattr(opening, "open_video", vanished)
    address = f"{served.address}/a%20b.mp4"
    with pytest.raises(StoreFailed, match=f"^{address} went from data.cache_dir="), opener(address):
        pass


def test_a_missing_object_reads_as_a_missing_file(served, tmp_path):
    opener = Opener(cache=Cache(tmp_path / "cache", 1))
    reasons = []
    for path in (f"{served.address}/none.mp4", str(tmp_path / "none.mp4")):
        with pytest.raises(DecodeError) as caught, opener(path):
            pass
        reasons.append(caught.value.reason)
    assert reasons[0] == reasons[1]


def test_a_store_that_fails_is_no_decode_error(served, tmp_path):
    served.plan = lambda *_: "500"
    with pytest.raises(StoreFailed), Opener(cache=Cache(tmp_path / "cache", 1))(f"{served.address}/a%20b.mp4"):
        pass


def test_the_index_knows_an_object_again(served, tmp_path):
    index = VideoIndex(tmp_path / "index")
    opener = Opener(cache=Cache(tmp_path / "cache", 1), index=index)
    for _ in range(2):
        with opener(f"{served.address}/a%20b.mp4") as video:
            frames = video.num_frames
    found = index.find(index.state(opener.cache.place(f"{served.address}/a%20b.mp4")))
    assert found is not None and found.num_frames == frames


def test_a_list_is_read_anew_and_its_mistakes_name_the_address(served):
    file = served.folder / "train.csv"
    file.write_text("path,label\na b.mp4,0\n")
    table = read_table(served.address, "train.csv", None)
    assert table.source == f"{served.address}/train.csv" and table.path(0) == f"{served.address}/a%20b.mp4"
    file.write_text("path,label\na b.mp4,0\nbroken.mp4,1\n")
    assert len(read_table(served.address, "train.csv", None)) == 2
    file.write_text("path,label\na b.mp4,0\nbroken.mp4\n")
    with pytest.raises(UserError, match=rf"^{served.address}/train.csv, line 3: "):
        read_table(served.address, "train.csv", None)
    with pytest.raises(UserFileNotFoundError, match=rf"The list {served.address}/none.csv does not exist"):
        read_table(served.address, "none.csv", None)
    served.plan = lambda number, method, path: "301" if path == "/train" else None
    with pytest.raises(UserFileNotFoundError, match=rf"The list {served.address}/train does not exist: .* not listed"):
        read_table(served.address, "train", None)


def test_a_list_is_the_same_wherever_it_lies(served, tmp_path):
    names = "path,label\na b.mp4,0\nbroken.mp4,1\n"
    (served.folder / "train.csv").write_text(names)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/train.csv").write_text(names)
    roots = (served.address, str(served.folder), str(tmp_path / "copy"))
    assert len({read_table(root, "train.csv", None).digest() for root in roots}) == 1


def test_a_list_of_a_disk_may_name_objects(served, tmp_path):
    (tmp_path / "train.csv").write_text(f"path,label\n{served.address}/a%20b.mp4,0\nlocal.mp4,1\n")
    table = read_table(str(tmp_path), "train.csv", None)
    assert table.has_addresses() and [table.path(i) for i in (0, 1)] == [
        f"{served.address}/a%20b.mp4",
        os.path.join(tmp_path, "local.mp4"),
    ]
    assert "missing files: 1 (local.mp4)" in table.check_files().note
    (tmp_path / "secret.csv").write_text("path,label\nhttps://me:secret@host/x.mp4,0\nlocal.mp4,1\n")
    with pytest.raises(UserError, match="secret.csv: an address with a user") as caught:
        read_table(str(tmp_path), "secret.csv", None).check_files()
    assert "me:" not in str(caught.value)


def test_a_list_of_plain_rows_is_understood(served):
    (served.folder / "train.txt").write_text("a b.mp4 0\nbroken.mp4 1\n")
    table = read_table(served.address, "train.txt", None)
    assert table.names() == ["a b.mp4", "broken.mp4"] and Path(table.source).name == "train.txt"


def test_a_disk_that_cannot_be_written_is_one_line_about_the_list(served, monkeypatch):
    def download(address, file, *_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))

    monkeypatch.setattr(local_copy, "download", download)
    (served.folder / "train.csv").write_text("path,label\na b.mp4,0\n")
    with pytest.raises(StoreFailed, match=f"^The list {served.address}/train.csv cannot be copied to .*: Read-only"):
        read_table(served.address, "train.csv", None)


def test_the_etag_of_a_directory_bucket_is_no_md5(monkeypatch):
    class Files:
        def split_path(self, address):
            return *address.removeprefix("s3://").split("/"), None

        def call_s3(self, *_, **__):
            return {"ETag": '"' + "0a" * 16 + '"', "ContentLength": 5}

    monkeypatch.setattr(store, "_filesystem", lambda _: Files())
    found = [store.object_facts(f"s3://{bucket}/x.mp4").md5 for bucket in ("b", "b--use1-az5--x-s3")]
    assert found == ["0a" * 16, None]
