"""Augmentations: one draw for all frames, from the sample's own random numbers."""

import pickle
import random

import numpy as np
import pytest
import torch
from conftest import composed
from conftest import config_of_data as config_of
from torchvision.transforms import v2
from torchvision.tv_tensors import Video

from nlvideo.build.data import train_batches, train_clips
from nlvideo.data.clips.augmentation import CHUNK, Augmentation
from nlvideo.data.clips.loading import Share
from nlvideo.data.lists.path_list import read_table
from nlvideo.runtime.errors import UserError

COLOUR = (124.0, 116.0, 104.0)
KINDS = ("colour", "randaugment", "trivial")


def smooth_frame(height=40, width=48):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / a + y / b + c) for a, b, c in ((2.5, 7, 0), (5, 3, 1), (9, 2.7, 2))]
    return torch.from_numpy((127 + 120 * np.stack(waves, 2)).astype(np.uint8))


def moving_clip(num_frames=2 * CHUNK + 1):
    """A clip (T, H, W, 3) whose frames all differ, and whose last chunk is not full."""
    return torch.stack([smooth_frame().roll(3 * t, 1) for t in range(num_frames)])


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_equal_frames_stay_equal(kind):
    clip = smooth_frame().expand(2 * CHUNK + 1, -1, -1, -1)
    augmentation = Augmentation(kind, None, 0.5, COLOUR)
    changed = [augmentation(clip, seed) for seed in range(40)]
    for found in changed:
        assert found.dtype == torch.uint8 and found.shape == clip.shape and found.is_contiguous()
        assert type(found) is torch.Tensor and all(torch.equal(frame, found[0]) for frame in found)
    assert sum(not torch.equal(found, clip) for found in changed) > 10
    assert len({found.sum().item() for found in changed}) > 10


