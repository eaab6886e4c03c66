"""Who is kept out of a part of a job, and who is not."""

import os
import subprocess
import sys

import pytest

from nlvideo.data.collections import job_lock as module
from nlvideo.data.collections.job_lock import job_lock
from nlvideo.data.index.index_file import lock_of, merge_notes
from nlvideo.runtime.errors import UserError, UserFileExistsError
from nlvideo.runtime.folder_lock import holding, lock_folder

HOLDER = """
import os, sys
from nlvideo.runtime.folder_lock import lock_file
lock_file(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), wait=False, shared=sys.argv[2] == "shared")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Returns a function that lets another process lock a file, and gives the function that ends it."""
    started = []

    def call(file, kind):
        command = [sys.executable, "-c", HOLDER, file, kind]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return lambda: process.communicate()

    yield call
    for process in started:
        process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no shared locks")
def test_parts_that_look_at_the_same_moment_do_not_refuse_each_other(tmp_path, hold):
    """Another part, too, looks whether the whole job is free, which was once run here."""
    hold(tmp_path / ".job.1-of-1.lock", "shared")
    with job_lock(tmp_path, "job", "1/4") as alone:
        assert alone


@pytest.mark.parametrize("which", ["1/1", "1/4"])
def test_a_lock_that_is_held_for_a_moment_is_asked_for_twice(tmp_path, hold, monkeypatch, which):
    waits, end = [], hold(tmp_path / ".job.1-of-1.lock", "shared" if which == "1/1" else "exclusive")
    monkeypatch.setattr(module.time, "sleep", lambda seconds: waits.append(seconds) or end())
    with job_lock(tmp_path, "job", which) as alone:
        assert alone
    assert waits == [0.05]
    hold(tmp_path / ".job.1-of-1.lock", "exclusive")
    monkeypatch.setattr(module.time, "sleep", waits.append)
    with pytest.raises(UserFileExistsError, match=r"in use by another process \(--shard 1/1\)"):
        job_lock(tmp_path, "job", which).__enter__()
    assert len(waits) == 2


@pytest.fixture
def theirs(monkeypatch):
    """Returns a set of files that may be read, but not written to."""
    files, plain = set(), os.open

    def opened(path, flags, *arguments, **options):
        if path in files and flags & os.O_RDWR and (not flags & os.O_EXCL or not path.exists()):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", opened)
    return files


def test_a_lock_of_another_user_is_looked_at_and_refused_in_one_line(tmp_path, theirs):
    lock = tmp_path / ".job.1-of-2.lock"
    with job_lock(tmp_path, "job", "1/2"):
        pass
    theirs.add(lock)
    with job_lock(tmp_path, "job", "1/1") as alone:
        assert alone
    with pytest.raises(UserError) as error:
        job_lock(tmp_path, "job", "1/2").__enter__()
    assert str(error.value) == f"{lock} is another user's, who can give it to all (chmod 666)."


def test_locks_are_for_all_users_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        with job_lock(tmp_path, "job", "1/2"), holding(tmp_path):
            lock_folder(tmp_path)
    finally:
        os.umask(before)
    for name in (".job.1-of-2.lock", ".lock"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 or os.name == "nt"


def test_a_folder_and_an_index_whose_locks_are_another_user_s(tmp_path, theirs):
    theirs |= {tmp_path / ".lock", lock_of(tmp_path / "index")}
    with holding(tmp_path), pytest.raises(UserError, match=r"\.lock cannot be created: permission denied"):
        lock_folder(tmp_path)
    for path in theirs:
        path.touch()
    with holding(tmp_path), pytest.raises(UserError, match=r"\.lock is another user's"):
        lock_folder(tmp_path)
    (tmp_path / "index.1.notes").touch()
    with pytest.raises(OSError):  # which those who add to the index expect
        merge_notes(tmp_path / "index")


def test_where_the_file_system_has_no_locks_all_go_on(tmp_path, monkeypatch):
    def lock_file(*_, **__):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("nlvideo.runtime.folder_lock.lock_file", lock_file)
    with job_lock(tmp_path, "job", "1/2") as alone, holding(tmp_path):
        assert not alone
        lock_folder(tmp_path)
