"""An index: what it knows, what it does not believe, and who may write it at the same time."""

import errno
import json
import multiprocessing
import os
import pickle
import signal
import sqlite3
import time
from contextlib import closing

import av
import numpy as np
import pytest
from conftest import frame_numbers, write_grey_video

from nlvideo.data.decoding.opening import Opener, open_video
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.decoding.video import DecodeError
from nlvideo.data.index import index_file
from nlvideo.data.index.facts import HEADER
from nlvideo.data.index.index_file import (
    VERSION,
    BrokenIndex,
    check_index,
    checked_row,
    merge_notes,
    note_line,
    notes_files,
    open_index,
)
from nlvideo.data.index.video_index import VideoIndex, index_problem

START_METHODS = [name for name in ("fork", "spawn", "forkserver") if name in multiprocessing.get_all_start_methods()]


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        write_grey_video(tmp_path / f"videos/{i}.mp4", 20 + i)
    return tmp_path


@pytest.fixture
def scans(monkeypatch):
    """The files whose packets were read."""
    found, scan = [], PyavVideo._read_index
    monkeypatch.setattr(PyavVideo, "_read_index", lambda video: found.append(video.path) or scan(video))
    return found


def see(index, folder, numbers=range(6)):
    """Opens videos and returns how many frames each has."""
    found = []
    for i in numbers:
        with open_video(folder / f"videos/{i}.mp4", index=index) as video:
            assert frame_numbers(video.read([3, 17], (48, 64))) == [3, 17]
            found.append(video.num_frames)
    return found


def test_what_was_seen_is_not_read_again(folder, scans):
    file = folder / "index"
    index = VideoIndex(file)
    assert see(index, folder) == [20, 21, 22, 23, 24, 25] and len(scans) == 6
    assert not file.exists() and len(notes_files(file)) == 1
    del index  # merges
    assert file.exists() and notes_files(file) == []
    assert see(VideoIndex(file), folder) == [20, 21, 22, 23, 24, 25] and len(scans) == 6
    assert sorted(path.name for path in folder.iterdir()) == ["index", "index.lock", "videos"]


def test_names_are_relative_to_the_index_below_its_folder_only(folder, scans, tmp_path):
    see(VideoIndex(folder / "index"), folder)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("videos", "index"):
        (folder / name).rename(moved / name)
    see(VideoIndex(moved / "index"), moved)
    assert len(scans) == 6
    elsewhere = tmp_path / "kept"
    elsewhere.mkdir()
    for _ in range(2):
        see(VideoIndex(elsewhere / "index"), moved)
    assert len(scans) == 12
    with open_index(elsewhere / "index") as database:
        names = [name for (name,) in database.execute("SELECT name FROM videos")]
    assert names == [os.fsencode(moved / f"videos/{i}.mp4") for i in range(6)]


def test_any_name_is_kept(folder, scans):
    names = [os.fsdecode(b"caf\xe9.mp4"), "a\nb?#%41.mp4", "é.mp4"]
    for name in names:
        os.link(folder / "videos/0.mp4", folder / name)
    for _ in range(2):
        index = VideoIndex(folder / "in?dex#%41")
        for name in names:
            with open_video(folder / name, index=index) as video:
                assert video.num_frames == 20
        del index
    assert len(scans) == len(names)


