"""Damaged tar files, and such that were made to do harm: the member, or one line of reason soon."""

import os
import random
import tarfile
import tracemalloc
from io import BytesIO

import pytest

from nlvideo.data.shards import tar_headers, tar_table
from nlvideo.data.shards.shard_writing import write_shard
from nlvideo.data.shards.tar_headers import BLOCK, LONGEST_NAME, MOST_EXTENSIONS, NO_CONTENT, SPARSE, member_at
from nlvideo.data.shards.tar_table import FOOTER, TABLE_MAGIC, scanned
from nlvideo.data.shards.video_file import Listing, exists, file_status, open_bytes, reason_in_tar

NAMES = ["a/1.mp4", f"{'long ' * 30}/2.mp4", "é 3.mp4", "4.mp4"]
CONTENTS = [bytes([i]) * (300 * i) for i in range(1, 5)]


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, content: bytes = b"") -> bytes:
    """A header with what follows it, filled up to whole blocks."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size or len(content), kind
    return info.tobuf(tarfile.GNU_FORMAT) + content.ljust(-(-len(content) // 512) * 512, b"\0")


def pax(*records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header("pax", kind=kind, content=b"".join(records))


def record(text: str) -> bytes:
    length = next(n for n in range(100_000) if len(f"{n} {text}\n".encode()) == n)
    return f"{length} {text}\n".encode()


def tar_of(folder, kind, file):
    for name, content in zip(NAMES, CONTENTS, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if kind is None:
        write_shard(file, [(name, folder / name) for name in NAMES])
        return
    with tarfile.open(file, "w", format=kind) as tar:
        for name in NAMES:
            tar.add(folder / name, name)


@pytest.fixture(autouse=True)
def reading(monkeypatch):
    """Counts the bytes that are read of tar files, and ends what reads without end."""
    plain, counted = tar_headers.read_at, {"bytes": 0, "limit": 1 << 40}

    def read_at(file, offset, length):
        data = plain(file, offset, length)
        counted["bytes"] += len(data) or BLOCK  # nothing is counted too
        assert counted["bytes"] <= counted["limit"]
        return data

    def begin(file):
        """Lets what follows read a tar file and its table a few times."""
        counted.update(bytes=0, limit=4 * os.path.getsize(file) + 64 * BLOCK)

    for module in (tar_headers, tar_table):
        monkeypatch.setattr(module, "read_at", read_at)
    return begin


def reason(path, reading) -> str:
    """Why a member is not read: one line, which all ways of asking agree on, after little reading in little memory."""
    reading(path.parent)
    tracemalloc.start()
    try:
        assert not exists(str(path)) and not Listing().has(str(path))
        with pytest.raises(OSError) as error:
            file_status(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * MOST_EXTENSIONS
    finally:
        tracemalloc.stop()
    assert reason_in_tar(str(path)) == f" ({error.value.strerror})" and "\n" not in error.value.strerror
    return error.value.strerror


GOOD = header("good.mp4", content=b"good")
FILE = header("a.mp4", content=b"content")
END = bytes(10240)
HOSTILE = {
    "a pax size below zero": pax(record("size=-1536")) + FILE,
    "a pax size that is no number": pax(record("size=1e9")) + FILE,
    "a pax size of many digits": pax(record(f"size={'9' * 5000}")) + FILE,
    "a size below zero": header("pax", -1536, tarfile.XHDTYPE) + FILE,
    "a long name of a size below zero": header("name", -1536, tarfile.GNUTYPE_LONGNAME) + FILE,
    "a file of a size below zero": header("a.mp4", -1536) + FILE,
    "a pax header of a terabyte": header("pax", 1 << 40, tarfile.XHDTYPE) + FILE,
    "a long name of a terabyte": header("name", 1 << 40, tarfile.GNUTYPE_LONGNAME) + FILE,
    "a long name of 2 MB": header("name", kind=tarfile.GNUTYPE_LONGNAME, content=b"a" * 2_000_000) + FILE,
    "a thousand pax headers of one member": pax(record("mtime=1")) * 1100 + FILE,
    "long names of nothing": header("name", kind=tarfile.GNUTYPE_LONGNAME) * 3000 + FILE,
    "pax headers for all without end": pax(record("path=b"), kind=tarfile.XGLTYPE) * 1100 + FILE,
    "a pax record of no bytes": pax(b"0 path=b.mp4\n") + FILE,
    "a pax record longer than its header": pax(b"99 path=b.mp4\n") + FILE,
    "a pax record without length": pax(b"path=b.mp4\n") + FILE,
    "a pax record of many digits": pax(b"0" * 5000 + b"13 path=b.mp4\n") + FILE,
    "a pax header and the end": pax(record("path=a.mp4")),
    "a name of 20 kB": pax(record(f"path={'a' * 20_000}")) + FILE,
    "a map of holes without end": header("a.mp4", 512, tarfile.GNUTYPE_SPARSE)[:482] + b"\1" * 5000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_stands_before_harm_is_read_and_the_rest_refused(tmp_path, reading, name):
    tar = tmp_path / "x.tar"
    tar.write_bytes(GOOD + HOSTILE[name] + END)
    why = reason(tar / "a.mp4", reading)
    assert why.startswith(("x.tar is damaged (", "x.tar is cut short: ")) and why.endswith(
        "up to there it holds no a.mp4"
    )
    with open_bytes(str(tar / "good.mp4")) as file:
        assert file.read() == b"good"
    assert Listing().has(str(tar / "good.mp4"))
    tar.write_bytes(HOSTILE[name] + END)
    assert reason(tar / "a.mp4", reading).startswith(
        ("x.tar is damaged (", "x.tar is cut short: ", "x.tar is no tar file (")
    )


@pytest.mark.parametrize("size", [1 << 40, 1 << 62, 1 << 80])
def test_a_file_larger_than_its_tar_file(tmp_path, reading, size):
    tar = tmp_path / "x.tar"
    tar.write_bytes(GOOD + header("a.mp4", size) + END)
    assert reason(tar / "a.mp4", reading).startswith("in x.tar it is cut short: the tar file ends after ")
    assert file_status(tar / "good.mp4").size == 4


@pytest.mark.parametrize("start", [0, 511, 2**63, 2**64 - 1])
@pytest.mark.parametrize("count", [0, 2**40, 2**64 - 1])
def test_a_footer_that_leads_anywhere(tmp_path, reading, start, count):
    tar = tmp_path / "x.tar"
    tar_of(tmp_path, None, tar)
    data = bytearray(tar.read_bytes())
    FOOTER.pack_into(data, data.index(TABLE_MAGIC), TABLE_MAGIC, start, count, 0)
    tar.write_bytes(data)
    assert reason(tar / "no.mp4", reading) == "the tar file x.tar holds no no.mp4"
    with open_bytes(str(tar / NAMES[0])) as file:
        assert file.read() == CONTENTS[0]


@pytest.mark.parametrize("kind", [None, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_of_a_damaged_tar_file_is_right_or_refused(tmp_path, reading, kind):
    """Bytes are changed at random, or the end is cut off. What is read is what stands in the member's place."""
    tar, rng, refused = tmp_path / "x.tar", random.Random(0), 0
    tar_of(tmp_path, kind, tar)
    whole = tar.read_bytes()
    with tarfile.open(tar) as opened:
        places = {m.name: (m.offset_data, m.offset_data + m.size) for m in opened if m.name in NAMES}
    used = [i for i in range(len(whole)) if any(whole[max(i - 20, 0) : i + 20])]  # not the zeros between and behind
    for case in range(80):
        data = bytearray(whole)
        for place in rng.choices(used, k=rng.choice([1, 1, 2, 30])):
            data[place] = rng.randrange(256)
        if case % 4 == 0:
            del data[rng.randrange(len(data)) :]
        tar.write_bytes(data)
        for name, (start, stop) in places.items():
            path = str(tar / name)
            reading(tar)
            try:
                status = file_status(path)
            except OSError as error:
                refused += 1
                assert error.strerror and "\n" not in error.strerror and tar.name in error.strerror
                assert not exists(path)
                continue
            assert (status.start, status.start + status.size) == (start, stop) and stop <= len(data)
            with open_bytes(path) as file:
                assert file.read() == data[start:stop]
            assert exists(path)
        Listing().has(path)
    assert 20 < refused < 300


