import gc
import itertools
import multiprocessing
import os
import signal
import time

import pytest
import torch
from clips import batches_of, stream
from conftest import config_of_data as config_of
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from nlvideo.build.data import center_batches, video_views
from nlvideo.data.clips.epoch_order import EpochOrder
from nlvideo.data.clips.loading import Loading, Share, StepSampler, batches_of_steps
from nlvideo.data.clips.train_clips import TrainClips
from nlvideo.data.clips.view_loading import each_video
from nlvideo.data.clips.views import MultiViews
from nlvideo.data.decoding.opening import Opener
from nlvideo.data.lists.path_list import read_table
from nlvideo.runtime.errors import RunFailed


@pytest.fixture(autouse=True)
def no_workers_left(monkeypatch):
    """Kills what a test left: a loader would wait seconds for each worker that hangs.

    Looks every half second, not every five, whether a worker has died.
    """
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.5,))
    others = set(multiprocessing.active_children())
    yield
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in set(multiprocessing.active_children()) - others:
        worker.kill()
    gc.collect()


def test_clips_of_two_epochs_do_not_depend_on_workers_their_start_ranks_or_the_first_step(video_folder):
    expected = stream(batches_of(video_folder))
    assert len(expected) == 4  # 16 clips of 6 videos: two epochs and a part
    assert stream(batches_of(video_folder, num_workers=1)) == expected
    assert stream(batches_of(video_folder, num_workers=4)) == expected
    for method in ("fork", "spawn", "forkserver"):
        assert stream(batches_of(video_folder, num_workers=2, start_method=method)) == expected
    assert stream(batches_of(video_folder, first_step=2)) == expected[2:]
    halves = [stream(batches_of(video_folder, rank=rank, size=2)) for rank in (0, 1)]
    joined = [(a[0] + b[0], a[1] + b[1]) for a, b in zip(*halves, strict=True)]
    assert joined == expected
    assert stream(batches_of(video_folder, num_micro_batches=2)) == expected
    assert stream(batches_of(video_folder, num_micro_batches=4, first_step=2, num_workers=2)) == expected[2:]
    assert [len(parts) for parts in batches_of(video_folder, rank=1, size=2, num_micro_batches=2)] == [2] * 4


def test_batches_are_channels_last_without_a_copy(video_folder):
    (batch,) = next(iter(batches_of(video_folder)))
    assert batch.clips.shape == (4, 3, 4, 40, 40)
    assert batch.clips.is_contiguous(memory_format=torch.channels_last_3d)


def test_each_epoch_takes_every_video_once_in_another_order():
    sampler = StepSampler(EpochOrder(7, 0), Share(3), first_step=0, last_step=7)  # 21 clips: three epochs
    keys = list(itertools.chain(*sampler))
    epochs = [[key.video for key in keys if key.epoch == e] for e in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 3
    assert [key.epoch for key in keys] == [0] * 7 + [1] * 7 + [2] * 7
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_validation_takes_every_video_once_for_any_number_of_processes(video_folder, size):
    table = read_table(str(video_folder), "val.csv", None)
    seen = []
    for rank in range(size):
        for batch in center_batches(config_of(video_folder), table, 2, rank=rank, size=size):
            seen += batch.videos.tolist()
    assert sorted(seen) == list(range(len(table)))


def test_views_are_those_of_the_videos_asked_for(video_folder):
    table = read_table(str(video_folder), "val.csv", None)
    for workers in (0, 2):
        views = video_views(config_of(video_folder, num_workers=workers), table, [3, 0, 4])
        assert [video.video for video in views] == [3, 0, 4]


class HangingViews(MultiViews):
    """Views of which one video's hang, as if deep inside a C call."""

    def views(self, video, index=0):
        if index == 2:
            time.sleep(60)
        return super().views(video, index)


@pytest.mark.parametrize("skip_slow", [False, True])
def test_a_video_that_hangs_stops_the_evaluation_or_counts_as_wrong(video_folder, skip_slow):
    table, test = read_table(str(video_folder), "val.csv", None), config_of(video_folder).test
    options = {key: value for key, value in vars(test).items() if key != "pooling"}
    opener = Opener(time_limit=30)
    opener.watch.seconds = 1
    views = HangingViews(table, num_frames=4, frame_stride=3, opener=opener, skip_slow=skip_slow, **options)
    if skip_slow:
        found = list(each_video(views, range(5), Loading(2)))
        assert [video.video for video in found] == [0, 1, 2, 3, 4]
        assert [[f.reason for f in video.failures] for video in found] == [[], [], ["decoding hangs"], [], []]
    else:
        with pytest.raises(RunFailed, match=r"Loading worker \d hangs in .*a video 2.mp4"):
            list(each_video(views, range(5), Loading(2)))


def no_room(_self):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)")


