import numpy as np
import pytest
import torch

from nlvideo.data.clips import sampling, view_sampling


def starts(name, num_clips=10, frames=300, num_frames=32, stride=2, **fps):
    return view_sampling.view_indices(name, num_clips, frames, num_frames, stride, **fps)[:, 0].tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uniform", [0, 26, 52, 79, 105, 131, 157, 184, 210, 236]),  # 0 to 300 - 64, both included
        ("vnl", [0, 30, 60, 90, 120, 150, 180, 210, 240, 270]),  # the last three run over the end
        ("slowfast", [0, 23, 47, 70, 94, 118, 141, 165, 188, 212]),  # 236 * j / 10, cut off
        ("mmaction", [0, 26, 53, 79, 105, 132, 158, 184, 211, 237]),  # 0 to 300 - 63
        ("mmaction_dense", [0, 26, 52, 78, 104, 131, 157, 183, 209, 236]),
    ],
)
def test_starts_of_ten_clips_in_300_frames(name, expected):
    assert starts(name) == expected


@pytest.mark.parametrize(
    ("name", "clip", "expected"),
    [
        ("uniform", 9, list(range(236, 300, 2))),
        ("vnl", 9, [*range(270, 300, 2), *range(0, 34, 2)]),
        ("mmaction", 9, list(range(237, 300, 2))),
        ("mmaction_dense", 9, list(range(236, 300, 2))),
    ],
)
def test_clips_take_exact_strides(name, clip, expected):
    assert view_sampling.view_indices(name, 10, 300, 32, 2)[clip].tolist() == expected


def test_slowfasts_stride_is_nine_where_eight_is_said():
    clips = view_sampling.view_indices("slowfast", 10, 300, 8, 8)
    assert clips[0].tolist() == [0, 9, 18, 27, 36, 45, 54, 63]
    assert clips[1].tolist() == [23, 32, 41, 50, 59, 68, 77, 86]  # from 23.6 on
    assert view_sampling.view_indices("slowfast", 1, 300, 4, 16)[0].tolist() == [0, 21, 42, 63]


def test_slowfasts_window_is_a_time():
    assert view_sampling.view_indices("slowfast", 1, 300, 8, 8, fps=15)[0].tolist() == [0, 4, 8, 13, 17, 22, 26, 31]
    assert starts("slowfast", fps=60) == [0, 17, 34, 51, 68, 86, 103, 120, 137, 154]  # (300 - 128) * j / 10


def test_slowfast_repeats_the_last_frame_of_a_short_video():
    assert view_sampling.view_indices("slowfast", 2, 40, 8, 8).tolist() == [[0, 9, 18, 27, 36, 39, 39, 39]] * 2


def test_mmactions_dense_window_is_64_frames_whatever_the_clip_takes():
    assert starts("mmaction_dense", stride=4) == starts("mmaction_dense")
    assert view_sampling.view_indices("mmaction_dense", 10, 300, 32, 4)[9].tolist() == [
        *range(236, 300, 4),
        *range(0, 64, 4),
    ]


def test_mmaction_rounds_halves_to_even_numbers():
    assert starts("mmaction", num_clips=3, frames=64) == [0, 0, 1]
    assert starts("mmaction", num_clips=3, frames=66) == [0, 2, 3]


def test_one_clip_is_the_centre_one():
    assert starts("uniform", 1) == [118] and starts("uniform", 1, 301) == [118]
    assert starts("mmaction", 1) == [118] and starts("mmaction", 1, 302) == [119]


@pytest.mark.parametrize("frames", [1, 40, 63, 64])
def test_videos_that_fit_one_window_give_the_same_uniform_clip_ten_times(frames):
    assert starts("uniform", frames=frames) == [0] * 10


def test_an_unknown_sampling_is_refused():
    with pytest.raises(ValueError, match="'dense' is unknown. Choose from: uniform, vnl"):
        view_sampling.view_indices("dense", 10, 300, 32, 2)


def test_a_clip_takes_every_second_frame_of_its_window():
    assert sampling.clip_indices(100, 300, 32, 2).tolist() == list(range(100, 164, 2))


def test_a_clip_loops_over_a_short_video():
    assert sampling.clip_indices(0, 10, 8, 2).tolist() == [0, 2, 4, 6, 8, 0, 2, 4]
    assert sampling.clip_indices(270, 300, 32, 2).tolist() == [*range(270, 300, 2), *range(0, 34, 2)]
    assert sampling.clip_indices(0, 1, 4, 2).tolist() == [0, 0, 0, 0]


