"""How many workers load, and what is said where they are too slow."""

import os
import shutil
import time

import pytest
from conftest import composed
from runs import config_of

from nlvideo.build.data import num_workers
from nlvideo.train import train
from nlvideo.training import preflight
from nlvideo.training.data_wait import DataWait, waiting_line
from nlvideo.training.setup import set_up


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return lambda count: monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)


@pytest.mark.parametrize(
    ("count", "ranks", "expected"), [(1, 1, 1), (2, 1, 1), (8, 1, 7), (8, 2, 3), (8, 8, 1), (64, 8, 7), (64, 1, 16)]
)
def test_each_rank_has_a_worker_for_each_of_its_cores_but_one(cores, monkeypatch, count, ranks, expected):
    cores(count)
    data = composed("experiment=i3d_r50_nl5", "data.root=x").data
    assert data.num_workers is None and num_workers(data, ranks) == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert num_workers(data) == expected
    for stated in (0, 20):
        data.num_workers = stated
        assert num_workers(data) == stated


def test_the_shared_memory_of_workers_that_were_not_counted(cores, video_folder, tmp_path, monkeypatch):
    cores(12)
    config = config_of(video_folder, tmp_path / "run", "data.num_workers=null", "num_devices=2", "optim.batch_size=4")
    assert preflight.shared_memory_needed(config) == (2 * 3 * 4 * 32 * 32) * 23 * 2
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=64_000_000, free=100_000))
    with pytest.raises(ValueError, match="data.num_workers=5: their prefetched batches take 1 MB"):
        train(preflight.with_workers(config, 5))


@pytest.mark.parametrize(("free", "expected"), [(10**9, None), (470_000, 4), (175_000, 1), (100_000, 0)])
def test_workers_whose_number_is_open_are_as_many_as_fit(
    cores, video_folder, tmp_path, monkeypatch, capsys, free, expected
):
    cores(12)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=10**9, free=free))
    run = set_up(config_of(video_folder, tmp_path / "run", "data.num_workers=null"))
    assert run.config.data.num_workers == expected
    if expected is None:
        assert run.workers_note is None
    else:
        assert run.workers_note.startswith(f"{expected} for each rank: 11 need 1 MB of shared memory, and /dev/shm has")


def test_a_dry_run_says_how_many_workers_there_would_be(cores, video_folder, tmp_path, capsys):
    cores(5)
    train(config_of(video_folder, tmp_path / "run", "data.num_workers=null", "dry_run=true"))
    assert "5 for each of 1 processes here, which has 4 workers" in capsys.readouterr().out


def test_a_long_wait_is_said_once_and_not_of_the_first_steps(cores):
    cores(8)
    wait = DataWait(composed("experiment=quickstart", "data=list", "data.root=x", "data.num_workers=2").data, 100)
    assert wait.line(103, 0.9) is None and wait.line(106, 0.9) is None  # from 103 on, when workers were starting
    assert wait.line(120, 0.1) is None
    line = wait.line(140, 0.345)
    assert line == (
        "the training waits for data 34 % of its time; each rank has 2 workers on 8 cores: data.num_workers=7 would "
        "use them all"
    )
    assert wait.line(160, 0.9) is None


def test_where_no_core_is_left_prepared_videos_are_advised():
    line = waiting_line(0.5, 1, 2)
    assert "each rank has 1 worker on 2 cores, all in use: videos prepared by tools/prepare_videos.py load" in line
    assert "more cores" in waiting_line(0.5, 0, 1)


def test_a_run_says_that_it_waits(video_folder, tmp_path, monkeypatch, capsys):
    import nlvideo.train

    batches = nlvideo.train.train_batches

    def slow(*arguments, **place):
        for step in batches(*arguments, **place):
            time.sleep(0.2)
            yield step

    monkeypatch.setattr(nlvideo.train, "train_batches", slow)
    train(config_of(video_folder, tmp_path / "run", "optim.max_steps=8", "validate_every_steps=100"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning   the training waits")]
    assert len(lines) == 1 and "each rank has 0 workers" in lines[0]
