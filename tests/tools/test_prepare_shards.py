"""prepare_videos.py --shards: what is packed where, also after a kill and by several machines."""

import csv
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import av
import pytest
from conftest import write_grey_video
from in_process import TOOLS, run_tool

from nlvideo.data.collections.packer import COMPARED, Packer, size_in_bytes
from nlvideo.data.decoding.opening import open_video
from nlvideo.data.lists.path_list import read_table
from nlvideo.data.shards.shard_writing import write_shard
from nlvideo.data.shards.video_file import exists, open_bytes
from nlvideo.runtime.errors import UserError

NAMES = [f"{'b' if i % 2 else 'a class, é'}/{'long ' * 30 if i == 3 else ''}v{i}.mp4" for i in range(8)]
SIZE = "10kB"  # of three videos or so


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eight videos, the sixth corrupt, and a list of them."""
    folder = tmp_path_factory.mktemp("source")
    for i, name in enumerate(NAMES):
        write_grey_video(folder / name, 20 + i, height=96, width=128)
    (folder / NAMES[5]).write_text("no video")
    (folder / "train.csv").write_text("".join(f'"{name}",{i % 2}\n' for i, name in enumerate(NAMES)))
    return folder


@pytest.fixture
def prepare(source, monkeypatch, capsys):
    def call(folder, *options, code=1):
        arguments = "prepare_videos.py", source, folder, "--list", "train.csv", *options
        done = run_tool(*arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return call


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The shards that one call makes."""
    folder = tmp_path_factory.mktemp("whole")
    command = [sys.executable, TOOLS / "prepare_videos.py", source, folder, "--list", "train.csv", "--shards", SIZE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "Invalid data" in done.stdout, done.stdout + done.stderr
    return folder


def rows_of(file):
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def shards_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def files_of(folder):
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".tar", ".lock")
    )


def test_a_list_names_the_members_of_shards(whole):
    table = read_table(str(whole), "train.csv", None)
    shown = [name for name in NAMES if name != NAMES[5]]
    assert [name.partition("/")[2] for name in table.names()] == shown
    assert table.check_files().note == table.note and table.targets.tolist() == [0, 1, 0, 1, 0, 0, 1]
    for i, name in enumerate(NAMES):
        if name in shown:
            with open_video(table.path(shown.index(name))) as video:
                assert (video.num_frames, video.height, video.width) == (20 + i, 96, 128)
    assert files_of(whole) == ["failed.csv", "prepared.csv", "train.csv"]
    members = []
    for name in sorted(shards_of(whole)):
        with tarfile.open(whole / name) as tar:
            members += tar.getnames()[:-1]
            assert sum(member.size for member in tar.getmembers()[:-1]) <= size_in_bytes(SIZE)
    assert members == shown and len(shards_of(whole)) > 2
    assert rows_of(whole / "failed.csv")[0]["video"] == NAMES[5]


def test_nothing_is_done_twice(whole, prepare):
    before = shards_of(whole), (whole / "train.csv").read_text()
    assert "100%" in prepare(whole, "--shards", SIZE)
    assert (shards_of(whole), (whole / "train.csv").read_text()) == before
    prepare(whole)  # without it too
    assert (shards_of(whole), (whole / "train.csv").read_text()) == before


def test_what_was_prepared_as_files_is_packed(whole, prepare, tmp_path):
    prepare(tmp_path)
    assert shards_of(tmp_path) == {} and (tmp_path / NAMES[0]).exists()
    prepare(tmp_path, "--shards", SIZE)
    assert shards_of(tmp_path) == shards_of(whole) and files_of(tmp_path) == files_of(whole)
    assert (tmp_path / "train.csv").read_text() == (whole / "train.csv").read_text()


def test_several_machines_make_shards_of_their_own(whole, prepare, tmp_path):
    prepare(tmp_path, "--shards", SIZE, "--shard", "1/2", code=0)
    prepare(tmp_path, "--shards", SIZE, "--shard", "2/2")
    made = shards_of(tmp_path)
    prepare(tmp_path, "--shards", SIZE)
    assert shards_of(tmp_path) == made and {name[:13] for name in made} == {"shard_1-of-2_", "shard_2-of-2_"}
    table = read_table(str(tmp_path), "train.csv", None)
    assert len(table) == 7 and all(exists(table.path(i)) for i in range(7))
    assert len(rows_of(tmp_path / "prepared.csv")) >= 8


