import numpy as np
import pytest

from nlvideo.data import sampling


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("uniform", [0, 26, 52, 79, 105, 131, 157, 184, 210, 236]),  # 0 to 300 - 64, both included
        ("vnl", [0, 30, 60, 90, 120, 150, 180, 210, 240, 270]),  # the last three run over the end
    ],
)
def test_starts_of_ten_clips_in_300_frames(name, starts):
    assert sampling.clip_starts(name, 10, 300, 32, 2) == starts


def test_one_uniform_clip_is_the_centre_one():
    assert sampling.clip_starts("uniform", 1, 300, 32, 2) == [118]
    assert sampling.clip_starts("uniform", 1, 301, 32, 2) == [118]


@pytest.mark.parametrize("frames", [1, 40, 63, 64])
def test_videos_that_fit_one_window_give_the_same_uniform_clip_ten_times(frames):
    assert sampling.clip_starts("uniform", 10, frames, 32, 2) == [0] * 10


def test_an_unknown_sampling_is_refused():
    with pytest.raises(ValueError, match="'dense' is unknown. Choose from: uniform, vnl"):
        sampling.clip_starts("dense", 10, 300, 32, 2)


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


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(240, 320, (256, 341)), (320, 240, (341, 256)), (9, 9, (256, 256))]
)
def test_the_short_side_becomes_what_is_asked_for(height, width, expected):
    assert sampling.resized_size(height, width, 256) == expected


def test_the_short_side_is_exact_for_every_size():
    # the authors' code truncates to one pixel less for 263 of these heights
    assert all(min(sampling.resized_size(height, 2000, 256)) == 256 for height in range(100, 2001))


def test_crops_stand_along_the_longer_side():
    assert sampling.crop_offsets(3, 256, 341, 256) == [(0, 0), (0, 42), (0, 85)]
    assert sampling.crop_offsets(3, 341, 256, 256) == [(0, 0), (42, 0), (85, 0)]
    assert sampling.crop_offsets(1, 256, 340, 224) == [(16, 58)]
    with pytest.raises(ValueError, match="5 test crops are not defined. Choose from: 1, 3"):
        sampling.crop_offsets(5, 256, 340, 256)


def test_scales_include_both_ends():
    drawn = {int(np.random.default_rng(i).integers(256, 320, endpoint=True)) for i in range(2000)}
    assert drawn == set(range(256, 321))
