"""How many workers load all views of videos, and in how much shared memory."""

import os
import shutil

import pytest
from conftest import composed

from nlvideo.build.data import usual_views_bytes, view_workers
from nlvideo.runtime import shared_memory


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Returns a function that gives this machine so many cores, ranks, and bytes of free shared memory."""

    def give(cores, ranks, free):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path / ("none" if free is None else ""))
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=64_000_000_000, free=free))

    return give


def data_of(num_workers="null"):
    return composed("experiment=i3d_r50_nl5", "data.root=x", f"data.num_workers={num_workers}").data


SIZE = 10 * 32 * 256 * 455 * 3  # ten clips of 32 frames, resized for 256


@pytest.mark.parametrize(
    ("cores", "ranks", "free", "expected"),
    [
        (8, 1, 100 * SIZE, 7),
        (64, 1, 100 * SIZE, 16),
        (64, 8, 100 * SIZE, 7),
        (64, 1, None, 16),  # a system without a limit
        (8, 1, 9 * SIZE, 7),  # seven are ready, one in use, one comes
        (8, 1, 9 * SIZE - 1, 6),
        (8, 2, 9 * SIZE - 1, 2),
        (8, 1, 3 * SIZE, 1),
        (8, 1, 3 * SIZE - 1, 0),  # the rank loads by itself
        (8, 1, 64_000_000, 0),  # what a container has unless told otherwise
        (1, 1, 100 * SIZE, 1),
    ],
)
def test_each_rank_has_as_many_as_cores_and_shared_memory_allow(machine, cores, ranks, free, expected):
    machine(cores, ranks, free)
    assert usual_views_bytes(data_of()) == SIZE
    found = view_workers(data_of())
    assert found.number == expected
    assert (found.note is not None) == (expected < max(1, min(cores // ranks - 1, 16)))


def test_a_number_in_the_config_is_kept_and_a_small_shared_memory_said(machine):
    machine(8, 2, 1_000_000_000)
    assert view_workers(data_of(0)) == (0, None)
    assert view_workers(data_of(2)) == (2, None)  # 8 videos
    found = view_workers(data_of(6))
    assert found.number == 6
    assert found.note.startswith("data.num_workers=6: 6 may need 1789 MB of shared memory, and ")
    assert found.note.endswith(" has 1000 MB free of 64000 MB (docker run --shm-size)")
    assert view_workers(data_of()).note.startswith("2 for each rank: 3 may need 1118 MB of shared memory")