@pytest.mark.parametrize("skip_slow", [False, True])
def test_workers_that_find_no_shared_memory_end_the_evaluation(video_folder, monkeypatch, skip_slow):
    """No video is to blame; PyTorch's own workers would drop the views, and their reader wait forever."""
    table = read_table(str(video_folder), "val.csv", None)
    data = config_of(video_folder, num_workers=2, start_method="fork", skip_slow=skip_slow, time_limit_seconds=30)
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)  # forked workers have it too
    with pytest.raises(RunFailed, match=r"^A loading worker found no room in shared memory for .*docker run"):
        list(video_views(data, table, range(5)))


def test_workers_that_find_no_shared_memory_end_the_training(video_folder, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    with pytest.raises(RunFailed, match=r"no room in shared memory for 0.1 MB: .*Use fewer workers, data.num_workers"):
        list(batches_of(video_folder, num_workers=1, start_method="fork"))


def test_what_workers_load_is_in_shared_memory_before_it_is_sent(video_folder, monkeypatch):
    """And in no other process: there it would only be copied."""
    shared, share = multiprocessing.Value("i", 0), torch.Tensor.share_memory_

    def counted(tensor):
        with shared.get_lock():
            shared.value += 1
        return share(tensor)

    monkeypatch.setattr(torch.Tensor, "share_memory_", counted)
    table = read_table(str(video_folder), "val.csv", None)
    list(video_views(config_of(video_folder, num_workers=0), table, range(5)))
    assert shared.value == 0
    list(video_views(config_of(video_folder, num_workers=1, start_method="fork"), table, range(5)))
    assert shared.value == 10  # the frames of each video and which are whose


class SlowClips(TrainClips):
    """Clips of which one video's take long: in Python, where the decoder notices, or deep inside a C call."""

    slow_video, hangs = 2, False

    def _read(self, index, _rngs, clips):
        with self.opener(self.table.path(index)) as video:
            if index == self.slow_video:
                if self.hangs:
                    time.sleep(60)
                video._deadline.end = 0  # what was allowed is over
            return [(video.read([0], (48, 64), (0, 0, 40, 40)), 0)] * len(clips)


def slow_clips(folder, hangs=False, **options):
    table = read_table(str(folder), "train.csv", None)
    opener = Opener(time_limit=30)
    if hangs:
        opener.watch.seconds = 1
    settings = {"num_frames": 1, "frame_stride": 1, "scale_range": (48, 48), "crop_size": 40, "flip": False, "seed": 0}
    clips = SlowClips(
        table, opener=opener, skipped=torch.zeros(6, dtype=torch.bool).share_memory_(), **settings | options
    )
    clips.hangs = hangs
    return clips


def all_batches(clips, workers, first_step=0, last_step=4):
    order = EpochOrder(len(clips), clips.seed)
    steps = batches_of_steps(clips, order, Share(4), Loading(workers), first_step=first_step, last_step=last_step)
    return [batch for parts in steps for batch in parts]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_slow_video_stops_the_run_with_its_file_and_stack(video_folder, workers):
    with pytest.raises(RunFailed, match="decoding takes longer than data.time_limit_seconds=30") as caught:
        all_batches(slow_clips(video_folder), workers)
    assert "a video 2.mp4" in str(caught.value) and "data.skip_slow=true" in str(caught.value)
    if workers:
        assert "worker process 0" in str(caught.value) and "_read" in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_slow_video_may_be_skipped_and_is_then_known(video_folder, workers):
    clips = slow_clips(video_folder, skip_slow=True)
    batches = all_batches(clips, workers)
    failures = [failure for batch in batches for failure in batch.failures]
    assert failures and {failure.video for failure in failures} == {2} and all(f.slow for f in failures)
    assert all(2 not in batch.videos for batch in batches) and all(len(batch.videos) == 4 for batch in batches)
    clips.skipped[2] = True  # as the training loop does
    again = [failure for batch in all_batches(clips, workers) for failure in batch.failures]
    assert {failure.reason for failure in again} == {"skipped, because it took too long before"}
    assert [f.replaced_by for f in again] == [f.replaced_by for f in failures]


def test_a_slow_video_of_the_validation_stops_the_run_or_counts_as_wrong(video_folder):
    table = read_table(str(video_folder), "val.csv", None)
    for skip_slow in (False, True):
        data = config_of(video_folder, time_limit_seconds=1e-6, skip_slow=skip_slow)
        batches = center_batches(data, table, 5, rank=0, size=1)
        if skip_slow:
            (batch,) = batches
            assert len(batch.targets) == 0 and [failure.video for failure in batch.failures] == list(range(5))
        else:
            with pytest.raises(RunFailed, match="a video 0.mp4: decoding takes longer than"):
                next(batches)


def test_a_worker_that_hangs_in_c_is_named_with_its_video_and_stack(video_folder):
    with pytest.raises(RunFailed, match=r"Loading worker \d hangs in .*a video 2.mp4") as caught:
        all_batches(slow_clips(video_folder, hangs=True), 2)
    assert "Timeout" in str(caught.value) and "in _read" in str(caught.value)


def test_training_continues_without_a_video_that_hangs_if_it_may(video_folder):
    clips = slow_clips(video_folder, hangs=True, skip_slow=True)
    batches = all_batches(clips, 2)
    assert clips.skipped.tolist() == [False, False, True, False, False, False]
    assert len(batches) == 4 and all(2 not in batch.videos for batch in batches)
    reasons = {failure.reason for batch in batches for failure in batch.failures}
    assert reasons == {"skipped, because it took too long before"}
    expected = all_batches(slow_clips(video_folder, skip_slow=True), 0)
    assert [b.videos.tolist() for b in batches] == [b.videos.tolist() for b in expected]


class DyingClips(SlowClips):
    def _read(self, index, _rngs, clips):
        with self.opener(self.table.path(index)):
            if index == 2:
                os.kill(os.getpid(), 11)
        return [(torch.zeros(1, 40, 40, 3, dtype=torch.uint8), 0)] * len(clips)


def test_a_worker_that_dies_is_named_with_its_video(video_folder):
    clips = slow_clips(video_folder)
    clips.__class__ = DyingClips
    with pytest.raises(RunFailed, match=r"Loading worker \d died in .*a video 2.mp4"):
        all_batches(clips, 2)


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError])
def test_a_worker_that_dies_as_its_batch_is_fetched_is_named_with_its_video(video_folder, monkeypatch, error):
    """The connection that a tensor is fetched by breaks then, which is another error than that of the loader."""
    clips = slow_clips(video_folder)
    clips.__class__ = DyingClips
    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", lambda *_: fetch_from_the_dead(error))
    with pytest.raises(RunFailed, match=r"Loading worker \d died in .*a video 2.mp4"):
        all_batches(clips, 1)


def fetch_from_the_dead(error):
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the loader's handler may come first, or second
    (worker,) = (p for p in multiprocessing.active_children() if p.name.startswith(("Process", "ForkProcess")))
    worker.join()
    raise error


def test_an_error_that_is_about_no_video_stays_what_it_is(video_folder):
    clips = slow_clips(video_folder)
    clips._read = None
    with pytest.raises(TypeError):
        list(batches_of_steps(clips, EpochOrder(6, 0), Share(1), Loading(1), first_step=0, last_step=1))
