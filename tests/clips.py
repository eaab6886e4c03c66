"""Training clips for the tests: loaded in steps, or one by one."""

import torch
from conftest import config_of_data

from nlvideo.build.data import train_batches
from nlvideo.data.clips.loading import Share
from nlvideo.data.clips.train_clips import TrainClips
from nlvideo.data.lists.path_list import read_table


def stream(batches):
    """Returns for each step its videos and the sums of their clips, its micro-batches joined."""
    steps = []
    for parts in batches:
        videos = [video for batch in parts for video in batch.videos.tolist()]
        steps.append((videos, [total for batch in parts for total in batch.clips.sum((1, 2, 3, 4)).tolist()]))
    return steps


def batches_of(folder, rank=0, size=1, num_micro_batches=1, first_step=0, **changes):
    table = read_table(str(folder), "train.csv", None)
    skipped = torch.zeros(len(table), dtype=torch.bool)
    share = Share(4, rank, size, num_micro_batches)
    return train_batches(
        config_of_data(folder, **changes), table, share, skipped, seed=0, first_step=first_step, last_step=4
    )


def train_clips(folder, table=None, **changes):
    table = table or read_table(str(folder), "train.csv", None)
    options = {"num_frames": 4, "frame_stride": 3, "scale_range": (48, 60), "crop_size": 40, "flip": True, "seed": 0}
    return TrainClips(table, **(options | changes))


def broken_list(folder, tmp_path):
    """A list whose video 1 is no video."""
    (tmp_path / "broken.mp4").write_text("no video")
    rows = (folder / "train.csv").read_text().splitlines()
    rows[1] = f"{tmp_path / 'broken.mp4'} 1"
    (tmp_path / "list.csv").write_text("\n".join(rows))
    return read_table(str(folder), str(tmp_path / "list.csv"), None)