def test_shards_are_prepared_anew_from_shards(whole, monkeypatch, capsys, tmp_path):
    arguments = "prepare_videos.py", whole, tmp_path / "again", "--list", "train.csv", "--short-side", "48"
    assert run_tool(*arguments, monkeypatch=monkeypatch, capsys=capsys).returncode == 0
    table = read_table(str(tmp_path / "again"), "train.csv", None)
    assert table.name(0) == f"shard_00000/{NAMES[0]}"
    with open_video(table.path(0)) as video:
        assert (video.num_frames, video.height) == (20, 48)


def test_check_videos_reads_members(whole, monkeypatch, capsys, tmp_path):
    (tmp_path / "list.csv").write_text((whole / "train.csv").read_text() + "shard_00000.tar/gone.mp4,0\n")
    arguments = "check_videos.py", whole, tmp_path / "out", "--list", tmp_path / "list.csv"
    done = run_tool(*arguments, "--index", "none", monkeypatch=monkeypatch, capsys=capsys)
    assert "shard_00000.tar/gone.mp4: the tar file shard_00000.tar holds no gone.mp4" in done.stdout
    rows = rows_of(tmp_path / "out/videos.csv")
    assert sum(not row["problem"] for row in rows) == 7 and len(rows) == 8
    assert (tmp_path / "out/list.csv").read_text() == (whole / "train.csv").read_text()


@pytest.mark.parametrize("size", ["1XB", "0GB", "GB", "-1MB", "1 2GB", "9" * 400])
def test_what_is_no_size_is_refused(prepare, tmp_path, size):
    assert f"--shards {size}: give a size, such as 1GB" in prepare(tmp_path, f"--shards={size}")


def test_sizes():
    sizes = {"1GB": 10**9, "1.5 gb": 15 * 10**8, "500M": 5 * 10**8, "10kB": 10**4, "7": 7, "12B": 12}
    assert {text: size_in_bytes(text) for text in sizes} == sizes
    with pytest.raises(UserError):
        size_in_bytes("one")