def test_a_file_that_changes_is_read_anew(folder, scans):
    index, path = VideoIndex(folder / "index"), folder / "videos/0.mp4"
    see(index, folder)
    index.merge()
    before = path.stat()
    write_grey_video(path, 20, g="5")
    with open(path, "ab") as file:  # a box that is skipped: the same size as before is made below
        file.write(b"")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    scans.clear()
    del index
    index = VideoIndex(folder / "index")
    see(index, folder)
    assert scans == [str(path)]
    index.merge()
    os.truncate(path, path.stat().st_size // 2)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(DecodeError):
        see(VideoIndex(folder / "index"), folder)


def test_a_file_that_is_written_while_it_is_read_is_not_kept(folder, scans, monkeypatch):
    path, scan = folder / "videos/0.mp4", PyavVideo._read_index

    def changing(video):
        scan(video)
        os.utime(path, ns=(0, time.time_ns()))

    monkeypatch.setattr(PyavVideo, "_read_index", changing)
    index = VideoIndex(folder / "index")
    see(index, folder, [0])
    assert notes_files(index.file) == []


def test_videos_that_cannot_be_opened_are_tried_again(folder, scans):
    path = folder / "videos/0.mp4"
    path.write_bytes(path.read_bytes()[:-600])
    reasons = set()
    for _ in range(2):
        with pytest.raises(DecodeError) as caught:
            see(VideoIndex(folder / "index"), folder)
        reasons.add(caught.value.reason)
    assert len(reasons) == 1
    with pytest.raises(DecodeError, match="No such file"), open_video("no.mp4", index=VideoIndex(folder / "index")):
        pass


def damage_header(file):
    data = file.read_bytes()
    file.write_bytes(data[:16] + b"\xff\xff" + data[18:])  # no size of a page


def cut(file):
    file.write_bytes(file.read_bytes()[:5000])


def empty(file):
    file.write_bytes(b"")


def raise_version(file):
    with sqlite3.connect(file) as database:
        database.execute(f"PRAGMA user_version={VERSION + 1}")


def add_a_trigger(file):
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TRIGGER more AFTER INSERT ON videos BEGIN DELETE FROM videos; END")


def become_a_view(file):
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("ALTER TABLE videos RENAME TO others")
        database.execute("CREATE VIEW videos AS SELECT * FROM others")


def damage_pages(file):
    file.write_bytes(file.read_bytes()[:4096] + b"\xff" * (file.stat().st_size - 4096))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (damage_header, "cannot be read (file is not a database)"),
        (empty, "is empty"),
        (cut, "cannot be read (database disk image is malformed)"),
        (damage_pages, ""),
        (add_a_trigger, "has other tables"),
        (become_a_view, "has other tables"),
        (raise_version, f"has version {VERSION + 1} and not {VERSION}"),
    ],
)
def test_what_is_no_index_of_this_version_is_made_anew(folder, scans, change, reason):
    file = folder / "index"
    for i in range(6):  # as many rows as take several pages
        for j in range(20):
            os.link(folder / f"videos/{i}.mp4", folder / f"videos/{i}-{j}.mp4")
    index = VideoIndex(file)
    for path in sorted((folder / "videos").iterdir()):
        open_video(path, index=index).close()
    del index
    assert index_problem(file) is None and file.stat().st_size > 12_000
    change(file)
    assert index_problem(file) == f"{file} {reason}: it is made anew" or not reason
    assert "made anew" in index_problem(file)
    assert VideoIndex(file, grows=False).count() in (0, 126)
    scans.clear()
    assert see(VideoIndex(file), folder) == [20, 21, 22, 23, 24, 25] and len(scans) == 6
    assert index_problem(file) is None
    assert see(VideoIndex(file), folder) == [20, 21, 22, 23, 24, 25] and len(scans) == 6


def test_an_index_that_cannot_be_opened_is_none(folder, scans, monkeypatch):
    file = folder / "index"
    see(VideoIndex(file), folder, [0, 1])

    def failing(*_, **__):
        raise sqlite3.OperationalError("unable to open database file")

    before = file.read_bytes()
    monkeypatch.setattr(sqlite3, "connect", failing)
    index = VideoIndex(file)
    assert see(index, folder, [0]) == [20] and index.count() == 0
    assert index_problem(file) == (
        f"{file} cannot be read (unable to open database file): it is not used, and left as it is"
    )
    del index
    assert file.read_bytes() == before and len(notes_files(file)) == 1
    monkeypatch.undo()
    real = open

    def refusing(name, *rest, **more):
        if name == file:
            raise PermissionError(13, "Permission denied")
        return real(name, *rest, **more)

    monkeypatch.setattr("builtins.open", refusing)
    assert VideoIndex(file).count() == 0
    assert index_problem(file) == f"{file} cannot be read (Permission denied): it is not used, and left as it is"


