import pytest
from conftest import composed, write_grey_video
from runs import TINY, config_of

from nlvideo.build.tables import read_train_table, read_val_table
from nlvideo.runtime.errors import UserError
from nlvideo.train import train
from nlvideo.training.data_warnings import count_short, data_warnings
from nlvideo.training.known_videos import known_videos


def test_a_run_and_a_dry_run_print_the_warnings(video_folder, tmp_path, capsys):
    (tmp_path / "both.csv").write_text((video_folder / "val.csv").read_text())
    lists = [f"data.train={tmp_path}/both.csv", f"data.val={tmp_path}/both.csv", "optim.max_steps=1"]
    for more in (["dry_run=true"], []):
        train(config_of(video_folder, tmp_path / "run", *lists, *more))
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
        assert lines == [
            "warning   5 videos are in both lists: val/a video 0.mp4, val/a video 1.mp4, val/a video 2.mp4, ..."
        ]


def test_short_videos_are_counted(tmp_path):
    for i, count in enumerate((20, 5, 20, 7)):
        write_grey_video(tmp_path / f"video {i}.mp4", count)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    names = [*(f"video {i}.mp4" for i in range(4)), "broken.mp4"]
    (tmp_path / "train.csv").write_text("".join(f"{name},{i % 2}\n" for i, name in enumerate(names)))
    (tmp_path / "val.csv").write_text("elsewhere.mp4,0\nvideo 9.mp4,1\n")
    write_grey_video(tmp_path / "elsewhere.mp4", 5)
    data = composed(*TINY, f"data.root={tmp_path}", "data.num_frames=4", "data.frame_stride=2").data
    train_table = read_train_table(data)
    assert count_short(data, train_table) == (2, 4)
    val_table = read_val_table(data, train_table.classes)
    (line,) = data_warnings(data, train_table, val_table, known_videos(data, train_table))
    assert line.startswith("2 of the 4 training videos looked at are shorter than a clip's window of 8 frames")


def test_a_list_of_one_class_is_refused_unless_there_are_more(video_folder, tmp_path):
    (tmp_path / "one.csv").write_text("train/a video 0.mp4 0\ntrain/a video 1.mp4 0\n")
    overrides = [*TINY, f"data.root={video_folder}", f"data.train={tmp_path}/one.csv"]
    with pytest.raises(UserError, match=r"one.csv has videos of one class only, 0: .* set data.num_classes"):
        read_train_table(composed(*overrides).data)
    assert len(read_train_table(composed(*overrides, "data.num_classes=3").data).classes) == 3