def test_files_with_odd_names_are_packed_after_a_kill(tmp_path, monkeypatch, capsys):
    names = [f"a{c}b/{i}{c}.mp4" for i, c in enumerate("\u2028\x85\x0b\x0c\n")]
    for i, name in enumerate(names):
        write_grey_video(tmp_path / "src" / name, 20 + i, height=96, width=128)

    def call(*options):
        arguments = "prepare_videos.py", tmp_path / "src", tmp_path / "dst", *options
        done = run_tool(*arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert done.returncode == 0, done.stdout + done.stderr

    call()
    monkeypatch.setattr("nlvideo.data.collections.worker_pool._Worker.give", None)  # nothing is encoded anew
    call("--shards", "1MB")
    call("--shards", "1MB")
    with tarfile.open(tmp_path / "dst/shard_00000.tar") as tar:
        assert tar.getnames()[:-1] == sorted(names)
    assert files_of(tmp_path / "dst") == ["prepared.csv"] and len(shards_of(tmp_path / "dst")) == 1


def test_a_part_is_the_same_in_any_form(prepare, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "made")
    assert "100%" in prepare(tmp_path / "made", "--shards", SIZE, "--shard", "01/1")
    assert shards_of(tmp_path / "made") == shards_of(whole) and files_of(tmp_path / "made") == files_of(whole)


def test_a_full_disk_is_one_line_and_the_same_command_resumes(prepare, whole, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("nlvideo.data.shards.shard_writing._add_table", full)
        text = prepare(tmp_path, "--shards", SIZE)
    line = f"error: {tmp_path}/shard_00000.tar cannot be written (No space left on device). Then the same command"
    assert line in text and not shards_of(tmp_path) and "Traceback" not in text
    monkeypatch.setattr("nlvideo.data.lists.list_writing._write_row", full)
    assert f"error: {tmp_path}/train.csv cannot be written (No space" in prepare(tmp_path, "--shards", SIZE)
    monkeypatch.undo()
    prepare(tmp_path, "--shards", SIZE)
    assert shards_of(tmp_path) == shards_of(whole) and files_of(tmp_path) == files_of(whole)


def test_what_killed_calls_leave_is_removed_but_nothing_of_other_parts(prepare, tmp_path):
    def left(name):
        path = (tmp_path / name).parent / f".{Path(name).name}.0123abcd.part"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half a video")
        return path

    mine = [left(NAMES[0]), left(NAMES[2]), left(NAMES[4]), left("prepared.1-of-2.csv"), left("failed.1-of-2.csv")]
    others = [left(NAMES[1]), left("b/other.mp4"), left("prepared.2-of-2.csv"), left("shard_2-of-2_00000.tar")]
    prepare(tmp_path, "--shards", SIZE, "--shard", "1/2", code=0)
    assert not any(path.exists() for path in mine) and all(path.exists() for path in others)
    assert not (tmp_path / "a class, é").exists()
    left(NAMES[0])  # beside a video that needs no work any more
    prepare(tmp_path, "--shards", SIZE, "--shard", "1/2", code=0)
    assert not (tmp_path / "a class, é").exists()
    others.remove(left("b/other.mp4"))
    left("b/other.mp4").unlink()
    prepare(tmp_path, "--shards", SIZE, "--shard", "2/2")
    assert not any(path.exists() for path in others)


def test_the_folder_of_a_video_that_is_being_made_is_not_empty(tmp_path, monkeypatch):
    """Another part of the job, which packs what is in it, would remove it."""
    encode_video = runpy.run_path(str(TOOLS / "prepare_videos.py"), run_name="tool")["encode_video"]
    seen = []

    def opened(path):
        seen.append(os.listdir(tmp_path / "dst/a"))
        raise RuntimeError

    monkeypatch.setitem(encode_video.__globals__, "PyavVideo", opened)
    with pytest.raises(RuntimeError):
        encode_video("a/v.mp4", src=tmp_path, dst=tmp_path / "dst", short_side=96)
    assert len(seen) == len(seen[0]) == 1 and os.listdir(tmp_path / "dst/a") == []


@pytest.mark.parametrize("shards", [True, False])
def test_a_folder_that_is_called_as_a_shard_is_none(tmp_path, monkeypatch, capsys, shards):
    names = ["shard_00000.tar/b.mp4", "shard_00002.tar/a.mp4", "z.mp4"]
    for i, name in enumerate(names):
        write_grey_video(tmp_path / "src" / name, 20 + i, height=96, width=128)
    (tmp_path / "dst/shard_00003.tar").mkdir(parents=True)

    def call(*options):
        arguments = "prepare_videos.py", tmp_path / "src", tmp_path / "dst", "--workers", "1", *options
        done = run_tool(*arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert done.returncode == 0, done.stdout + done.stderr

    if not shards:
        call()
    for _ in range(2):
        call("--shards", "1B")
    places = {row["video"]: row["prepared"] for row in rows_of(tmp_path / "dst/prepared.csv")}
    found = [f"shard_{number:05}.tar/{name}" for number, name in zip((1, 4, 5), names, strict=True)]
    assert list(places.items()) == list(zip(names, found, strict=True))
    assert sorted(path.name for path in (tmp_path / "dst").glob("*.tar")) == [
        f"shard_0000{i}.tar" for i in (1, 3, 4, 5)
    ]
    for i, name in enumerate(found):
        with open_video(tmp_path / "dst" / name) as video:
            assert video.num_frames == 20 + i


def test_a_file_is_removed_only_if_a_shard_has_its_very_bytes(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x" * (COMPARED + 9))
    write_shard(tmp_path / "shard_00000.tar", [("a.mp4", tmp_path / "a.mp4")])
    for content, packed in ((b"x" * COMPARED + b"another12", 1), (b"x" * (COMPARED + 9), 0), (b"x" * COMPARED, 2)):
        (tmp_path / "a.mp4").write_bytes(content)
        moved = []
        packer = Packer(tmp_path, "1/1", 1, ["a"], moved.append)
        packer.finish("a", "a.mp4")
        packer.close()
        assert not (tmp_path / "a.mp4").exists()
        shards = sorted(shards_of(tmp_path))
        assert moved == [{"a": f"{shards[-1]}/a.mp4"}] and len(shards) == (2 if packed else 1)
        with open_bytes(str(tmp_path / shards[-1] / "a.mp4")) as file:
            assert file.read() == content
        if packed:
            (tmp_path / shards[-1]).unlink()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", range(1, 12))
def test_a_packer_that_is_killed_at_any_moment_makes_the_same_shards(tmp_path, monkeypatch, moment):
    """Dies before the n-th record, before files are removed, or before or after a shard is written."""
    items = [f"{i}" for i in range(7)]

    def run(folder, dies_at=None):
        noted = dict(line.split(" ") for line in (folder / "log").read_text().split("\n")[:-1])
        moments = iter(range(1, 1000))

        def moment_passes():
            if next(moments) == dies_at:
                raise Killed

        def record(moved):
            for item, name in moved.items():
                moment_passes()
                with open(folder / "log", "a") as log:
                    log.write(f"{item} {name}\n")
            moment_passes()

        def write(file, members):
            moment_passes()
            write_shard(file, members)
            moment_passes()

        monkeypatch.setattr("nlvideo.data.collections.packer.write_shard", write)
        packer = Packer(folder, "1/1", 250, items, record)
        for item in [*items[4:], *items[:4]]:
            packer.finish(item, noted.get(item, f"x/{item}.mp4"))
        packer.close()

    for name in ("whole", "killed"):
        (tmp_path / name / "x").mkdir(parents=True)
        (tmp_path / name / "log").touch()
        for item in items:
            (tmp_path / name / f"x/{item}.mp4").write_text(item * 100)
    run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", dies_at=moment)
    for item in items:  # nothing is lost meanwhile
        inside = [shard for shard in (tmp_path / "killed").glob("shard*.tar") if exists(f"{shard}/x/{item}.mp4")]
        assert inside or (tmp_path / f"killed/x/{item}.mp4").exists()
    run(tmp_path / "killed")
    assert shards_of(tmp_path / "killed") == shards_of(tmp_path / "whole") and len(shards_of(tmp_path / "whole")) == 4
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole") == ["log"]
    logs = [dict(line.split() for line in (tmp_path / n / "log").read_text().splitlines()) for n in ("whole", "killed")]
    assert logs[0] == logs[1] and not (tmp_path / "killed/x").exists()


def test_a_join_does_nothing_anew_that_parts_have_moved_into_shards(prepare, tmp_path, monkeypatch):
    prepare(tmp_path)  # prepared.csv names files
    with monkeypatch.context() as patched:
        patched.setattr(av.VideoStream, "encode", None)  # nothing is encoded
        for i in (1, 2):
            prepare(tmp_path, "--shards", SIZE, "--shard", f"{i}/2", code=i - 1)
        made = shards_of(tmp_path)
        prepare(tmp_path, "--shards", SIZE)
        prepare(tmp_path, "--shards", SIZE)  # and what it wrote stands
    assert shards_of(tmp_path) == made
    table = read_table(str(tmp_path), "train.csv", None)
    assert len(table) == 7 and all(exists(table.path(i)) for i in range(7))
    assert {name[:13] for name in table.names()} == {"shard_1-of-2_", "shard_2-of-2_"}
    assert not (tmp_path / NAMES[0]).exists()


def test_a_video_that_is_in_a_shard_is_not_packed_again_though_its_file_is_there(prepare, tmp_path):
    """As where a part of the job was killed before it removed the file."""
    prepare(tmp_path)  # prepared.csv names files
    shutil.copytree(tmp_path, tmp_path.with_name("files"))
    for i in (1, 2):
        prepare(tmp_path, "--shards", SIZE, "--shard", f"{i}/2", code=i - 1)
    made = shards_of(tmp_path)
    for name in NAMES:
        if name != NAMES[5]:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copy(tmp_path.with_name("files") / name, tmp_path / name)
    prepare(tmp_path, "--shards", SIZE)
    assert shards_of(tmp_path) == made


HOLDER = """
import sys, time
from pathlib import Path
from nlvideo.data.collections.job_lock import job_lock
with job_lock(Path(sys.argv[1]), "prepared", sys.argv[2]) as alone:
    print(alone, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("theirs", "ours", "refused"),
    [("1/1", "1/1", 1), ("1/2", "1/2", 1), ("1/2", "2/2", 0), ("1/2", "1/1", 1), ("1/1", "2/2", 1), ("2/3", "1/2", 1)],
)
def test_another_process_at_the_same_videos_is_kept_out(prepare, whole, tmp_path, theirs, ours, refused):
    shutil.copytree(whole, tmp_path / "made")
    stem = "shard" if ours == "1/1" else f"shard_{ours.replace('/', '-of-')}"
    live = tmp_path / f"made/.{stem}_00099.tar.0123abcd.part"
    live.write_text("half of a shard")
    command = [sys.executable, "-c", HOLDER, tmp_path / "made", theirs]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "True\n"
        before = shards_of(tmp_path / "made"), (tmp_path / "made/prepared.csv").read_text()
        code = 1 if refused or ours == "1/1" else int(ours == "2/2")
        text = prepare(tmp_path / "made", "--shards", SIZE, "--shard", ours, code=code)
        line = f"{tmp_path / 'made'} is in use by another process (--shard {theirs})."
        assert (line in text) == refused == live.exists()
        assert not refused or before == (shards_of(tmp_path / "made"), (tmp_path / "made/prepared.csv").read_text())
        holder.stdin.close()
    prepare(tmp_path / "made", "--shards", SIZE, "--shard", ours, code=int(ours != "1/2"))
    assert not live.exists()


def test_two_packers_without_locks_overwrite_and_lose_nothing(tmp_path):
    for item in "abcd":
        (tmp_path / f"{item}.mp4").write_text(item)
    first, second = (Packer(tmp_path, "1/1", 1, order, lambda moved: None) for order in ("ab", "cd"))
    first.finish("a", "a.mp4")
    first.close()
    second.finish("c", "c.mp4")
    with pytest.raises(UserError, match="shard_00000.tar exists already, and is not overwritten"):
        second.close()
    assert exists(f"{tmp_path}/shard_00000.tar/a.mp4") and (tmp_path / "c.mp4").exists()
    assert not list(tmp_path.glob(".*.part"))


def test_files_are_removed_after_the_shard_and_the_records_are_on_the_disk(prepare, tmp_path, monkeypatch):
    events, fsync, unlink = [], os.fsync, Path.unlink

    def synced(descriptor):
        events.append(("sync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def removed(path, *arguments, **options):
        if path.suffix == ".mp4" and path.exists():
            prepared = (tmp_path / "prepared.csv").stat()
            row = [
                row
                for row in rows_of(tmp_path / "prepared.csv")
                if row["prepared"].endswith(f".tar/{path.name}") or path.name in row["prepared"]
            ][-1]
            shard = tmp_path / row["prepared"].partition("/")[0]
            places = [events.index(("sync", inode)) for inode in (shard.stat().st_ino, tmp_path.stat().st_ino)]
            last = len(events) - 1 - events[::-1].index(("sync", prepared.st_ino))
            assert ".tar/" in row["prepared"] and max(places) < last
            events.append(("removed", path.name))
        unlink(path, *arguments, **options)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "unlink", removed)
    prepare(tmp_path, "--shards", SIZE)
    assert sum(event[0] == "removed" for event in events) == 7


@pytest.mark.parametrize("name", ["../out.mp4", "a/../../out.mp4", "x.tar/../out.mp4"])
def test_nothing_is_written_outside_of_dst(tmp_path, monkeypatch, capsys, name):
    write_grey_video(tmp_path / "src/a/in.mp4", 20)
    write_grey_video(tmp_path / "out.mp4", 20)
    with tarfile.open(tmp_path / "src/x.tar", "w") as tar:
        tar.add(tmp_path / "out.mp4", "../out.mp4")
    (tmp_path / "src/list.csv").write_text(f"a/in.mp4,0\n{name},1\n")
    arguments = "prepare_videos.py", tmp_path / "src", tmp_path / "made/dst", "--list", "list.csv"
    done = run_tool(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert done.returncode == 1 and f"{name} would be written outside of DST" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "made").exists()


def test_names_that_start_at_the_root_are_written_into_dst(tmp_path, monkeypatch, capsys):
    write_grey_video(tmp_path / "v.mp4", 20)
    (tmp_path / "src").mkdir()
    with tarfile.open(tmp_path / "src/x.tar", "w") as tar:
        info = tar.gettarinfo(tmp_path / "v.mp4")
        info.name = "/etc/v.mp4"
        with open(tmp_path / "v.mp4", "rb") as content:
            tar.addfile(info, content)
    (tmp_path / "src/list.csv").write_text(f"x.tar//etc/v.mp4,0\n{tmp_path}/v.mp4,1\n")
    arguments = "prepare_videos.py", tmp_path / "src", tmp_path / "dst", "--list", "list.csv"
    assert run_tool(*arguments, monkeypatch=monkeypatch, capsys=capsys).returncode == 0
    assert read_table(str(tmp_path / "dst"), "list.csv", None).names() == ["x/etc/v.mp4", f"{tmp_path}/v.mp4"[1:]]
    assert files_of(tmp_path / "dst") == sorted(["list.csv", "prepared.csv", "x/etc/v.mp4", f"{tmp_path}/v.mp4"[1:]])


@pytest.mark.slow
@pytest.mark.parametrize("after", [*(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 5)), 3])
def test_a_killed_call_is_resumed(source, whole, prepare, tmp_path, after):
    options = ["--list", "train.csv", "--shards", SIZE, "--workers", "2"]
    records = tmp_path / "prepared.csv"
    process = subprocess.Popen(
        [sys.executable, TOOLS / "prepare_videos.py", source, tmp_path, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not records.exists() or len(records.read_text().splitlines()) <= after:
        assert process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    prepare(tmp_path, "--shards", SIZE)
    assert shards_of(tmp_path) == shards_of(whole)
    assert (tmp_path / "train.csv").read_text() == (whole / "train.csv").read_text()
