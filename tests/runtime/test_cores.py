import os

import pytest

from nlvideo.runtime.cores import cores_of_rank, usable_cores


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def test_ranks_share_the_cores_that_they_may_run_on(eight_cores, monkeypatch):
    assert (usable_cores(), cores_of_rank(), cores_of_rank(3), cores_of_rank(16)) == (8, 8, 2, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (cores_of_rank(), cores_of_rank(2)) == (2, 4)


@pytest.mark.parametrize(("count", "expected"), [(6, 6), (None, 1)])
def test_a_system_without_affinity_has_all_its_cores(monkeypatch, count, expected):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert usable_cores() == expected
