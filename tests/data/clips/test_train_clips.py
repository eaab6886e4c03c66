import pytest
import torch
from conftest import config_of_data as config_of
from conftest import frame_numbers

from nlvideo.build.data import center_batches
from nlvideo.data.clips.train_clips import TrainClips
from nlvideo.data.clips.views import CenterClips, MultiViews
from nlvideo.data.lists.path_list import read_table


def train_clips(folder, table=None, **changes):
    table = table or read_table(str(folder), "train.csv", None)
    options = {"num_frames": 4, "frame_stride": 3, "scale_range": (48, 60), "crop_size": 40, "flip": True, "seed": 0}
    return TrainClips(table, **(options | changes))


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


def broken_list(folder, tmp_path):
    """A list whose video 1 is no video."""
    (tmp_path / "broken.mp4").write_text("no video")
    rows = (folder / "train.csv").read_text().splitlines()
    rows[1] = f"{tmp_path / 'broken.mp4'} 1"
    (tmp_path / "list.csv").write_text("\n".join(rows))
    return read_table(str(folder), str(tmp_path / "list.csv"), None)


def test_a_broken_video_is_replaced_by_a_fixed_rule_and_reported(video_folder, tmp_path):
    clips = train_clips(video_folder, broken_list(video_folder, tmp_path))
    clip, again = clips[0, 1], clips[0, 1]
    assert clip.video == again.video != 1 and torch.equal(clip.frames, again.frames)
    assert clip.target == clips.table.targets[clip.video]
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
