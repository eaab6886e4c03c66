import pytest
import torch
import torch.nn.functional as F
from clips import broken_list, train_clips
from conftest import config_of_data as config_of
from conftest import frame_numbers

from nlvideo.build.data import center_batches
from nlvideo.data.clips.batch import SampleKey
from nlvideo.data.clips.train_clips import Drawn
from nlvideo.data.clips.views import CenterClips, MultiViews
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.decoding.video import Crop, Region
from nlvideo.data.lists.path_list import read_table


def test_a_training_clip_is_every_third_frame_of_its_window(video_folder):
    clips = train_clips(video_folder)
    starts = set()
    for epoch in range(20):
        clip = clips[epoch, 0]
        assert clip.frames.shape == (4, 40, 40, 3) and clip.frames.dtype == torch.uint8
        start, *_ = numbers = frame_numbers(clip.frames)
        assert numbers == [start, start + 3, start + 6, start + 9] and start <= 40 - 12
        starts.add(start)
    assert len(starts) > 8


def test_a_short_video_loops(video_folder):
    assert frame_numbers(train_clips(video_folder)[0, 1].frames) == [0, 3, 6, 9]  # 10 frames: only start 0 fits
    clip = train_clips(video_folder, frame_stride=4)[0, 1]
    assert frame_numbers(clip.frames) == [0, 4, 8, 2]


def test_a_sample_is_a_function_of_seed_epoch_and_video(video_folder):
    clips = train_clips(video_folder)
    assert torch.equal(clips[3, 2].frames, train_clips(video_folder)[3, 2].frames)
    assert not torch.equal(clips[3, 2].frames, clips[4, 2].frames)
    assert not torch.equal(clips[3, 2].frames, train_clips(video_folder, seed=1)[3, 2].frames)


@pytest.fixture(scope="module")
def moving_folder(tmp_path_factory):
    """Three videos of moving shapes, 24 frames each."""
    from nlvideo.data.synthetic.writing import write_set

    folder = tmp_path_factory.mktemp("moving") / "set"
    write_set("motions", folder, num_train=3, num_val=0, num_frames=24, height=64, seed=0)
    return folder


def test_the_samples_of_old_versions_are_still_drawn(moving_folder):
    """The numbers are those of the version before crops other than the jittered ones."""
    clips = train_clips(moving_folder, seed=7)
    expected = {
        (0, 0): Drawn(12, Crop((56, 74), 11, 31, 40, 40), False),
        (1, 2): Drawn(8, Crop((59, 77), 19, 27, 40, 40), True),
        (5, 1): Drawn(12, Crop((49, 64), 8, 24, 40, 40), False),
    }
    for (epoch, index), drawn in expected.items():
        assert clips.draw(epoch, index) == drawn
        with PyavVideo(clips.table.path(index)) as video:
            whole = video.read(range(drawn.start, drawn.start + 12, 3), drawn.crop.size, drawn.crop[1:])
        assert torch.equal(clips[epoch, index].frames, whole.flip(2) if drawn.mirrored else whole)


def test_copies_of_a_video_in_one_epoch_differ(video_folder):
    clips = train_clips(video_folder)
    assert torch.equal(clips[SampleKey(3, 2, 0, 99)].frames, clips[3, 2].frames)
    starts = {frame_numbers(clips[SampleKey(3, 2, copy)].frames)[0] for copy in range(12)}
    assert len(starts) > 6 and clips[SampleKey(3, 2, 5, 77)].place == 77


