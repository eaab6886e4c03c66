import errno
import json
import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from store_servers import FaultyServer

from nlvideo.data.stores import cache as caches
from nlvideo.data.stores import entries, progress, space, store
from nlvideo.data.stores.ahead import OBJECTS_AHEAD, Ahead
from nlvideo.data.stores.cache import Cache
from nlvideo.data.stores.entries import CacheEntry
from nlvideo.data.stores.store import MissingObject, StoreFailed
from nlvideo.data.stores.traffic import totals
from nlvideo.runtime.errors import UserError

pytest.importorskip("aiohttp", reason="needs aiohttp")
KB = 1000
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(store, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(store, "TRIES", 4)
    monkeypatch.setattr(store, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(caches, "ROOM_SECONDS", 0.3)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    store._made.clear()  # clients with other timeouts
    yield
    store._made.clear()


@pytest.fixture
def served(tmp_path):
    """A server of 12 objects of 100 kB."""
    folder = tmp_path / "served"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.mp4").write_bytes(bytes([i]) * 100 * KB)
    with FaultyServer(folder) as server:
        yield server


def content(cache: Cache, address: str) -> bytes:
    with cache.file(address) as file:
        return Path(file).read_bytes()


def kept(cache: Cache) -> set[str]:
    """Returns the names of the objects that it holds."""
    records = [json.loads(file.read_bytes()) for file in cache.folder.rglob(entries.RECORD)]
    return {record["address"].rsplit("/", 1)[1] for record in records}


def test_an_object_is_fetched_once_and_keeps_its_name_for_who_reads_it(served, tmp_path):
    cache, before = Cache(tmp_path / "cache", 1), totals()
    for _ in range(3):
        with cache.file(f"{served.address}/3.mp4") as file:
            assert Path(file).name == "3.mp4" and Path(file).read_bytes() == bytes([3]) * 100 * KB
    assert served.gets == {"/3.mp4": 1}
    found = totals(since=before)
    assert (found.opens, found.hits, found.fetches, found.fetched_bytes) == (3, 2, 1, 100 * KB)
    assert "67 % of 3 opens" in found.line()


@pytest.mark.parametrize("fault", ["500", "503", "429", "drop", "stall", "cut"])
def test_faults_that_pass_are_tried_again(served, tmp_path, fault):
    served.plan = lambda number, *_: fault if number <= 2 else None
    assert content(Cache(tmp_path / "cache", 1), f"{served.address}/1.mp4") == bytes([1]) * 100 * KB


@pytest.mark.parametrize(
    "fault, reason", [("500", "500"), ("drop", "Disconnect|ClientOSError|Reset"), ("stall", "Timeout")]
)
def test_faults_that_stay_end_with_the_address_and_the_last_reason(served, tmp_path, fault, reason):
    served.plan = lambda *_: fault
    started = time.monotonic()
    with pytest.raises(
        StoreFailed, match=rf"^{served.address}/1.mp4 cannot be fetched: .*({reason}).* \(after 4 tries\)"
    ):
        content(Cache(tmp_path / "cache", 1), f"{served.address}/1.mp4")
    assert time.monotonic() - started < 60
    assert not list((tmp_path / "cache").rglob("*.mp4")) and not list((tmp_path / "cache").rglob("*.part"))


@pytest.mark.parametrize(
    "fault, reason", [("short", "50000 bytes came of 100000"), ("wrong", "has the MD5 .* the store says")]
)
def test_what_is_not_the_whole_object_is_never_kept(served, tmp_path, fault, reason):
    served.md5 = True
    served.plan = lambda _, method, path: fault if method == "GET" else None
    with pytest.raises(StoreFailed, match=reason):
        content(Cache(tmp_path / "cache", 1), f"{served.address}/1.mp4")
    served.plan = lambda *_: None
    assert content(Cache(tmp_path / "cache", 1), f"{served.address}/1.mp4") == bytes([1]) * 100 * KB


def test_what_has_no_length_is_refused_at_once(served, tmp_path):
    served.plan = lambda *_: "unsaid"
    address = f"{served.address}/1.mp4"
    with pytest.raises(StoreFailed, match=f"^{address} cannot be fetched: the server does not say how long it is"):
        content(Cache(tmp_path / "cache", 1), address)
    assert served.number == 3  # fsspec asks twice for a length
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_where_only_the_answer_itself_has_a_length_that_counts(served, tmp_path):
    cache = Cache(tmp_path / "cache", 1)
    served.plan = lambda _, method, path: "unsaid" if method == "HEAD" else None
    assert content(cache, f"{served.address}/1.mp4") == bytes([1]) * 100 * KB
    served.plan = lambda _, method, path: "empty" if method == "HEAD" else None
    assert content(cache, f"{served.address}/2.mp4") == bytes([2]) * 100 * KB


def test_more_than_the_length_is_given_up_while_it_comes(served, tmp_path):
    served.plan = lambda _, method, path: "long" if method == "GET" else None
    with pytest.raises(StoreFailed, match="more than its 100000 bytes came"):
        content(Cache(tmp_path / "cache", 1), f"{served.address}/1.mp4")


def test_a_server_that_drips_is_given_up(served, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(store, "TRIES", 2)
    served.plan = lambda _, method, path: "drip" if method == "GET" else None
    started = time.monotonic()
    with pytest.raises(StoreFailed, match=r"only \d bytes came in 0 s \(after 2 tries\)"):
        content(Cache(tmp_path / "cache", 1), f"{served.address}/1.mp4")
    assert time.monotonic() - started < 20


def test_a_file_of_credentials_that_is_missing_is_not_the_disks(served, tmp_path, monkeypatch):
    def facts(address):
        open(tmp_path / "token")

    monkeypatch.setattr(caches, "object_facts", facts)
    address = f"{served.address}/1.mp4"
    with pytest.raises(StoreFailed, match=f"^{address} cannot be read: FileNotFoundError: .*{tmp_path}/token'"):
        content(Cache(tmp_path / "cache", 1), address)


def test_an_object_that_is_replaced_meanwhile_is_fetched_again(served, tmp_path):
    def plan(number, method, path):
        if number == 2:  # HEAD was the first request
            (served.folder / "1.mp4").write_bytes(b"new" * 33_333 + b"x")
        return None

    served.plan = plan
    assert content(Cache(tmp_path / "cache", 1), f"{served.address}/1.mp4").startswith(b"new")
    assert served.gets["/1.mp4"] == 2  # of the first nobody knows what it was


def test_a_missing_object_is_no_fault(served, tmp_path):
    with pytest.raises(MissingObject):
        content(Cache(tmp_path / "cache", 1), f"{served.address}/none.mp4")
    assert served.number <= 3  # no retries


def test_no_permission_is_not_tried_again(served, tmp_path):
    served.plan = lambda *_: "403"
    with pytest.raises(StoreFailed, match="cannot be read: no permission"):
        content(Cache(tmp_path / "cache", 1), f"{served.address}/1.mp4")
    assert served.number <= 3


def test_a_server_that_is_not_there(tmp_path):
    with pytest.raises(StoreFailed, match=r"^http://127.0.0.1:1/a.mp4 cannot be fetched: ConnectionRefused"):
        content(Cache(tmp_path / "cache", 1), "http://127.0.0.1:1/a.mp4")


def test_a_file_of_another_length_than_its_record_is_fetched_anew(served, tmp_path):
    cache, address = Cache(tmp_path / "cache", 1), f"{served.address}/1.mp4"
    content(cache, address)
    file = Path(cache.place(address))
    file.write_bytes(file.read_bytes()[:-1])
    assert len(content(cache, address)) == 100 * KB
    (file.parent / entries.RECORD).write_text("torn")
    assert len(content(cache, address)) == 100 * KB
    assert served.gets["/1.mp4"] == 3


def test_what_was_not_used_for_longest_goes_first_whatever_the_clock_says(served, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache", 450 * KB / 1e9)
    now = time.time()
    for i in range(4):
        monkeypatch.setattr(time, "time", lambda i=i: now - 1e6 * i)
        content(cache, f"{served.address}/{i}.mp4")
    content(cache, f"{served.address}/0.mp4")
    content(cache, f"{served.address}/4.mp4")  # room for it and the slack: 1.mp4 goes
    assert kept(cache) == {"0.mp4", "2.mp4", "3.mp4", "4.mp4"}
    assert sum(file.stat().st_size for file in cache.folder.rglob("*.mp4")) <= 450 * KB


def test_an_entry_whose_record_has_a_time_is_older_than_all_that_were_used(served, tmp_path):
    cache = Cache(tmp_path / "cache", 250 * KB / 1e9)
    for i in (0, 1):
        content(cache, f"{served.address}/{i}.mp4")
    record = CacheEntry(cache.folder, f"{served.address}/1.mp4").folder / entries.RECORD
    os.utime(record)  # as a process leaves it that was killed before it had used it
    content(cache, f"{served.address}/2.mp4")
    assert kept(cache) == {"0.mp4", "2.mp4"}


def test_a_lost_count_is_made_anew(served, tmp_path):
    cache = Cache(tmp_path / "cache", 250 * KB / 1e9)
    for i in range(2):
        content(cache, f"{served.address}/{i}.mp4")
    (cache.folder / space.STATE).write_bytes(b"torn")
    content(cache, f"{served.address}/2.mp4")
    assert kept(cache) == {"1.mp4", "2.mp4"}


def test_an_open_file_stays(served, tmp_path):
    cache = Cache(tmp_path / "cache", 300 * KB / 1e9)
    with cache.file(f"{served.address}/0.mp4") as file:
        for i in range(1, 6):
            content(cache, f"{served.address}/{i}.mp4")
        assert Path(file).read_bytes() == bytes(100 * KB)
    assert "0.mp4" in kept(cache) and len(kept(cache)) <= 3


def test_a_cache_that_is_too_small_says_so(served, tmp_path):
    with pytest.raises(StoreFailed, match=r"/0.mp4 has 0.0001 GB, more than data.cache_gb=5e-05"):
        content(Cache(tmp_path / "cache", 50 * KB / 1e9), f"{served.address}/0.mp4")
    cache = Cache(tmp_path / "small", 150 * KB / 1e9)
    with (
        cache.file(f"{served.address}/0.mp4"),
        pytest.raises(StoreFailed, match="no room for its 0.0001 GB beside what is"),
    ):
        content(cache, f"{served.address}/1.mp4")
    assert content(cache, f"{served.address}/1.mp4")


def full_disk(monkeypatch, times: int) -> None:
    """Makes downloads find the disk full so many times."""
    real, left = caches.download, [times]

    def download(address, file, facts, stopped):
        if left[0]:
            left[0] -= 1
            Path(file).write_bytes(b"part")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        return real(address, file, facts, stopped)

    monkeypatch.setattr(caches, "download", download)


def test_on_a_full_disk_others_make_room_once(served, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache", 1e-3)
    for i in range(3):
        content(cache, f"{served.address}/{i}.mp4")
    full_disk(monkeypatch, 1)
    assert content(cache, f"{served.address}/3.mp4") == bytes([3]) * 100 * KB
    assert "0.mp4" not in kept(cache)
    full_disk(monkeypatch, 2)
    with pytest.raises(
        StoreFailed, match=rf"4.mp4 cannot be fetched: the disk of data.cache_dir={tmp_path}/cache is full."
    ):
        content(cache, f"{served.address}/4.mp4")
    assert not list(cache.folder.rglob("*.part"))


def test_what_is_not_the_caches_own_stays(served, tmp_path):
    cache = Cache(tmp_path / "cache", 150 * KB / 1e9)
    content(cache, f"{served.address}/0.mp4")
    entry = CacheEntry(cache.folder, f"{served.address}/0.mp4").folder
    name = "ab" + "0" * 38
    folders = ["me/set", "ab/notes", f"ab/{'0' * 40}", f"me/{name}", f"0B/{name}"]
    files = [cache.folder / folder / "mine.mp4" for folder in folders]
    files += [cache.folder / "me/notes.txt", cache.folder / "ab" / name, entry / "mine.txt", entry / ".mine.part"]
    elsewhere = tmp_path / "elsewhere"
    files += [elsewhere / name / "mine.mp4", elsewhere / name / ".5.part"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"mine")
    (cache.folder / "aa").symlink_to(elsewhere)
    (cache.folder / "ab" / f"ab{'1' * 38}").symlink_to(elsewhere / name)
    cache.check()
    content(cache, f"{served.address}/1.mp4")
    assert kept(cache) == {"1.mp4"} and all(file.read_bytes() == b"mine" for file in files)
    assert not list((cache.folder / "me").rglob(entries.LOCK)) and (cache.folder / "aa").is_symlink()


def test_what_a_killed_process_leaves_while_it_keeps_an_object_is_removed(served, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache", 1)
    entry = CacheEntry(cache.folder, f"{served.address}/0.mp4")
    entry.folder.mkdir(parents=True)
    entry.part(5).write_bytes(b"whole")
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(entries, "write_text", lambda file, text: file.write_text(text))
        patched.setattr(Path, "replace", lambda *_: 1 / 0)
        entry.keep(entry.part(5), 5, "version", "md5")
    assert entry.record() is None
    cache.check()
    assert not entry.folder.exists()


def test_several_users_share_a_cache_whatever_their_umask(served, tmp_path, monkeypatch):
    cache, address = Cache(tmp_path / "cache", 1), f"{served.address}/0.mp4"
    before = os.umask(0o077)
    try:
        content(cache, address)
    finally:
        os.umask(before)
    entry = CacheEntry(cache.folder, address).folder
    modes = [path.stat().st_mode & 0o777 for path in (entry, entry.parent, entry / entries.LOCK)]
    assert modes == [0o777, 0o777, 0o666] and (cache.folder / space.STATE).stat().st_mode & 0o777 == 0o666

    def refuse(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "utime", refuse)  # only who owns a file sets its times
    assert len(content(cache, address)) == 100 * KB


def test_what_another_user_keeps_to_himself_is_named_or_stays(served, tmp_path, monkeypatch):
    cache, address = Cache(tmp_path / "cache", 1e-9), f"{served.address}/0.mp4"
    content(Cache(tmp_path / "cache", 1), address)
    opened = os.open

    def refuse(path, *rest):
        if str(path).endswith(refused):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    refused = entries.LOCK
    cache.check()
    assert kept(cache) == {"0.mp4"}
    refused = space.STATE
    with pytest.raises(UserError, match=rf"^data.cache_dir={cache.folder} cannot be used: .*/{space.STATE} cannot be"):
        cache.check()
    with pytest.raises(
        StoreFailed, match=rf"^{address}: data.cache_dir={cache.folder} cannot be used: .*{space.STATE}"
    ):
        content(cache, address)


def test_a_use_that_cannot_be_noted_ends_the_run_in_one_line(served, tmp_path, monkeypatch):
    cache, address = Cache(tmp_path / "cache", 1), f"{served.address}/0.mp4"
    content(cache, address)

    def fail(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(cache.space, "note_use", fail)
    with pytest.raises(StoreFailed, match=rf"^{address}: data.cache_dir={cache.folder} cannot be used: Read-only"):
        content(cache, address)
    assert entries.remove_entry(CacheEntry(cache.folder, address).folder)  # nobody holds it


def test_who_waits_for_room_looks_for_it_now_and_then(served, tmp_path, monkeypatch):
    cache, looks = Cache(tmp_path / "cache", 150 * KB / 1e9), []
    real = space.held_entries
    monkeypatch.setattr(caches, "ROOM_SECONDS", 0.5)
    with cache.file(f"{served.address}/0.mp4"), pytest.raises(StoreFailed, match="no room"):
        monkeypatch.setattr(space, "held_entries", lambda folder: looks.append(1) or real(folder))
        content(cache, f"{served.address}/1.mp4")
    assert len(looks) == 2  # at once and at the end


def test_a_member_is_never_a_path_of_its_own(tmp_path):
    assert Cache(tmp_path, 1).place("s3://b/x.tar//etc/a.mp4").endswith("/x.tar/etc/a.mp4")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="data.cache_dir=.*cannot create"):
        Cache(tmp_path / "file/cache", 1).check()


def read_all(folder: Path, address: str, count: int, start: float) -> None:
    cache = Cache(folder, 1)
    while time.monotonic() < start:
        time.sleep(0.001)
    for i in range(count):
        assert content(cache, f"{address}/{i}.mp4") == bytes([i]) * 100 * KB


def test_processes_share_one_fetch_of_each_object(served, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "STALL_SECONDS", 60)  # a busy machine's server takes long, and another try is a fetch
    content(Cache(tmp_path / "cache", 1), f"{served.address}/11.mp4")  # a client before the fork
    arguments = tmp_path / "cache", served.address, 11, time.monotonic() + 0.3
    processes = [FORK.Process(target=read_all, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert served.gets == {f"/{i}.mp4": 1 for i in range(12)}
    assert len(content(Cache(tmp_path / "cache", 1), f"{served.address}/0.mp4")) == 100 * KB
    store_again = Cache(tmp_path / "other", 1)
    assert len(content(store_again, f"{served.address}/0.mp4")) == 100 * KB  # the parent's client still works


def test_threads_that_need_a_client_first_share_one(served, tmp_path, monkeypatch):
    options, made = store._options, []

    def slow(scheme):
        made.append(scheme)
        time.sleep(0.05)  # the others come meanwhile
        return options(scheme)

    monkeypatch.setattr(store, "_options", slow)
    cache = Cache(tmp_path / "cache", 1)
    threads = [threading.Thread(target=content, args=(cache, f"{served.address}/{i}.mp4")) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert made == ["http"] and kept(cache) == {"0.mp4", "1.mp4", "2.mp4"}


def test_a_killed_fetch_blocks_nobody_and_leaves_nothing(served, tmp_path):
    folder, address = tmp_path / "cache", f"{served.address}/1.mp4"
    process = FORK.Process(target=read_all, args=(folder, served.address, 2, 0))
    served.plan = lambda _, method, path: "stall" if method == "GET" and path == "/1.mp4" else None
    process.start()
    deadline = time.monotonic() + 60
    while not list(folder.rglob("*.part")) or served.number < 4:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    served.plan = lambda *_: None
    left = list(folder.rglob("*.part"))
    Cache(folder, 1).check()
    assert left and not list(folder.rglob("*.part"))
    assert content(Cache(folder, 1), address) == bytes([1]) * 100 * KB


def test_two_runs_with_other_lists_share_a_cache(served, tmp_path):
    limit = 500 * KB / 1e9
    lists = [range(8), [11, 3, 9, 0, 5]]
    failures = []

    def run(names) -> None:
        cache = Cache(tmp_path / "cache", limit)
        for _ in range(3):
            for i in names:
                if content(cache, f"{served.address}/{i}.mp4") != bytes([i]) * 100 * KB:
                    failures.append(i)

    threads = [threading.Thread(target=run, args=(names,)) for names in lists]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and len(kept(Cache(tmp_path / "cache", limit))) <= 5


def test_the_time_of_change_is_the_versions(served, tmp_path):
    cache, address = Cache(tmp_path / "cache", 1), f"{served.address}/1.mp4"

    def changed() -> int:
        content(cache, address)
        return os.stat(cache.place(address)).st_mtime_ns

    first = changed()
    assert entries.remove_entry(CacheEntry(cache.folder, address).folder) and changed() == first
    (served.folder / "1.mp4").write_bytes(b"other" * 20 * KB)
    assert changed() == first  # believed
    assert entries.remove_entry(CacheEntry(cache.folder, address).folder) and changed() != first


def test_what_comes_next_is_fetched_ahead_and_no_further(served, tmp_path):
    cache = Cache(tmp_path / "cache", 1)
    addresses = [f"{served.address}/{i}.mp4" for i in range(12)]
    ahead = Ahead(cache, iter(addresses), 1)
    wait_until(lambda: len(kept(cache)) == OBJECTS_AHEAD)
    time.sleep(0.1)
    assert kept(cache) == {f"{i}.mp4" for i in range(OBJECTS_AHEAD)}
    ahead.opened(addresses[1])
    wait_until(lambda: len(kept(cache)) == OBJECTS_AHEAD + 2)
    ahead.opened("http://127.0.0.1:1/another.mp4")
    time.sleep(0.1)
    assert len(kept(cache)) == OBJECTS_AHEAD + 2  # what nobody fetched moves nothing
    ahead.stop()
    wait_until(lambda: not ahead._thread.is_alive())


def test_videos_of_one_shard_move_on_once(served, tmp_path):
    cache, last = Cache(tmp_path / "cache", 1), f"{served.address}/11.mp4"
    for i in range(12):
        (served.folder / f"{i}.tar").write_bytes(bytes(10))
    members = [f"{served.address}/{shard}.tar/{i}.mp4" for shard in (0, 1, 0) for i in range(2)]
    ahead = Ahead(cache, iter([*members, *(f"{served.address}/{i}.tar" for i in range(2, 12)), last]), 1)
    wait_until(lambda: len(kept(cache)) == OBJECTS_AHEAD - 1)  # one of them comes twice
    for address in members[:2]:
        ahead.opened(address)
    wait_until(lambda: len(kept(cache)) == OBJECTS_AHEAD)
    time.sleep(0.1)
    assert len(kept(cache)) == OBJECTS_AHEAD
    ahead.stop()
    wait_until(lambda: not ahead._thread.is_alive())


def test_fetching_ahead_ends_in_the_middle_of_a_download_and_leaves_faults_to_others(served, tmp_path):
    served.plan = lambda _, method, path: "500" if path == "/0.mp4" else "stall" if path == "/1.mp4" else None
    cache = Cache(tmp_path / "cache", 1)
    ahead = Ahead(cache, iter([f"{served.address}/{i}.mp4" for i in (0, 2, 1)]), 1)
    wait_until(lambda: kept(cache) == {"2.mp4"})
    ahead.stop()
    wait_until(lambda: not ahead._thread.is_alive())
    assert not list(cache.folder.rglob("*.part"))


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            if condition():
                return
        time.sleep(0.005)
    raise AssertionError("it did not come true")


def test_bytes_that_are_taken_are_counted_before_any_of_them_has_come(tmp_path):
    """Otherwise who counts between the two forgets them, and the cache holds more than it may."""
    first, second = (CacheEntry(tmp_path, f"http://store/{name}.mp4") for name in "ab")
    one, other = space.Space(tmp_path, 100), space.Space(tmp_path, 100)
    locks = [entry.lock(exclusive=True, wait=True) for entry in (first, second)]
    assert one.take(60, first.part(60))
    (first.folder / f".{entries.RECORD}.0123abcd.part").write_text("a record on its way is not the object's")
    other.count()
    assert sum(entry.size for entry in space.held_entries(tmp_path)) == 60
    assert not other.take(60, second.part(60)) and not second.part(60).exists()
    one.give_back(60, first.folder)
    assert not first.part(60).exists() and other.take(60, second.part(60))
    for lock in locks:
        os.close(lock)
