"""Several videos at a time: the same bits, the same ends."""

import os
import signal
from threading import Barrier, Event

import pytest
from feature_cases import SMALL, arrays_in, same

import nlvideo
from nlvideo.features import extractor as extractor_module
from nlvideo.features.lanes import in_lanes

AT_ONCE = 3


def test_workers_work_at_the_same_time_and_never_two_on_one_item():
    together = Barrier(3, timeout=30)

    def work(worker: str, item: int, ended) -> tuple[str, int]:
        together.wait()
        if item == 4:
            raise ValueError(item)
        return worker, item

    found, failed = [], []
    for item, done in in_lanes(work, ["a", "b", "c"], list(range(6))):
        try:
            found.append(done())
            assert found[-1][1] == item
        except ValueError:
            failed.append(item)
    assert sorted(item for _, item in found) == [0, 1, 2, 3, 5] and failed == [4]
    assert {worker for worker, _ in found} <= {"a", "b", "c"}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_end_begins_nothing_more_and_tells_what_is_begun(workers):
    begun, told = [], Event()

    def work(worker: int, item: int, ended) -> None:
        begun.append(item)
        if item == 1:
            while not ended():
                told.wait(0.01)
            told.set()

    for _, done in in_lanes(work, list(range(workers)), list(range(50))):
        done()
        break
    assert len(begun) < 50 and (workers == 1) == (begun == [0])
    assert told.is_set() == (1 in begun)


def test_how_many_videos_are_read_at_a_time(thin):
    extract = nlvideo.FeatureExtractor(thin)
    assert [len(extract.lanes(n)) for n in (0, 1, 9)] == [1, 1, 1]  # a CPU's cores are the network's
    extract.config.videos_at_once = AT_ONCE
    assert [len(extract.lanes(n)) for n in (0, 2, 9)] == [1, 2, 3]
    assert all(lane.network is extract.network for lane in extract.lanes(9))


@pytest.fixture
def given(thin, whole_videos, clips, tmp_path) -> list[str]:
    places = [f"checkpoint={thin}", f"videos={whole_videos}", f"data.root={clips}", f"output={tmp_path}/out"]
    return [*places, *SMALL, f"data.index={tmp_path}/index", f"videos_at_once={AT_ONCE}"]


def test_videos_at_a_time_give_the_same_bits(extract_command, given, alone, tmp_path):
    done = extract_command(*given)
    assert done.returncode == 0, done.stderr
    assert same(arrays_in(tmp_path / "out"), alone)


def test_a_stop_ends_all_of_them_and_the_same_command_goes_on(extract_command, given, alone, tmp_path):
    outputs_of, passes = extractor_module.outputs_of, []

    def stopping(*arguments):
        passes.append(1)
        if len(passes) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return outputs_of(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(extractor_module, "outputs_of", stopping)
        done = extract_command(*given)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert len(arrays_in(tmp_path / "out")) < 3 and not list((tmp_path / "out").rglob("*.part"))
    done = extract_command(*given)
    assert done.returncode == 0, done.stderr
    assert same(arrays_in(tmp_path / "out"), alone)