def test_what_tarfile_reads_is_read(tmp_path):
    """Records for all members, records that override them, and names in two ways."""
    tar = tmp_path / "x.tar"
    long = header("name", kind=tarfile.GNUTYPE_LONGNAME, content=b"z/long.mp4\0")
    other = pax(record("path=b.mp4"), record("comment=a=b"), record("size=3"))
    all_of = pax(record("mtime=5"), record("uname=a"), kind=tarfile.XGLTYPE)
    tar.write_bytes(
        all_of + GOOD + long + FILE + other + header("x", content=b"abc") + header("c.mp4", content=b"c") + END
    )
    with tarfile.open(fileobj=BytesIO(tar.read_bytes())) as opened:
        expected = {member.name: opened.extractfile(member).read() for member in opened}
    assert list(expected) == ["good.mp4", "z/long.mp4", "b.mp4", "c.mp4"]
    for name, content in expected.items():
        with open_bytes(os.path.join(tar, name)) as file:
            assert file.read() == content


def test_pax_records_for_all_give_name_and_size(tmp_path):
    tar = tmp_path / "x.tar"
    all_of = pax(record("path=g.mp4"), record("size=2"), kind=tarfile.XGLTYPE)
    tar.write_bytes(all_of + header("x", content=b"abc") + END)
    with tarfile.open(tar) as opened:
        (member,) = opened
        assert (member.name, opened.extractfile(member).read()) == ("g.mp4", b"ab")
    with open_bytes(str(tar / "g.mp4")) as file:
        assert file.read() == b"ab"
    assert "holds no x" in reason_in_tar(str(tar / "x"))