@pytest.mark.parametrize(
    ("kind", "strength", "transform"),
    [
        ("colour", None, v2.ColorJitter(0.4, 0.4, 0.4)),
        ("colour", 0.1, v2.ColorJitter(0.1, 0.1, 0.1)),
        ("randaugment", None, v2.RandAugment(2, 9, interpolation="bilinear")),
        ("randaugment", 30.0, v2.RandAugment(2, 30, interpolation="bilinear")),
        ("trivial", None, v2.TrivialAugmentWide(interpolation="bilinear")),
        ("none", None, v2.RandomErasing(1.0, value=COLOUR)),
    ],
)
def test_it_is_torchvisions_on_the_whole_clip(kind, strength, transform):
    clip, augmentation = moving_clip(), Augmentation(kind, strength, float(kind == "none"), COLOUR)
    for seed in range(12):
        torch.manual_seed(seed)
        expected = transform(Video(clip.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        assert torch.equal(augmentation(clip, seed), expected)


def test_the_largest_colour_strength_is_allowed():
    assert Augmentation("colour", 1.0, 0.0, COLOUR)(moving_clip(2), 0).shape == (2, 40, 48, 3)


def test_no_other_random_numbers_are_used_or_changed():
    augmentations, clip = [Augmentation(kind, None, 0.5, COLOUR) for kind in KINDS], moving_clip()
    expected = [augmentation(clip, 5) for augmentation in augmentations]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    found = [augmentation(clip, 5) for augmentation in augmentations]
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert all(map(torch.equal, expected, found))


def test_the_clip_that_is_given_stays_as_it_is():
    clip = moving_clip()
    for kind in ("none", *KINDS):
        for seed in range(5):
            Augmentation(kind, None, 1.0, COLOUR)(clip, seed)
    assert torch.equal(clip, moving_clip())


def test_erasing_fills_one_rectangle_with_the_mean_colour_as_often_as_it_should():
    clip, augmentation, erased = moving_clip(5), Augmentation("none", None, 0.3, (123.7, 116.3, 103.5)), 0
    for seed in range(200):
        changed = (augmentation(clip, seed) != clip).any(3)  # (T, H, W)
        if changed.any():
            erased += 1
            filled = augmentation(clip, seed)[changed]
            assert (filled == torch.tensor([124, 116, 104], dtype=torch.uint8)).all()
    assert 40 <= erased <= 80


@pytest.mark.parametrize(("kind", "strength"), [("colour", 1.0), ("randaugment", None)])
def test_nothing_exchanges_left_and_right(kind, strength):
    """Where they are the label, flip=false is enough: what is striped stays on its side."""
    frame = torch.full((40, 40, 3), 80, dtype=torch.uint8)
    frame[::2, 20:] = 160
    augmentation = Augmentation(kind, strength, 0.0, COLOUR)
    for seed in range(200):
        columns = augmentation(frame[None], seed)[0, 10:30].float().std(0).mean(1)
        assert columns[28:32].mean() > columns[8:12].mean() or not columns.any()  # brightness 0


def test_it_can_be_sent_to_workers_and_says_what_it_is():
    clip = moving_clip(3)
    for augmentation, text in (
        (Augmentation("colour", None, 0.0, COLOUR), "colour 0.4"),
        (Augmentation("randaugment", 12, 0.25, COLOUR), "randaugment 12, erasing 0.25"),
        (Augmentation("trivial", None, 0.0, COLOUR), "trivial"),
        (Augmentation("none", None, 0.5, COLOUR), "erasing 0.5"),
    ):
        assert str(augmentation) == text
        assert torch.equal(pickle.loads(pickle.dumps(augmentation))(clip, 3), augmentation(clip, 3))


def augmented_batches(folder, workers=0, first_step=0, **changes):
    settings = {"augment": "randaugment", "erasing": 0.5, "crop": "random_resized", "balance": "sqrt"} | changes
    table = read_table(str(folder), "train.csv", None)
    data, skipped = config_of(folder, num_workers=workers, **settings), torch.zeros(len(table), dtype=torch.bool)
    share = Share(4, 0, 1, 2)
    steps = list(train_batches(data, table, share, skipped, seed=3, first_step=first_step, last_step=3))
    return [[(b.videos.tolist(), b.places.tolist(), b.clips) for b in parts] for parts in steps]


def test_augmented_and_balanced_batches_do_not_depend_on_workers_or_the_first_step(video_folder):
    expected = augmented_batches(video_folder)
    assert [places for parts in expected for _, places, _ in parts] == [[2 * i, 2 * i + 1] for i in range(6)]
    runs = [(augmented_batches(video_folder, workers=2), expected)]
    runs += [(augmented_batches(video_folder, workers=1, start_method="spawn"), expected)]
    runs += [(augmented_batches(video_folder, first_step=2), expected[2:])]
    for found, wanted in runs:
        for parts, others in zip(found, wanted, strict=True):
            for (videos, places, clips), (*same, same_clips) in zip(parts, others, strict=True):
                assert [videos, places] == same and torch.equal(clips, same_clips)


def test_without_augmentation_torchvision_is_not_asked(video_folder):
    table = read_table(str(video_folder), "train.csv", None)
    skipped = torch.zeros(len(table), dtype=torch.bool)
    assert train_clips(config_of(video_folder), table, skipped, seed=0).augmentation is None
    drawn = train_clips(config_of(video_folder, erasing=0.1), table, skipped, seed=0)
    assert str(drawn.augmentation) == "erasing 0.1"


def test_augmentation_changes_neither_window_nor_crop_nor_flip(video_folder):
    table, skipped = read_table(str(video_folder), "train.csv", None), torch.zeros(6, dtype=torch.bool)
    plain = train_clips(config_of(video_folder), table, skipped, seed=0)
    changed = train_clips(config_of(video_folder, augment="colour"), table, skipped, seed=0)
    drawn = [clips.draw(2, 3)._replace(augment_seed=0) for clips in (plain, changed)]
    assert drawn[0] == drawn[1]
    frames = Augmentation("colour", None, 0.0, COLOUR)(plain[2, 3].frames, changed.draw(2, 3).augment_seed)
    assert torch.equal(changed[2, 3].frames, frames)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.augment=flip"], "data.augment=flip: choose from none, colour, randaugment, trivial"),
        (["data.augment_strength=3"], "data.augment_strength=3.0 has no effect on data.augment=none"),
        (["data.augment=trivial", "data.augment_strength=3"], "has no effect on data.augment=trivial"),
        (["data.augment=colour", "data.augment_strength=1.5"], "must be above 0 and not exceed 1 for data.augment=col"),
        (["data.augment=randaugment", "data.augment_strength=7.5"], "strength=7.5: the magnitude .* is a whole number"),
        (["data.erasing=1.1"], "data.erasing=1.1: must be a probability, from 0 to 1"),
        (["data.crop_area=[0.3,1]"], r"data.crop_area=\[0.3, 1.0\] has no effect on data.crop=jitter"),
        (["data.crop=random_resized", "data.crop_area=[0.5,0.3]"], "must be two shares of a frame, the smaller first"),
    ],
)
def test_settings_without_meaning_or_effect_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        composed("data.root=x", *overrides)


def test_random_resized_crops_may_be_larger_than_the_scales_that_it_does_not_take():
    options = ["data.root=x", "data.crop_size=288", "data.test.short_side=288"]
    assert composed(*options, "data.crop=random_resized").data.crop_size == 288
    with pytest.raises(UserError, match="neither below data.crop_size=288"):
        composed(*options)