@pytest.mark.parametrize("content", [b"videos/0.mp4 0\n", b"SQLite format 3\0" + bytes(200)])
def test_a_file_of_something_else_is_left_alone(folder, scans, content):
    file = folder / "index"
    file.write_bytes(content)
    index = VideoIndex(file)
    assert see(index, folder) == [20, 21, 22, 23, 24, 25]
    index.merge()
    assert file.read_bytes() == content and notes_files(file) == []
    assert index_problem(file) == f"{file} is no index of nlvideo: it is not used, and left as it is"


class Failing:
    """A database that cannot be read for a while."""

    def __init__(self, database):
        self.database = database

    def execute(self, statement, *rest):
        if statement.startswith(("PRAGMA quick", "SELECT")):
            raise sqlite3.OperationalError("disk I/O error")
        return self.database.execute(statement, *rest)

    def close(self):
        self.database.close()


def test_an_error_that_passes_costs_no_index(folder, scans, monkeypatch):
    file, connect = folder / "index", sqlite3.connect
    see(VideoIndex(file), folder, [0, 1])
    index = VideoIndex(file)
    see(index, folder, [2])
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **named: Failing(connect(*given, **named)))
    index.merge()
    assert "cannot be read (disk I/O error): it is not used" in index_problem(file)
    monkeypatch.undo()
    index.merge()
    assert VideoIndex(file).count() == 3


def test_a_record_with_a_flipped_bit_is_not_believed(folder, scans):
    file = folder / "index"
    see(VideoIndex(file), folder)
    with sqlite3.connect(file) as database:
        database.execute("UPDATE videos SET num_frames = num_frames - 1 WHERE name = ?", (b"videos/2.mp4",))
    scans.clear()
    assert see(VideoIndex(file), folder) == [20, 21, 22, 23, 24, 25]
    assert scans == [str(folder / "videos/2.mp4")]


@pytest.mark.parametrize(
    "change",
    [
        {"num_frames": 10**6, "times": HEADER.pack(0, 512, 10**6)},  # more than the file has bytes
        {"times": HEADER.pack(0, 512, 19)},
        {"key_times": HEADER.pack(0, 512, 21)},
        {"key_times": b"few"},
        {"num_frames": 0, "times": HEADER.pack(0, 1, 0), "key_times": HEADER.pack(0, 1, 0)},
        {"num_frames": "many"},
        {"time_base": "1/0"},
        {"time_base": "1e99999999"},
        {"fps": 0.0},
        {"codec": None},
        {"stream": 5},
        {"stream": -1},
    ],
)
def test_a_row_that_cannot_be_true_is_not_believed(folder, scans, change):
    file = folder / "index"
    see(VideoIndex(file), folder, [0])
    with closing(sqlite3.connect(file)) as database, database:
        (row,) = database.execute("SELECT * FROM videos").fetchall()
        values = dict(zip(index_file.COLUMNS, row, strict=True)) | change
        database.execute(index_file.INSERT, checked_row(list(values.values())[:-1]))
    scans.clear()
    assert see(VideoIndex(file, grows=False), folder, [0]) == [20] and len(scans) == 1


def test_a_row_that_names_the_sound_is_not_believed(folder, scans):
    path = folder / "videos/0.mp4"
    with av.open(str(path)) as before, av.open(str(folder / "both.mp4"), "w") as after:
        sound, stream = after.add_stream("aac", rate=16000), after.add_stream_from_template(before.streams.video[0])
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        after.mux(sound.encode(silence))
        after.mux(sound.encode(None))
        for packet in (packet for packet in before.demux(video=0) if packet.size):
            packet.stream = stream
            after.mux(packet)
    (folder / "both.mp4").replace(path)
    file = folder / "index"
    see(VideoIndex(file), folder, [0])
    with closing(sqlite3.connect(file)) as database, database:
        (row,) = database.execute("SELECT * FROM videos").fetchall()
        values = dict(zip(index_file.COLUMNS, row, strict=True))
        assert values["stream"] == 1
        database.execute(index_file.INSERT, checked_row(list((values | {"stream": 0}).values())[:-1]))
    scans.clear()
    assert see(VideoIndex(file, grows=False), folder, [0]) == [20] and len(scans) == 1


