"""Several clips of each video that training opens: data.clips_per_video."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from clips import batches_of, broken_list, stream, train_clips
from conftest import frame_numbers

from nlvideo.data.clips import sampling
from nlvideo.data.clips.augmentation import Augmentation
from nlvideo.data.clips.batch import SampleKey, collate
from nlvideo.data.clips.epoch_order import EpochOrder
from nlvideo.data.clips.loading import Share, StepSampler
from nlvideo.data.decoding.opening import Opener
from nlvideo.data.decoding.video import DecodeError
from nlvideo.data.synthetic.writing import write_set


class Only:
    """Random numbers of which one is asked for; `count` is how many it could have been."""

    def __init__(self, value):
        self.value, self.count = value, None

    def integers(self, low, high, endpoint):
        assert endpoint and low == 0
        self.count = high + 1
        return self.value


def near_starts(start, *lengths):
    """Returns the starts that near_start can draw, all of which are equally likely."""
    first = Only(0)
    found = [sampling.near_start(first, start, *lengths)]
    return found + [sampling.near_start(Only(i), start, *lengths) for i in range(1, first.count)]


@pytest.mark.parametrize(
    "lengths", [(300, 32, 2), (301, 32, 2), (85, 32, 2), (64, 32, 2), (10, 32, 2), (50, 4, 3), (40, 1, 1), (99, 6, 7)]
)
def test_each_clip_of_a_video_starts_anywhere_with_the_same_probability(lengths):
    num_video_frames, num_frames, stride = lengths
    last = max(num_video_frames - num_frames * stride, 0)
    probability: Counter = Counter()
    for start in range(last + 1):
        near = near_starts(start, *lengths)
        assert start in near and len(set(near)) == len(near)
        assert all(0 <= s <= last and (s - start) % stride == 0 for s in near)
        assert max(near) - min(near) < max(num_frames * stride // 4, stride)
        for s in near:
            probability[s] += Fraction(1, (last + 1) * len(near))
    assert probability == Counter({start: Fraction(1, last + 1) for start in range(last + 1)})


def test_the_windows_of_a_video_are_drawn_evenly_and_differ(video_folder):
    """The same by statistics, over the samples themselves: neither ends nor middle come more often."""
    clips, drawn = train_clips(video_folder, num_frames=8, frame_stride=1), 1500  # 33 starts, cells of two
    starts = np.array([[clips.draw(epoch, 0, clip=clip).start for clip in range(3)] for epoch in range(drawn)])
    for of_clip in starts.T:
        counts = np.bincount(of_clip, minlength=33)
        assert len(counts) == 33 and ((counts - drawn / 33) ** 2 / (drawn / 33)).sum() < 70  # 1 in 10,000 by chance
    assert 0.4 < (starts[:, 0] == starts[:, 1]).mean() < 0.6
    assert (abs(starts[:, 1] - starts[:, 2]) <= 1).all() and (starts[:, 1] != starts[:, 2]).any()


@pytest.fixture(scope="module")
def moving_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moving") / "set"
    write_set("motions", folder, num_train=6, num_val=0, num_frames=40, height=64, seed=0)
    return folder


def keys_of(epoch, video, count, copy=0, place=0):
    return [SampleKey(epoch, video, copy, place + clip, clip) for clip in range(count)]


@pytest.mark.parametrize("crop_area", [None, (0.1, 1.0)])
@pytest.mark.parametrize("augment", [False, True])
def test_a_clip_is_a_function_of_seed_epoch_video_copy_and_its_number(moving_folder, crop_area, augment):
    augmentation = Augmentation("colour", None, 0.2, (120, 110, 100)) if augment else None
    clips, again = (
        train_clips(moving_folder, crop_area=crop_area, augmentation=augmentation, num_frames=8, frame_stride=2)
        for _ in range(2)
    )
    for epoch, video, copy in ((0, 0, 0), (3, 2, 0), (3, 2, 1)):
        keys = keys_of(epoch, video, 4, copy)
        together = clips.__getitems__(keys)
        for key, clip in zip(keys, together, strict=True):
            assert torch.equal(clip.frames, again[key].frames)  # alone, and whatever was asked for before
        assert torch.equal(together[0].frames, clips[SampleKey(epoch, video, copy)].frames)  # as it was without others
        some = clips.__getitems__([keys[3], keys[1]])
        assert torch.equal(some[0].frames, together[3].frames) and torch.equal(some[1].frames, together[1].frames)
        assert len({clip.frames.numpy().tobytes() for clip in together}) == 4
    other = train_clips(moving_folder, crop_area=crop_area, seed=1, num_frames=8, frame_stride=2)
    assert not torch.equal(clips[3, 2].frames, other[3, 2].frames)
    copies = [clips[SampleKey(3, 2, copy, 0, clip)].frames.numpy().tobytes() for copy in range(3) for clip in range(3)]
    assert len(set(copies)) == 9


def test_a_short_video_loops_in_each_of_its_clips(video_folder):
    clips = train_clips(video_folder, frame_stride=4).__getitems__(keys_of(0, 1, 3))
    assert [frame_numbers(clip.frames) for clip in clips] == [[0, 4, 8, 2]] * 3


def test_each_clip_has_the_target_of_its_own_window(moving_folder, monkeypatch):
    clips = train_clips(moving_folder, num_frames=8, frame_stride=2)
    asked = []
    monkeypatch.setattr(type(clips.table), "clip_target", lambda _self, *window: asked.append(window) or len(asked))
    assert [clip.target for clip in clips.__getitems__(keys_of(3, 1, 4))] == [1, 2, 3, 4]
    starts = [clips.draw(3, 1, clip=clip).start for clip in range(4)]
    fps = 16 / (asked[0][2] - asked[0][1])
    assert [round(start * fps) for _, start, _ in asked] == starts and len(set(starts)) > 1


def test_one_opening_gives_all_clips_of_a_video(video_folder):
    clips, opened = train_clips(video_folder), []

    class Noted(Opener):
        def __call__(self, path, part=None):
            opened.append(path)
            return super().__call__(path, part)

    clips.opener = Noted()
    keys = EpochOrder(6, 0, clips_per_video=3).keys(0, 18)
    batch = collate(clips.__getitems__(keys))
    assert len(opened) == len(set(opened)) == 6 and batch.places.tolist() == list(range(18))
    assert batch.videos.tolist() == [key.video for key in keys]
    assert batch.videos.view(6, 3).unique(dim=1).shape == (6, 1)


def test_the_stream_has_the_draws_of_one_clip_a_video_each_several_times():
    one = EpochOrder(7, 4).keys(0, 21)
    three = EpochOrder(7, 4, clips_per_video=3).keys(0, 63)
    assert three == [key._replace(place=3 * key.place + clip, clip=clip) for key in one for clip in range(3)]
    assert EpochOrder(7, 4, clips_per_video=3).keys(20, 25) == three[20:25]


@pytest.mark.parametrize("balance", ["none", "classes"])
def test_clips_do_not_depend_on_workers_ranks_micro_batches_or_the_first_step(moving_folder, balance):
    more = {"clips_per_video": 2, "balance": balance}
    expected = stream(batches_of(moving_folder, **more))
    assert all(
        videos[::2] == videos[1::2] and all(a != b for a, b in zip(sums[::2], sums[1::2], strict=True))
        for videos, sums in expected
    )
    assert [len(videos) for videos, _ in expected] == [4] * 4
    assert stream(batches_of(moving_folder, num_workers=1, **more)) == expected
    assert stream(batches_of(moving_folder, num_workers=3, start_method="fork", **more)) == expected
    assert stream(batches_of(moving_folder, first_step=3, num_workers=2, **more)) == expected[3:]
    halves = [stream(batches_of(moving_folder, rank=rank, size=2, **more)) for rank in (0, 1)]
    assert [(a[0] + b[0], a[1] + b[1]) for a, b in zip(*halves, strict=True)] == expected
    assert stream(batches_of(moving_folder, num_micro_batches=2, first_step=1, **more)) == expected[1:]


def test_the_first_clips_of_each_video_are_those_of_one_clip_a_video(moving_folder):
    one = [batch for (batch,) in batches_of(moving_folder)][:2]  # 8 clips
    two = [batch for (batch,) in batches_of(moving_folder, clips_per_video=2)]  # 16 clips of 8 videos
    assert torch.equal(torch.cat([batch.clips for batch in one]), torch.cat([batch.clips[::2] for batch in two]))


def test_the_clips_of_a_video_stay_in_one_micro_batch():
    for size, parts in ((2, 1), (1, 2), (2, 2)):
        for rank in range(size):
            order, share = EpochOrder(7, 0, clips_per_video=3), Share(12, rank, size, parts)
            for keys in StepSampler(order, share, first_step=0, last_step=9):
                assert [key.clip for key in keys] == [0, 1, 2] * (len(keys) // 3)
                assert len({key.draw for key in keys}) == len(keys) // 3


def test_a_broken_video_is_replaced_for_all_its_clips_and_reported_once(moving_folder, tmp_path):
    clips = train_clips(moving_folder, broken_list(moving_folder, tmp_path))
    found = clips.__getitems__([*keys_of(0, 0, 3), *keys_of(0, 1, 3, place=3)])
    assert len({clip.video for clip in found[3:]}) == 1 and found[3].video != 1
    assert [clip.place for clip in found] == list(range(6))
    batch = collate(found)
    assert [failure.video for failure in batch.failures] == [1]
    assert batch.failures[0].replaced_by == found[3].video
    assert found[3].video == clips[0, 1].video  # as with one clip a video
    for clip, key in zip(found[3:], keys_of(0, 1, 3), strict=True):
        assert torch.equal(clip.frames, clips[key].frames)
    assert len({clip.frames.numpy().tobytes() for clip in found[3:]}) == 3


def test_a_video_with_a_clip_that_does_not_decode_is_replaced_for_all(video_folder, monkeypatch):
    clips = train_clips(video_folder)
    from nlvideo.data.decoding.pyav_video import PyavVideo

    late = max(clips.draw(0, 0, clip=clip).start for clip in range(4))
    read = PyavVideo.frames

    def damaged(video, indices):
        if video.path.endswith("a video 0.mp4") and indices[-1] >= late + 9:
            raise DecodeError(video.path, "damaged there")
        return read(video, indices)

    monkeypatch.setattr(PyavVideo, "frames", damaged)
    found = clips.__getitems__(keys_of(0, 0, 4))
    assert 0 not in {clip.video for clip in found} and len({clip.video for clip in found}) == 1
    assert [f.reason for clip in found for f in clip.failures][0] == "damaged there"


def test_keys_are_written_as_before():
    assert SampleKey(1, 2) == (1, 2, 0, 0, 0) and SampleKey(1, 2, 3, 4, 5).draw == (1, 2, 3)
    states = [
        tuple(sampling.sample_rng(0, 1, 2, attempt, copy, clip).integers(1 << 62, size=2))
        for attempt in range(3)
        for copy in range(3)
        for clip in range(3)
    ]
    assert len(set(states)) == 27
    # of the version before there were several clips
    assert sampling.sample_rng(0, 1, 2).integers(1 << 30) == np.random.default_rng([0, 1, 2, 0]).integers(1 << 30)
    assert sampling.sample_rng(0, 1, 2, 3, 4).integers(9**9) == np.random.default_rng([0, 1, 2, 3, 4]).integers(9**9)