@pytest.mark.parametrize("flip", [False, True])
def test_a_random_resized_crop_is_cut_out_and_then_resized(moving_folder, flip):
    clips = train_clips(moving_folder, crop_area=(0.08, 1.0), flip=flip)
    mirrored = 0
    for epoch in range(12):
        drawn, frames = clips.draw(epoch, epoch % 3), clips[epoch, epoch % 3].frames
        region = drawn.crop
        assert isinstance(region, Region) and region.output == (40, 40) and frames.shape == (4, 40, 40, 3)
        with PyavVideo(clips.table.path(epoch % 3)) as video:
            whole = video.read(range(drawn.start, drawn.start + 12, 3), (video.height, video.width))
        # grown to even borders
        top, left = region.top // 2 * 2, region.left // 2 * 2
        bottom, right = region.top + region.height, region.left + region.width
        part = whole[:, top : bottom + bottom % 2, left : right + right % 2].permute(0, 3, 1, 2)
        expected = F.interpolate(part, (40, 40), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
        assert torch.equal(frames, expected.flip(2) if drawn.mirrored else expected)
        mirrored += drawn.mirrored
    assert 0 < mirrored < 12 if flip else not mirrored


def test_a_drawn_sample_says_what_it_takes(moving_folder):
    assert str(train_clips(moving_folder, seed=7).draw(1, 2)) == (
        "from frame 8, resized to 77x59, crop from x 27, y 19, mirrored"
    )
    region = Region((64, 84), 5, 7, 30, 36, (40, 40))
    assert str(Drawn(3, region, False)) == "from frame 3, 36x30 from x 7, y 5 of 84x64, resized to 40x40"


def test_flipping_mirrors_and_leaves_all_else(tmp_path):
    from nlvideo.data.synthetic.writing import write_set

    write_set("motions", tmp_path / "set", num_train=1, num_val=0, num_frames=16, height=48, seed=0)
    plain, flipped = train_clips(tmp_path / "set", flip=False), train_clips(tmp_path / "set", flip=True)
    mirrored = 0
    for epoch in range(20):
        a, b = plain[epoch, 0].frames, flipped[epoch, 0].frames
        assert torch.equal(a, b) or torch.equal(a.flip(2), b)
        mirrored += torch.equal(a.flip(2), b)
    assert 4 <= mirrored <= 16


def test_a_broken_video_is_replaced_by_a_fixed_rule_and_reported(video_folder, tmp_path):
    clips = train_clips(video_folder, broken_list(video_folder, tmp_path))
    clip, again = clips[0, 1], clips[0, 1]
    assert clip.video == again.video != 1 and torch.equal(clip.frames, again.frames)
    assert clip.target == clips.table.targets[clip.video]
    assert clips[SampleKey(0, 1, 0, 31)].place == 31  # of the video that was wanted
    assert clip.failures and {f.video for f in clip.failures} == {1}
    assert all(f.replaced_by == clip.video and f.epoch == 0 and not f.slow for f in clip.failures)
    assert "Invalid data" in clip.failures[0].reason
    assert len({clips[epoch, 1].video for epoch in range(20)}) > 2  # not always the same one


def test_too_many_broken_videos_in_a_row_stop_the_run(tmp_path):
    (tmp_path / "broken.mp4").write_text("no video")
    (tmp_path / "list.csv").write_text("broken.mp4 0\n")
    with pytest.raises(RuntimeError, match="20 videos in a row could not be decoded, the last: .*broken.mp4"):
        train_clips(tmp_path, read_table(str(tmp_path), "list.csv", None))[0, 0]


def test_the_centre_clip_is_in_the_middle(video_folder):
    table = read_table(str(video_folder), "val.csv", None)
    clips = CenterClips(table, num_frames=4, frame_stride=3, short_side=48, crop_size=40)
    assert frame_numbers(clips[0].frames) == [14, 17, 20, 23]
    assert clips[0].frames.shape == (4, 40, 40, 3)


def test_views_are_ordered_by_clip_then_crop(video_folder):
    table = read_table(str(video_folder), "val.csv", None)
    views = MultiViews(
        table,
        num_frames=4,
        frame_stride=3,
        num_clips=3,
        num_crops=3,
        clip_sampling="uniform",
        short_side=48,
        crop_size=48,
    )[0]
    assert views.num_views == 9 and views.crops == [(0, 0), (0, 8), (0, 16)]
    clips = torch.cat(list(views.chunks(2)))
    assert clips.shape == (9, 3, 4, 48, 48)
    for i, start in enumerate((0, 14, 28)):
        for j in range(3):
            assert frame_numbers(clips[3 * i + j].permute(1, 2, 3, 0)) == [start, start + 3, start + 6, start + 9]
    assert len(views.frames) == 12  # every frame once


def test_undecodable_videos_are_reported_not_dropped(video_folder, tmp_path):
    table = broken_list(video_folder, tmp_path)
    options = {"num_frames": 4, "frame_stride": 3, "short_side": 48}
    views = MultiViews(table, num_clips=3, num_crops=1, clip_sampling="vnl", crop_size=48, **options)
    assert [len(views[i].failures) for i in range(3)] == [0, 1, 0]
    batch = next(iter(center_batches(config_of(video_folder), table, 6, rank=0, size=1)))
    assert len(batch.targets) == 5 and len(batch.failures) == 1 and batch.videos.tolist() == [0, 2, 3, 4, 5]