def test_training_starts_cover_all_that_fit():
    starts = {sampling.sample_start(sampling.sample_rng(0, epoch, 5), 68, 32, 2) for epoch in range(200)}
    assert starts == {0, 1, 2, 3, 4}
    assert sampling.sample_start(sampling.sample_rng(0, 0, 5), 63, 32, 2) == 0


def test_random_numbers_are_those_of_the_sample():
    draw = lambda *key: sampling.sample_rng(*key).integers(1 << 30)  # noqa: E731
    assert draw(0, 1, 2) == draw(0, 1, 2)
    assert len({draw(0, 1, 2), draw(1, 1, 2), draw(0, 2, 2), draw(0, 1, 3), draw(0, 1, 2, 1), draw(0, 2, 1)}) == 6


def test_the_first_draw_of_an_epoch_has_the_random_numbers_of_always():
    assert sampling.sample_rng(7, 1, 2).integers(1 << 30) == np.random.default_rng([7, 1, 2, 0]).integers(1 << 30)
    draws = {sampling.sample_rng(7, 1, 2, attempt, copy).integers(1 << 30) for attempt in (0, 1) for copy in range(3)}
    assert len(draws) == 6


def boxes(height, width, area, count=3000):
    return np.array([sampling.sample_box(np.random.default_rng(i), height, width, area) for i in range(count)])


def test_random_boxes_have_the_areas_and_aspects_asked_for():
    top, left, height, width = boxes(480, 640, (0.08, 0.5)).T
    shares, aspects = height * width / (480 * 640), width / height
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 480).all() and (left + width <= 640).all()
    assert 0.079 < shares.min() < 0.09 and 0.49 < shares.max() < 0.502
    np.testing.assert_allclose(shares.mean(), 0.29, atol=0.01)
    assert 0.74 < aspects.min() < 0.76 and 1.32 < aspects.max() < 1.345
    np.testing.assert_allclose(np.log(aspects).mean(), 0, atol=0.01)  # as often wider as higher
    assert abs(top.mean() - (480 - height).mean() / 2) < 5 and abs(left.mean() - (640 - width).mean() / 2) < 5


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(100, 1000, (0, 433, 100, 133)), (1000, 100, (433, 0, 133, 100)), (100, 120, (0, 0, 100, 120))],
)
def test_the_middle_is_taken_where_no_box_fits(height, width, expected):
    """The whole area fits no frame with an aspect of 3:4, which is what is drawn each time."""

    class Unlucky:
        def uniform(self, low, high):
            return low

    assert sampling.sample_box(Unlucky(), height, width, (1.0, 1.0)) == expected


@pytest.mark.parametrize(("height", "width"), [(100, 1000), (1000, 100), (97, 241), (240, 320)])
def test_boxes_are_torchvisions(height, width):
    """The same numbers, drawn in the same order, give the same boxes."""
    from torchvision.transforms import v2

    class Same:
        """What RandomResizedCrop draws from torch."""

        def uniform(self, low, high):
            return torch.empty(1).uniform_(low, high).item()

        def integers(self, low, high, endpoint):
            return torch.randint(low, high + endpoint, (1,)).item()

    crop = v2.RandomResizedCrop(224, scale=(0.3, 1.0))
    for seed in range(50):
        torch.manual_seed(seed)
        wanted = crop.make_params([torch.empty(3, height, width)])
        torch.manual_seed(seed)
        found = sampling.sample_box(Same(), height, width, (0.3, 1.0))
        assert found == tuple(wanted[name] for name in ("top", "left", "height", "width"))


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(240, 320, (256, 341)), (320, 240, (341, 256)), (9, 9, (256, 256))]
)
def test_the_short_side_becomes_what_is_asked_for(height, width, expected):
    assert sampling.resized_size(height, width, 256) == expected


def test_the_short_side_is_exact_for_every_size():
    # the authors' code truncates to one pixel less for 263 of these heights
    assert all(min(sampling.resized_size(height, 2000, 256)) == 256 for height in range(100, 2001))


def test_crops_stand_along_the_longer_side():
    assert view_sampling.crop_offsets(3, 256, 341, 256) == [(0, 0), (0, 42), (0, 85)]
    assert view_sampling.crop_offsets(3, 341, 256, 256) == [(0, 0), (42, 0), (85, 0)]
    assert view_sampling.crop_offsets(1, 256, 340, 224) == [(16, 58)]
    with pytest.raises(ValueError, match="5 test crops are not defined. Choose from: 1, 3"):
        view_sampling.crop_offsets(5, 256, 340, 256)


def test_scales_include_both_ends():
    drawn = {int(np.random.default_rng(i).integers(256, 320, endpoint=True)) for i in range(2000)}
    assert drawn == set(range(256, 321))
