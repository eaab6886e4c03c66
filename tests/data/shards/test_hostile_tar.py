"""Damaged tar files, and such that were made to do harm: the member, or one line of reason soon."""

import os
import random
import tarfile
import time
import tracemalloc
from io import BytesIO

import pytest

from nlvideo.data.shards.shard_writing import write_shard
from nlvideo.data.shards.tar_headers import MOST_EXTENSIONS
from nlvideo.data.shards.tar_table import FOOTER, TABLE_MAGIC
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
    length = next(n for n in range(10_000) if len(f"{n} {text}\n".encode()) == n)
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


def reason(path) -> str:
    """Why a member is not read: one line, which all ways of asking agree on, soon and in little memory."""
    tracemalloc.start()
    begun = time.monotonic()
    try:
        assert not exists(str(path)) and not Listing().has(str(path))
        with pytest.raises(OSError) as error:
            file_status(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * MOST_EXTENSIONS and time.monotonic() - begun < 1
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
    "a map of holes without end": header("a.mp4", 512, tarfile.GNUTYPE_SPARSE)[:482] + b"\1" * 5000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_stands_before_harm_is_read_and_the_rest_refused(tmp_path, name):
    tar = tmp_path / "x.tar"
    tar.write_bytes(GOOD + HOSTILE[name] + END)
    why = reason(tar / "a.mp4")
    assert why.startswith(("x.tar is damaged (", "x.tar is cut short: ")) and why.endswith(
        "up to there it holds no a.mp4"
    )
    with open_bytes(str(tar / "good.mp4")) as file:
        assert file.read() == b"good"
    assert Listing().has(str(tar / "good.mp4"))
    tar.write_bytes(HOSTILE[name] + END)
    assert reason(tar / "a.mp4").startswith(("x.tar is damaged (", "x.tar is cut short: ", "x.tar is no tar file ("))


@pytest.mark.parametrize("size", [1 << 40, 1 << 62, 1 << 80])
def test_a_file_larger_than_its_tar_file(tmp_path, size):
    tar = tmp_path / "x.tar"
    tar.write_bytes(GOOD + header("a.mp4", size) + END)
    assert reason(tar / "a.mp4").startswith("in x.tar it is cut short: the tar file ends after ")
    assert file_status(tar / "good.mp4").size == 4


@pytest.mark.parametrize("start", [0, 511, 2**63, 2**64 - 1])
@pytest.mark.parametrize("count", [0, 2**40, 2**64 - 1])
def test_a_footer_that_leads_anywhere(tmp_path, start, count):
    tar = tmp_path / "x.tar"
    tar_of(tmp_path, None, tar)
    data = bytearray(tar.read_bytes())
    FOOTER.pack_into(data, data.index(TABLE_MAGIC), TABLE_MAGIC, start, count, 0)
    tar.write_bytes(data)
    assert reason(tar / "no.mp4") == "the tar file x.tar holds no no.mp4"
    with open_bytes(str(tar / NAMES[0])) as file:
        assert file.read() == CONTENTS[0]


@pytest.mark.parametrize("kind", [None, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_of_a_damaged_tar_file_is_right_or_refused(tmp_path, kind):
    """Bytes are changed at random, or the end is cut off. What is read is what stands in the member's place."""
    tar, rng, refused = tmp_path / "x.tar", random.Random(0), 0
    tar_of(tmp_path, kind, tar)
    whole = tar.read_bytes()
    with tarfile.open(tar) as opened:
        places = {m.name: (m.offset_data, m.offset_data + m.size) for m in opened if m.name in NAMES}
    used = [i for i in range(len(whole)) if any(whole[max(i - 20, 0) : i + 20])]  # not the zeros between and behind
    begun = time.monotonic()
    for case in range(80):
        data = bytearray(whole)
        for place in rng.choices(used, k=rng.choice([1, 1, 2, 30])):
            data[place] = rng.randrange(256)
        if case % 4 == 0:
            del data[rng.randrange(len(data)) :]
        tar.write_bytes(data)
        for name, (start, stop) in places.items():
            path = str(tar / name)
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
    assert 20 < refused < 300 and time.monotonic() - begun < 5


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