def test_of_many_records_for_all_only_those_of_names_and_sizes_are_kept():
    records = [record(f"GNU.sparse.{i}=1") + record(f"comment{i}=1") for i in range(1000)]
    all_of = pax(
        *records, record("GNU.sparse.name=s.mp4"), record("path=p.mp4"), record("size=3"), kind=tarfile.XGLTYPE
    )
    kept = {}
    member = member_at(BytesIO(all_of + FILE), 0, kept)
    assert (member.name, member.size, member.kind) == (b"s.mp4", 3, SPARSE)
    assert kept == {b"sparse": b"", b"GNU.sparse.name": b"s.mp4", b"path": b"p.mp4", b"size": b"3"}


@pytest.mark.parametrize("length", [LONGEST_NAME, LONGEST_NAME + 1])
def test_a_name_has_so_many_bytes_at_most(tmp_path, length):
    tar, name = tmp_path / "x.tar", "/".join(["a" * 127] * (LONGEST_NAME // 128)) + "/"
    tar.write_bytes(pax(record(f"path={name[: length - 1].ljust(length, 'b')}")) + FILE + END)
    assert bool(scanned(str(tar)).problem) == (length > LONGEST_NAME) != bool(len(scanned(str(tar)).keys))


@pytest.mark.parametrize("kind", sorted(NO_CONTENT))
def test_what_has_no_content_has_none_whatever_size_it_gives(tmp_path, kind):
    tar = tmp_path / "x.tar"
    tar.write_bytes(header("other", 5000, kind) + FILE + END)
    with open_bytes(str(tar / "a.mp4")) as file:
        assert file.read() == b"content"


@pytest.mark.parametrize("num_maps", [0, 1, 3])
def test_what_follows_a_member_with_holes_is_read(tmp_path, num_maps):
    """Maps of holes of old GNU tar continue in blocks of their own before the content."""
    block = bytearray(header("holes.mp4", BLOCK, tarfile.GNUTYPE_SPARSE))
    block[482], block[148:156] = num_maps > 0, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    maps = b"".join(bytes(504) + bytes([i < num_maps]) + bytes(7) for i in range(1, num_maps + 1))
    tar = tmp_path / "x.tar"
    tar.write_bytes(block + maps + b"x" * BLOCK + FILE + END)
    with open_bytes(str(tar / "a.mp4")) as file:
        assert file.read() == b"content"
    assert f"in x.tar it is {SPARSE}" in reason_in_tar(str(tar / "holes.mp4"))


def test_of_a_file_and_a_link_of_one_name_the_last_counts(tmp_path):
    link = header("a.mp4", kind=tarfile.SYMTYPE)
    (tmp_path / "link.tar").write_bytes(FILE + link + END)
    (tmp_path / "file.tar").write_bytes(link + FILE + END)
    assert "it is a symbolic link" in reason_in_tar(str(tmp_path / "link.tar/a.mp4"))
    assert exists(str(tmp_path / "file.tar/a.mp4")) and scanned(str(tmp_path / "file.tar")).others == {}


@pytest.mark.parametrize("changes", ["mtime", "inode"])
def test_a_tar_file_of_the_same_size_is_read_again_if_its_time_or_its_file_is_another(tmp_path, changes):
    tar, new = tmp_path / "x.tar", FILE.replace(b"content", b"another")
    tar.write_bytes(GOOD + FILE + END)
    os.utime(tar, ns=(5, 5))
    assert exists(str(tar / "good.mp4"))
    other = tar if changes == "mtime" else tmp_path / "new"
    other.write_bytes(new + GOOD + END)
    os.utime(other, ns=(5, 6 if changes == "mtime" else 5))
    os.replace(other, tar)
    with open_bytes(str(tar / "a.mp4")) as file:
        assert file.read() == b"another"


def changed(data: bytearray, offset: int, **fields) -> None:
    """Changes fields of a header, whose checksum stays right."""
    info = tarfile.TarInfo.frombuf(bytes(data[offset : offset + BLOCK]), "utf-8", "surrogateescape")
    for name, value in fields.items():
        setattr(info, name, value)
    data[offset : offset + BLOCK] = info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(
    ("fields", "why"),
    [({"size": 1 << 20}, "it is cut short: the tar file ends after"), ({"type": tarfile.SYMTYPE}, "a symbolic link")],
)
def test_what_a_table_leads_to_is_looked_at(tmp_path, fields, why):
    tar = tmp_path / "x.tar"
    tar_of(tmp_path, None, tar)
    data = bytearray(tar.read_bytes())
    changed(data, 0, **fields)
    tar.write_bytes(data)
    with pytest.raises(OSError, match=why):
        file_status(tar / NAMES[0])
    assert file_status(tar / NAMES[3]).size == len(CONTENTS[3])


def test_a_table_of_another_size_than_its_place_is_none(tmp_path):
    tar = tmp_path / "x.tar"
    tar_of(tmp_path, None, tar)
    with open(tar, "rb") as file:
        assert len(tar_table.written_entries(file)) == len(NAMES)
    with tarfile.open(tar) as opened:
        table = opened.getmember(tar_table.TABLE_MEMBER)
    data = bytearray(tar.read_bytes())
    changed(data, table.offset, size=table.size - BLOCK)
    tar.write_bytes(data)
    with open(tar, "rb") as file:
        assert tar_table.written_entries(file) is None


def test_a_member_is_sought_in_as_a_file_is(tmp_path):
    content, tar, rng = random.Random(1).randbytes(50_000), tmp_path / "x.tar", random.Random(0)
    tar.write_bytes(GOOD + header("a.mp4", content=content) + END)
    with open_bytes(str(tar / "a.mp4")) as file:
        plain = BytesIO(content)
        for _ in range(300):
            whence = rng.randrange(3)
            place = rng.randrange(60_000)
            offset = place - {0: 0, 1: plain.tell(), 2: len(content)}[whence]
            assert file.seek(offset, whence) == plain.seek(place) and file.tell() == place
            length = rng.randrange(20_000)
            assert file.read(length) == plain.read(length)