def test_what_another_version_of_ffmpeg_has_seen_is_not_believed(folder, scans, monkeypatch):
    index = VideoIndex(folder / "index")
    see(index, folder)
    index.merge()
    state = index.state(folder / "videos/0.mp4")
    assert VideoIndex(folder / "index").find(state) is not None
    assert VideoIndex(folder / "index").find(state._replace(reader="17.0.0/61.7.100/61.19.100")) is None


def test_notes_of_a_killed_process_are_merged_by_the_next(folder, scans):
    def worker():
        index = VideoIndex(folder / "index")
        see(index, folder)
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=worker)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (folder / "index").exists()
    index = VideoIndex(folder / "index")
    assert see(index, folder) == [20, 21, 22, 23, 24, 25] and scans == []


def test_notes_that_a_kill_has_cut_cost_their_last_line(folder, scans):
    index = VideoIndex(folder / "index")
    see(index, folder)
    (notes,) = notes_files(index.file)
    rows = notes.read_bytes().splitlines(keepends=True)
    no_row = json.dumps(["" if kind.startswith("BLOB") else [] for kind in index_file.COLUMNS.values()]).encode()
    notes.write_bytes(b"".join([b"\xff\n", b"[]\n", b"7\n", no_row + b"\n", *rows])[:-30])
    index.merge()
    scans.clear()
    see(VideoIndex(folder / "index"), folder)
    assert scans == [str(folder / "videos/5.mp4")]


@pytest.mark.parametrize("value", [2**64, "\ud800", ["a list"], None])
def test_notes_of_values_that_no_index_holds_cost_their_line(folder, value):
    index = VideoIndex(folder / "index")
    see(index, folder, [0])
    (notes,) = notes_files(index.file)
    state, facts = index.state(folder / "videos/1.mp4"), index.find(index.state(folder / "videos/0.mp4"))
    row = note_line(checked_row((*state, value, *facts.as_row()[1:])))
    notes.write_bytes(row + b"[" * 10**5 + b"\n" + notes.read_bytes())
    del index
    index = VideoIndex(folder / "index")
    assert notes_files(index.file) == [] and index.find(state) is None
    assert index.find(index.state(folder / "videos/0.mp4")) is not None


