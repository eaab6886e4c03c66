"""Members of tar files as videos: of tar files of any make, and of such that are not what they should be."""

import gzip
import io
import multiprocessing
import os
import shutil
import subprocess
import tarfile
import zlib

import numpy as np
import pytest
from conftest import frame_numbers, write_grey_video
from videos import facts_of, write_video

from nlvideo.data.decoding.opening import open_video
from nlvideo.data.decoding.video import DecodeError
from nlvideo.data.index.video_index import VideoIndex
from nlvideo.data.shards import tar_table
from nlvideo.data.shards.shard_writing import write_shard
from nlvideo.data.shards.tar_table import ENTRY, TABLE_MAGIC, TABLE_MEMBER
from nlvideo.data.shards.video_file import (
    Listing,
    exists,
    file_status,
    how_to_name_members,
    is_missing,
    open_bytes,
    reason_in_tar,
    split_member,
)

LONG = f"{'class ' * 30}/{'v' * 120}.mp4"
NAMES = ["a/1.mp4", "b/two words, é.mp4", LONG, "000123.mp4"]
SYSTEM_TAR = shutil.which("tar")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Files of NAMES, of 20, 21, ... frames."""
    folder = tmp_path_factory.mktemp("videos")
    for i, name in enumerate(NAMES):
        write_grey_video(folder / name, 20 + i)
    return folder


@pytest.fixture
def shard(videos, tmp_path):
    write_shard(tmp_path / "shard_00000.tar", [(name, videos / name) for name in NAMES])
    return tmp_path / "shard_00000.tar"


def check(tar, videos, names=NAMES):
    """Compares members of a tar file with the files."""
    listing = Listing()
    for name in names:
        path = str(tar / name)
        assert exists(path) and listing.has(path) and reason_in_tar(path) == ""
        assert file_status(path)[:2] == (os.path.getsize(videos / name), os.stat(tar).st_mtime_ns)
        with open_bytes(path) as member:
            assert member.read() == (videos / name).read_bytes()
        with open_video(path) as video, open_video(videos / name) as file:
            assert video.facts.as_row() == file.facts.as_row()
            last = file.num_frames - 1
            assert frame_numbers(video.read([3, last], (48, 64))) == [3, last]
    assert not exists(str(tar / "a/2.mp4")) and not listing.has(str(tar / "a/2.mp4"))


@pytest.mark.parametrize("name", ["s.tar", "S.TAR", "a, b:c,,:%d#?é\n.tar", os.fsdecode(b"caf\xe9.tar")])
def test_a_shard_may_have_any_name(shard, videos, monkeypatch, name):
    moved = shard.with_name(name)
    shard.rename(moved)
    check(moved, videos)
    monkeypatch.chdir(moved.parent)
    with open_video(f"{name}/{NAMES[0]}") as video:
        assert video.num_frames == 20


def test_a_shard_is_a_plain_tar_file(shard, videos, tmp_path):
    with tarfile.open(shard) as tar:
        assert tar.getnames() == [*NAMES, TABLE_MEMBER]
        assert all(tar.extractfile(name).read() == (videos / name).read_bytes() for name in NAMES)
    assert os.path.getsize(shard) % tarfile.RECORDSIZE == 0
    if SYSTEM_TAR:
        subprocess.run([SYSTEM_TAR, "xf", shard, "-C", tmp_path], check=True)
        assert (tmp_path / LONG).read_bytes() == (videos / LONG).read_bytes()


def test_a_shard_is_found_by_its_table_and_equal_videos_make_equal_shards(shard, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(tar_table, "_scan", None)
    for name in NAMES:
        assert exists(str(shard / name)) and Listing().has(str(shard / name))
    write_shard(tmp_path / "again.tar", [(name, videos / name) for name in NAMES])
    assert (tmp_path / "again.tar").read_bytes() == shard.read_bytes()


@pytest.mark.skipif(SYSTEM_TAR is None, reason="needs tar")
@pytest.mark.parametrize("kind", ["v7", "ustar", "gnu", "oldgnu", "pax"])
@pytest.mark.parametrize("start", ["", "./"])
def test_tar_files_of_gnu_tar(videos, tmp_path, kind, start):
    short = kind in ("v7", "ustar")  # which hold no such names
    names = [name for name in NAMES if not (short and name == LONG)]
    command = [SYSTEM_TAR, f"--format={kind}", "-C", videos, "-cf", tmp_path / "x.tar"]
    subprocess.run([*command, *[f"{start}{name}" for name in names]], check=True)
    check(tmp_path / "x.tar", videos, names)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_files_of_python_with_other_things_in_them(videos, tmp_path, kind):
    """As webdataset has them: 000123.mp4 beside 000123.cls."""
    header = {"pax_headers": {"comment": "of all"}} if kind == tarfile.PAX_FORMAT else {}
    with tarfile.open(tmp_path / "x.tar", "w", format=kind, **header) as tar:
        for name in NAMES[:2] + NAMES[3:]:
            tar.add(videos / name, name)
            info = tarfile.TarInfo(name.replace(".mp4", ".cls"))
            info.size = 1
            tar.addfile(info, io.BytesIO(b"7"))
    check(tmp_path / "x.tar", videos, NAMES[:2] + NAMES[3:])


def test_of_two_members_of_one_name_the_last_counts(videos, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(videos / NAMES[0], "a.mp4")
        tar.add(videos / NAMES[1], "./a.mp4")
    with open_video(tmp_path / "x.tar/a.mp4") as video:
        assert video.num_frames == 21


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".ts", ".mpg", ".h264", ".gif", ".webm"])
def test_every_kind_of_file_is_the_same_in_a_tar_file(tmp_path, suffix):
    codec = {".avi": "mpeg4", ".mpg": "mpeg2video", ".gif": "gif", ".webm": "libvpx-vp9"}.get(suffix, "libx264")
    frames = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3), np.uint8)
    write_video(tmp_path / f"v{suffix}", frames, codec, "rgb8" if suffix == ".gif" else "yuv420p")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("before", "v", "after"):
            tar.add(tmp_path / f"v{suffix}", f"{name}{suffix}")
    expected = facts_of(tmp_path / f"v{suffix}").as_row()
    assert facts_of(tmp_path / f"x.tar/v{suffix}").as_row() == expected
    with open_video(tmp_path / f"x.tar/v{suffix}") as member, open_video(tmp_path / f"v{suffix}") as file:
        wanted = range(file.num_frames)
        assert np.array_equal(member.read(wanted, (48, 64)), file.read(wanted, (48, 64)))


def test_decord_reads_members(shard, videos):
    pytest.importorskip("decord")
    for name in NAMES:
        with open_video(shard / name, "decord") as member, open_video(videos / name, "decord") as file:
            assert np.array_equal(member.read([0, 9, 19], (48, 64)), file.read([0, 9, 19], (48, 64)))


def test_torchcodec_reads_members(shard, videos):
    pytest.importorskip("torchcodec")
    with open_video(shard / NAMES[0], "torchcodec") as member, open_video(videos / NAMES[0], "torchcodec") as file:
        assert np.array_equal(member.read([0, 9, 19], (48, 64)), file.read([0, 9, 19], (48, 64)))


def test_a_folder_called_tar_is_a_folder(videos, tmp_path):
    shutil.copytree(videos, tmp_path / "x.tar")
    assert split_member(str(tmp_path / "x.tar/a/1.mp4")) is None
    with open_video(tmp_path / "x.tar/a/1.mp4") as video:
        assert video.num_frames == 20
    write_shard(tmp_path / "x.tar/y.tar", [("z.tar/1.mp4", videos / NAMES[0])])
    assert split_member(str(tmp_path / "x.tar/y.tar/z.tar/1.mp4")) == (str(tmp_path / "x.tar/y.tar"), "z.tar/1.mp4")
    assert exists(str(tmp_path / "x.tar/y.tar/z.tar/1.mp4"))


def refused(path) -> str:
    """Returns why a member is not read, which all ways of asking agree on."""
    assert not exists(str(path)) and not Listing().has(str(path))
    with pytest.raises(DecodeError) as error:
        open_video(path)
    assert reason_in_tar(str(path)) == f" ({error.value.reason})"
    return error.value.reason


def test_what_a_tar_file_lacks(shard, videos, tmp_path):
    assert refused(shard / "a/nothing.mp4") == "the tar file shard_00000.tar holds no a/nothing.mp4"
    (tmp_path / "text.tar").write_text("no tar file" * 100)
    assert refused(tmp_path / "text.tar/a.mp4").startswith("text.tar is no tar file")
    (tmp_path / "empty.tar").touch()
    assert "empty.tar is" in refused(tmp_path / "empty.tar/a.mp4")
    for name in ("x.tar", "x.tar.gz", "x.tgz"):
        (tmp_path / name).write_bytes(gzip.compress(shard.read_bytes()))
        assert refused(tmp_path / name / NAMES[0]) == (
            f"{name} is compressed (gzip); members are read in place, which takes an uncompressed tar file"
        )


def test_a_tar_file_itself_and_folders_in_it_are_no_videos(shard, videos, tmp_path):
    for tar in (shard, tmp_path / "gnu.tar"):
        with tarfile.open(tmp_path / "gnu.tar", "w") as opened:
            opened.add(videos, "./")
            opened.add(videos / NAMES[0], "frames/of/0.jpg")
        reason = f"{tar.name} is a tar file: name a member of it, {tar.name}/CLASS/name.mp4"
        assert reason_in_tar(f"{tar}/") == reason_in_tar(f"{tar}/.") == f" ({reason})" and not exists(f"{tar}/")
        assert refused(tar / "a") == f"in {tar.name} it is a folder, which is not read"
        assert how_to_name_members(str(tar)) == f"{tar} is a tar file: name a member of it, {tar}/CLASS/name.mp4."
    assert refused(tmp_path / "gnu.tar/frames/of") == "in gnu.tar it is a folder, which is not read"
    (tmp_path / "folder.tar").mkdir()
    for path in (f"{shard}/{NAMES[0]}", f"{tmp_path}/folder.tar", f"{tmp_path}/none.tar", str(videos / NAMES[0])):
        assert how_to_name_members(path) == ""


def test_what_is_missing_and_what_cannot_be_read(shard, videos, tmp_path):
    (tmp_path / "gzip.tar").write_bytes(gzip.compress(shard.read_bytes()))
    (tmp_path / "cut.tar").write_bytes(shard.read_bytes()[: videos.joinpath(NAMES[0]).stat().st_size + 1500])
    paths = [shard / NAMES[0], shard / "a", tmp_path / "gzip.tar/a.mp4", tmp_path / "cut.tar" / NAMES[3], videos]
    assert not any(is_missing(str(path)) for path in paths)
    paths = [shard / "none.mp4", tmp_path / "none.tar/a.mp4", tmp_path / "none.mp4", shard / "a/none/none.mp4"]
    assert all(is_missing(str(path)) for path in paths)


def test_what_is_no_plain_file_is_not_read(videos, tmp_path):
    secret = tmp_path / "secret.mp4"
    shutil.copy(videos / NAMES[0], secret)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind, target in (
            ("symbolic.mp4", tarfile.SYMTYPE, str(secret)),
            ("hard.mp4", tarfile.LNKTYPE, "a.mp4"),
            ("folder", tarfile.DIRTYPE, ""),
            ("pipe.mp4", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("nothing.mp4"))
        tar.add(videos / NAMES[0], "a.mp4")
    assert refused(tmp_path / "x.tar/symbolic.mp4") == "in x.tar it is a symbolic link, which is not read"
    assert refused(tmp_path / "x.tar/hard.mp4") == "in x.tar it is a hard link, which is not read"
    assert refused(tmp_path / "x.tar/folder") == "in x.tar it is a folder, which is not read"
    assert refused(tmp_path / "x.tar/pipe.mp4") == "in x.tar it is no regular file, which is not read"
    with pytest.raises(DecodeError, match="it holds no bytes"):
        open_video(tmp_path / "x.tar/nothing.mp4")


@pytest.mark.skipif(SYSTEM_TAR is None, reason="needs tar")
def test_members_with_holes_are_not_read(tmp_path):
    with open(tmp_path / "holes.mp4", "wb") as file:
        file.truncate(2**22)
        file.seek(2**20)
        file.write(b"x" * 10)
    for kind in ("gnu", "pax"):
        command = [SYSTEM_TAR, "-S", f"--format={kind}", "-C", tmp_path, "-cf", tmp_path / f"{kind}.tar", "holes.mp4"]
        subprocess.run(command, check=True)
        if os.path.getsize(tmp_path / f"{kind}.tar") > 2**20:
            pytest.skip("this file system knows no holes")
        assert "stored with holes (sparse)" in refused(tmp_path / f"{kind}.tar/holes.mp4")


@pytest.mark.parametrize("written", [True, False])
def test_a_shard_that_is_cut_short(shard, videos, written):
    if not written:
        with tarfile.open(shard, "w") as tar:
            for name in NAMES:
                tar.add(videos / name, name)
    with tarfile.open(shard) as tar:
        second, third = (tar.getmember(name) for name in NAMES[1:3])
    whole, cuts = shard.read_bytes(), {second.offset_data + 100: 1, second.offset: 1, third.offset + 600: 2}
    for size, left in cuts.items():
        shard.write_bytes(whole[:size])
        check(shard, videos, NAMES[:left])
        reasons = [refused(shard / name) for name in NAMES[left:]]
        assert all("is cut short" in reason for reason in reasons)
        assert f"holds no {NAMES[3]}" in reasons[-1]
    end = second.offset_data + second.size
    shard.write_bytes(whole[: end - 1])
    assert refused(shard / NAMES[1]) == (
        f"in shard_00000.tar it is cut short: the tar file ends after {end - 1} bytes, this video would end after {end}"
    )


def test_a_damaged_header_ends_what_can_be_read_where_no_table_helps(shard, videos):
    with tarfile.open(shard.with_name("plain.tar"), "w") as tar:
        for name in NAMES:
            tar.add(videos / name, name)
    for file in (shard, shard.with_name("plain.tar")):
        with tarfile.open(file) as tar:
            second = tar.getmember(NAMES[1])
        data = bytearray(file.read_bytes())
        data[second.offset : second.offset + 600] = b"\x07" * 600
        file.write_bytes(data)
        with open_video(file / NAMES[0]) as video:
            assert video.num_frames == 20
        for name in NAMES[1:] if file != shard else NAMES[1:2]:
            with pytest.raises(DecodeError) as error:
                open_video(file / name)
            why = f"{file.name} is damaged (invalid header at byte {second.offset}), and up to there it holds no {name}"
            assert error.value.reason == why
    for i, name in enumerate(NAMES[2:]):  # which the table knows
        with open_video(shard / name) as video:
            assert video.num_frames == 22 + i


@pytest.mark.parametrize("filling", [b"\xff", b"\x01", b"\x00"])
def test_a_damaged_table_is_not_believed(shard, videos, filling):
    whole = shard.read_bytes()
    footer = whole.index(TABLE_MAGIC)
    with tarfile.open(shard) as tar:
        table = tar.getmember(TABLE_MEMBER)
    keys = [(table.offset_data + i * ENTRY.size, 8) for i in range(len(NAMES))]
    headers = [(start + 8, 8) for start, _ in keys]
    own = [(table.offset, 512)], [(table.offset + 124, 11)]
    footers = [(footer, 8)], [(footer + 16, 16)], [(footer + 24, 8)], [(footer + 32, 4)]
    for damage in (*footers, *own, keys, headers):
        data = bytearray(whole)
        for start, length in damage:
            data[start : start + length] = filling * length
        shard.write_bytes(data)
        check(shard, videos)


def test_a_table_that_leads_to_another_member_or_into_one_is_not_believed(shard, videos):
    """As after a copy that kept the table of another shard; its checksum is right."""
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        members, table = [tar.getmember(name) for name in NAMES], tar.getmember(TABLE_MEMBER).offset_data
    key_of = {ENTRY.unpack_from(whole, table + i * ENTRY.size)[1]: i for i in range(len(NAMES))}
    places = [table + key_of[member.offset] * ENTRY.size + 8 for member in members]
    others = [[b.offset for b in (*members[1:], members[0])], [b.offset_data for b in members], [2**63] * 4]
    for wrong in [*others, [len(whole) - 1] * 4, [3] * 4]:
        data = bytearray(whole)
        for place, offset in zip(places, wrong, strict=True):
            data[place : place + 8] = offset.to_bytes(8, "little")
        crc = zlib.crc32(data[table : table + len(NAMES) * ENTRY.size])
        footer = whole.index(TABLE_MAGIC)
        data[footer + 32 : footer + 36] = crc.to_bytes(4, "little")
        shard.write_bytes(data)
        check(shard, videos)


@pytest.mark.skipif(SYSTEM_TAR is None, reason="needs tar")
def test_a_shard_that_a_member_was_taken_from(shard, videos):
    subprocess.run([SYSTEM_TAR, "--delete", "-f", shard, NAMES[1]], check=True)
    check(shard, videos, [NAMES[0], *NAMES[2:]])
    assert refused(shard / NAMES[1]) == f"the tar file {shard.name} holds no {NAMES[1]}"


@pytest.mark.skipif(SYSTEM_TAR is None, reason="needs tar")
def test_a_shard_that_something_was_added_to(shard, videos, tmp_path):
    shutil.copy(videos / NAMES[1], tmp_path / "more.mp4")
    subprocess.run([SYSTEM_TAR, "-C", tmp_path, "-rf", shard, "more.mp4"], check=True)
    check(shard, videos)
    with open_video(shard / "more.mp4") as video:
        assert video.num_frames == 21


def test_a_shard_behind_another_tar_file(shard, videos, tmp_path):
    with tarfile.open(tmp_path / "first.tar", "w") as tar:
        tar.add(videos / NAMES[0], "a.mp4")
    (tmp_path / "x.tar").write_bytes((tmp_path / "first.tar").read_bytes() + shard.read_bytes())
    assert exists(str(tmp_path / "x.tar/a.mp4")) and Listing().has(str(tmp_path / "x.tar/a.mp4"))
    assert refused(tmp_path / "x.tar" / NAMES[1]) == f"the tar file x.tar holds no {NAMES[1]}"


@pytest.mark.parametrize("written", [True, False])
def test_a_tar_file_that_is_replaced_is_looked_at_anew(videos, tmp_path, written):
    def make(names):
        if written:
            write_shard(tmp_path / "new", [(f"{i}.mp4", videos / name) for i, name in enumerate(names)])
        else:
            with tarfile.open(tmp_path / "new", "w") as tar:
                for i, name in enumerate(names):
                    tar.add(videos / name, f"{i}.mp4")
        os.replace(tmp_path / "new", tmp_path / "x.tar")

    index = VideoIndex(tmp_path / "index")
    for names in (NAMES, NAMES[::-1], NAMES[2:3]):
        make(names)
        for i, name in enumerate(names):
            with open_video(tmp_path / f"x.tar/{i}.mp4", index=index) as video:
                assert video.num_frames == 20 + NAMES.index(name)
        index.merge()
    assert "holds no 1.mp4" in refused(tmp_path / "x.tar/1.mp4")


def test_an_index_knows_members(shard, videos, tmp_path, monkeypatch):
    from nlvideo.data.decoding.pyav_video import PyavVideo

    index = VideoIndex(tmp_path / "index")
    for name in NAMES:
        open_video(shard / name, index=index).close()
    index.merge()
    monkeypatch.setattr(PyavVideo, "_read_index", None)
    for i, name in enumerate(NAMES):
        with open_video(shard / name, index=VideoIndex(tmp_path / "index")) as video:
            assert frame_numbers(video.read([3, 19 + i], (48, 64))) == [3, 19 + i]


def test_an_index_does_not_believe_a_shard_that_was_packed_anew_with_the_same_time_and_sizes(videos, tmp_path):
    """Two videos of one size change places, and nothing but where they begin tells."""
    contents = [(videos / name).read_bytes() for name in NAMES[:2]]
    size = max(map(len, contents)) + 8
    for i, content in enumerate(contents):  # what follows the last box of an MP4 is a box that is not needed
        free = size - len(content)
        (tmp_path / f"{i}.mp4").write_bytes(content + free.to_bytes(4, "big") + b"free" + bytes(free - 8))
    tar, index = tmp_path / "x.tar", VideoIndex(tmp_path / "index")
    write_shard(tar, [("a.mp4", tmp_path / "0.mp4"), ("b.mp4", tmp_path / "1.mp4")])
    before = os.stat(tar)
    for name, count in (("a.mp4", 20), ("b.mp4", 21)):
        with open_video(tar / name, index=index) as video:
            assert video.num_frames == count
    old = index.state(tar / "a.mp4")
    write_shard(tmp_path / "new.tar", [("b.mp4", tmp_path / "0.mp4"), ("a.mp4", tmp_path / "1.mp4")])
    os.replace(tmp_path / "new.tar", tar)
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))
    new = index.state(tar / "a.mp4")
    assert new.start != old.start and new == old._replace(start=new.start)
    for name, count in (("a.mp4", 21), ("b.mp4", 20)):
        with open_video(tar / name, index=index) as video:
            assert video.num_frames == count
            assert frame_numbers(video.read([count - 1], (48, 64))) == [count - 1]


def _count(path):
    with open_video(path) as video:
        return video.num_frames


@pytest.mark.parametrize("method", [m for m in ("fork", "spawn") if m in multiprocessing.get_all_start_methods()])
def test_workers_read_members(shard, videos, method):
    with tarfile.open(shard.with_name("plain.tar"), "w") as tar:
        tar.add(videos / NAMES[0], "a.mp4")
    assert exists(f"{shard.parent}/plain.tar/a.mp4")  # what a fork takes along
    with multiprocessing.get_context(method).Pool(2) as pool:
        counts = pool.map(_count, [str(shard / name) for name in NAMES] + [f"{shard.parent}/plain.tar/a.mp4"] * 3)
    assert counts == [20, 21, 22, 23, 20, 20, 20]
