"""How ranks find each other and their devices; whole runs of several ranks are in tests/training."""

import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from nlvideo.runtime import distributed
from nlvideo.runtime.distributed import check_same, connected_store, gpu_of
from nlvideo.runtime.errors import UserError


def test_a_value_that_comes_after_the_time_for_connecting_is_waited_for():
    store = dist.TCPStore("localhost", 0, 2, is_master=True, wait_for_workers=False)
    other = connected_store("localhost", store.port, 2)
    assert other.timeout >= timedelta(minutes=30)
    late = threading.Thread(target=lambda: (time.sleep(5.5), store.set("late", "value")))
    late.start()
    assert other.get("late") == b"value"
    late.join()


@pytest.fixture
def gpus(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_each_rank_of_a_machine_has_a_gpu_of_its_own(gpus, monkeypatch):
    gpus(4)
    assert [gpu_of(rank).index for rank in range(4)] == [0, 1, 2, 3]
    with pytest.raises(UserError, match="Local rank 4 has no GPU: this machine has 4"):
        gpu_of(4)


def test_a_rank_that_sees_one_gpu_alone_takes_it_unless_torchrun_shows_it_to_all(gpus, monkeypatch):
    gpus(1)
    assert [gpu_of(rank).index for rank in range(3)] == [0, 0, 0]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    assert gpu_of(0).index == 0
    with pytest.raises(UserError, match="Local rank 1 has no GPU: this machine has 1"):
        gpu_of(1)


@pytest.mark.parametrize(
    ("mine", "theirs", "shown"),
    [
        ("ab12", "cd34", "cd34 instead of ab12"),
        ({"torch": "2.14", "av": "17"}, {"torch": "2.12", "av": "17"}, "torch: 2.12 instead of torch: 2.14"),
    ],
)
def test_a_rank_that_has_another_value_is_named_with_its_node(monkeypatch, mine, theirs, shown):
    values = [("node-a", mine), ("node-a", mine), ("node-b", theirs)]
    monkeypatch.setattr(distributed, "gather_from_nodes", lambda _: values)
    with pytest.raises(UserError, match=f"^Rank 2 on node-b has another list than rank 0 on node-a: {shown}.$"):
        check_same(mine, "list")
    monkeypatch.setattr(distributed, "gather_from_nodes", lambda _: values[:2])
    check_same(mine, "list")


def test_one_rank_of_each_node_acts(monkeypatch):
    called = []
    for rank, local_rank in enumerate((0, 1, 0, 1)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        distributed.on_each_node(called.append, rank)
    assert called == [0, 2]