def test_a_kill_while_writing_leaves_the_old_index(folder, monkeypatch):
    file = folder / "index"
    see(VideoIndex(file), folder, [0, 1])
    before = file.read_bytes()

    def worker():
        monkeypatch.setattr(index_file, "_read_notes", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        merge_notes(file)

    index = VideoIndex(file)
    see(index, folder, [2, 3])
    process = multiprocessing.get_context("fork").Process(target=worker)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and file.read_bytes() == before
    del index
    assert VideoIndex(file).count() == 4


def test_a_disk_that_is_full_keeps_the_notes(folder, monkeypatch):
    index = VideoIndex(folder / "index")
    see(index, folder)
    monkeypatch.setattr(index_file, "replacing", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    index.merge()
    assert len(notes_files(index.file)) == 1 and not index.file.exists()
    monkeypatch.undo()
    index.merge()
    assert VideoIndex(index.file).count() == 6


@pytest.mark.parametrize(("whole", "rest"), [(0, 0), (0, 50), (2, 0), (2, 50)])  # lines that fit, bytes of the next
def test_a_full_disk_ends_the_notes_of_a_process(folder, scans, monkeypatch, whole, rest):
    """No file is left for each video, and none that is empty."""
    file, write, tries = folder / "index", os.write, []

    def full(descriptor, data):
        tries.append(descriptor)
        if len(tries) > whole and not rest:
            raise OSError(28, "No space left on device")
        return write(descriptor, data if len(tries) <= whole else data[:rest])

    index = VideoIndex(file)
    monkeypatch.setattr(os, "write", full)
    assert see(index, folder) == [20, 21, 22, 23, 24, 25]
    monkeypatch.undo()
    assert len(notes_files(file)) == (whole + rest > 0) and len(tries) == whole + 1
    del index
    assert VideoIndex(file).count() == whole


def test_notes_that_a_merge_removes_late_are_begun_anew(folder, scans, monkeypatch):
    index, write = VideoIndex(folder / "index"), os.write
    see(index, folder, [0])

    def stale(descriptor, data):
        monkeypatch.undo()
        merge_notes(index.file)  # after the look whether the file is still there
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "write", stale)
    see(index, folder, [1])
    assert os.write is write
    index.merge()
    assert VideoIndex(index.file).count() == 2


def test_without_permission_videos_are_read_as_ever(folder, scans, monkeypatch):
    real = os.open

    def refusing(path, flags, *rest):
        if ".notes" in str(path):
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    monkeypatch.setattr(os, "access", lambda *_: False)
    index = VideoIndex(folder / "index")
    assert see(index, folder) == [20, 21, 22, 23, 24, 25]
    del index
    assert sorted(path.name for path in folder.iterdir()) == ["videos"]
    assert index_problem(folder / "index") == f"no index of the videos is kept: {folder} cannot be written"
    monkeypatch.undo()
    assert index_problem(folder / "index") is None


def see_twice(opener, folder, numbers):
    for _ in range(2):
        for i in numbers:
            with opener(str(folder / f"videos/{i}.mp4")) as video:
                assert video.num_frames == 20 + i


@pytest.mark.parametrize("method", START_METHODS)
def test_processes_write_at_once(folder, scans, method):
    index = VideoIndex(folder / "index")
    see(index, folder, [0])  # the parent has opened it before its workers do
    index.merge()
    index = VideoIndex(folder / "index")
    assert index.find(index.state(folder / "videos/0.mp4")) is not None
    os.utime(folder / "videos/0.mp4", ns=(0, 1))
    see(index, folder, [0])  # and so has it notes of its own
    context = multiprocessing.get_context(method)
    workers = [
        context.Process(target=see_twice, args=(Opener(index=index), folder, part)) for part in ([1, 2, 3], [3, 4, 5])
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(notes_files(index.file)) == 3
    scans.clear()
    index.merge()
    see(VideoIndex(folder / "index"), folder)
    assert scans == []


def merge_often(file, folder, numbers):
    for i in numbers:
        see(VideoIndex(file), folder, [i])


def test_processes_merge_at_once(folder):
    file = folder / "index"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=merge_often, args=(file, folder, part)) for part in (range(3), range(3, 6))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    merge_notes(file)
    check_index(file)
    assert VideoIndex(file).count() == 6 and notes_files(file) == []


def test_what_is_noted_while_notes_are_merged_is_kept(folder, monkeypatch):
    file, read = folder / "index", index_file._read_notes
    index = VideoIndex(file)
    see(index, folder, [0])

    def meanwhile(path):
        monkeypatch.undo()
        yield from read(path)
        see(index, folder, [1, 2])

    monkeypatch.setattr(index_file, "_read_notes", meanwhile)
    index.merge()
    merge_notes(file)
    assert VideoIndex(file).count() == 3 and notes_files(file) == []


def test_notes_that_vanish_keep_no_others_from_being_merged(folder, monkeypatch):
    """As where a process removes its empty ones, or another machine merges without locks."""
    file, listed, asked = folder / "index", index_file.notes_files, []
    indices = [VideoIndex(file), VideoIndex(file)]
    for i, index in enumerate(indices):
        see(index, folder, [i])

    def vanishing(file):
        asked.append(file)
        found = listed(file)
        if len(asked) == 2:  # the first is before the lock
            found[0].unlink()
        return found

    monkeypatch.setattr(index_file, "notes_files", vanishing)
    merge_notes(file)
    monkeypatch.undo()
    assert VideoIndex(file).count() == 1


def test_one_merges_at_a_time(folder):
    file = folder / "index"
    index = VideoIndex(file)
    see(index, folder)
    held, done = (multiprocessing.get_context("fork").Event() for _ in range(2))

    def other():
        with index_file._lock(file) as locked:
            assert locked
            held.set()
            done.wait(20)

    process = multiprocessing.get_context("fork").Process(target=other)
    process.start()
    held.wait(20)
    index.merge()
    assert not file.exists()
    done.set()
    process.join()
    index.merge()
    assert file.exists()


def test_the_lock_is_for_all_users(folder, monkeypatch):
    file, lock, access = folder / "index", folder / "index.lock", os.access
    before = os.umask(0o022)
    try:
        see(VideoIndex(file), folder, [0])
    finally:
        os.umask(before)
    assert lock.stat().st_mode & 0o777 == 0o666 or os.name == "nt"
    monkeypatch.setattr(os, "access", lambda path, mode: path != lock and access(path, mode))
    for _ in range(2):
        assert index_problem(file) == (
            f"{file} does not grow: {lock} is another user's, who can give it to all (chmod 666)"
        )
        file.unlink(missing_ok=True)


def test_what_killed_merges_leave_is_removed(folder):
    index = VideoIndex(folder / "index")
    see(index, folder, [0])
    for name in (".index.0123abcd.part", ".index.0123abcd.part-journal", ".other.0123abcd.part", ".index.old.part"):
        (folder / name).touch()
    index.merge()
    found = {path.name for path in folder.iterdir()}
    assert found == {"index", "index.lock", "videos", ".other.0123abcd.part", ".index.old.part"}


def test_notes_that_were_merged_are_begun_anew(folder, scans):
    index = VideoIndex(folder / "index")
    see(index, folder, [0, 1])
    merge_notes(index.file)
    see(index, folder, [2, 3])
    merge_notes(index.file)
    assert VideoIndex(index.file).count() == 4


def test_an_index_that_is_replaced_is_looked_at_again(folder, scans, monkeypatch):
    monkeypatch.setattr("nlvideo.data.index.video_index.LOOK_SECONDS", 0.0)
    reader, index = (VideoIndex(folder / "index", grows=grows) for grows in (False, True))
    assert reader.count() == 0
    see(index, folder)
    merge_notes(index.file)
    scans.clear()
    see(reader, folder)
    assert scans == []
    index.file.write_bytes(b"damaged")
    assert see(reader, folder, [0]) == [20] and len(scans) == 1


def test_an_error_that_passes_ends_no_reading(folder, scans, monkeypatch):
    monkeypatch.setattr("nlvideo.data.index.video_index.LOOK_SECONDS", 0.0)
    see(VideoIndex(folder / "index"), folder)
    index = VideoIndex(folder / "index", grows=False)
    assert index.count() == 6
    index._reader = Failing(index._reader)
    scans.clear()
    see(index, folder, [0, 1])
    assert scans == [str(folder / "videos/0.mp4")]


def test_what_a_process_has_noted_it_knows_and_notes_once(folder, scans, monkeypatch):
    index = VideoIndex(folder / "index")
    for _ in range(2):
        assert see(index, folder) == [20, 21, 22, 23, 24, 25] and len(scans) == 6
    (notes,) = notes_files(index.file)
    index.add(index.state(folder / "videos/3.mp4"), index.find(index.state(folder / "videos/3.mp4")))
    lines = notes.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    os.utime(folder / "videos/3.mp4", ns=(0, 1))
    see(index, folder, [3])
    assert len(scans) == 7
    monkeypatch.setattr("nlvideo.data.index.video_index.NOTED_BYTES", 4 * len(lines[0]))
    index = VideoIndex(folder / "elsewhere")
    see(index, folder, [0, 1, 2, 0, 3, 4, 0])  # the one that was not used for longest is left out
    scans.clear()
    see(index, folder, [0, 4, 1])
    assert scans == [str(folder / "videos/1.mp4")]


def test_an_index_that_does_not_grow_writes_nothing(folder, scans):
    index = VideoIndex(folder / "index", grows=False)
    see(index, folder)
    copy = pickle.loads(pickle.dumps(index))
    see(copy, folder)
    del index, copy
    assert sorted(path.name for path in folder.iterdir()) == ["videos"]


def test_nothing_is_left_open(folder, monkeypatch):
    monkeypatch.setattr("nlvideo.data.index.video_index.LOOK_SECONDS", 0.0)

    def use():
        index = VideoIndex(folder / "index")
        see(index, folder, [0, 1])
        index.merge()
        see(index, folder, [0, 2])

    use()
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for _ in range(3):
        use()
    assert not before or len(os.listdir("/proc/self/fd")) == before


def test_the_file_of_another_version_is_named(folder):
    see(VideoIndex(folder / "index"), folder, [0])
    raise_version(folder / "index")
    with pytest.raises(BrokenIndex, match=f"version {VERSION + 1}"):
        open_index(folder / "index")
