"""Videos that cannot be decoded, in training."""

import pytest
from runs import broken, config_of, ledger_of, list_with_broken, rows_of

from nlvideo.runtime.errors import RunFailed
from nlvideo.train import train


def test_bad_videos_are_replaced_and_counted(video_folder, tmp_path):
    option = broken(video_folder, tmp_path, 1)
    train(config_of(video_folder, tmp_path / "run", option, "data.max_bad_share=0.9", "optim.max_steps=6"))
    last = [row for row in rows_of(tmp_path / "run") if row["split"] == "train"][-1]
    assert last["bad_share"] >= 2 / 12  # two epochs


def test_too_many_bad_videos_stop_the_run(video_folder, tmp_path):
    option = broken(video_folder, tmp_path, 4)
    with pytest.raises(RunFailed, match="could not be decoded, more than data.max_bad_share=0.02 allows"):
        train(config_of(video_folder, tmp_path / "run", option))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_over_a_list_with_bad_files_finishes_and_its_ledger_names_exactly_those(video_folder, tmp_path, workers):
    option = list_with_broken(video_folder, tmp_path, 1)  # 5 %
    settings = (option, "data.max_bad_share=0.1", "optim.max_steps=20", f"data.num_workers={workers}")
    train(config_of(video_folder, tmp_path / "run", *settings))  # 40 clips: two epochs
    ledger = ledger_of(tmp_path / "run")
    assert {row["video"] for row in ledger} == {f"{tmp_path}/broken 0, really.mp4"}
    asked = [row for row in ledger if row["epoch"] in "01"]
    assert {row["epoch"] for row in asked} == {"0", "1"}
    assert all("Invalid data" in row["reason"] and row["replaced_by"].startswith("train/a video") for row in ledger)
    assert rows_of(tmp_path / "run")[-2]["bad_share"] == len(ledger) / 40


def test_a_bad_video_counts_once_however_many_clips_it_was_to_give(video_folder, tmp_path):
    option = list_with_broken(video_folder, tmp_path, 1)  # 5 %
    several = ("data.clips_per_video=2", "optim.batch_size=4")
    settings = (option, "data.max_bad_share=0.1", "optim.max_steps=20", "optim.schedule=steps")
    train(config_of(video_folder, tmp_path / "one", *settings))
    train(config_of(video_folder, tmp_path / "two", *settings, *several))  # 80 clips of 40 draws: two passes
    ledger = ledger_of(tmp_path / "two")
    assert ledger == ledger_of(tmp_path / "one") and len(ledger) >= 2
    assert rows_of(tmp_path / "two")[-2]["bad_share"] == len(ledger) / 40
    more = [*settings, *several, "resume=auto", "optim.max_steps=30"]
    train(config_of(video_folder, tmp_path / "two", *[value for value in more if value != "optim.max_steps=20"]))
    assert rows_of(tmp_path / "two")[-2]["bad_share"] == len(ledger_of(tmp_path / "two")) / 60


def test_a_run_with_too_many_bad_files_stops_and_has_named_them(video_folder, tmp_path):
    option = list_with_broken(video_folder, tmp_path, 6)  # 30 %
    with pytest.raises(RunFailed, match="more than data.max_bad_share=0.1 allows; .*bad_videos.csv names each"):
        train(config_of(video_folder, tmp_path / "run", option, "data.max_bad_share=0.1", "optim.max_steps=20"))
    assert {"broken" in row["video"] for row in ledger_of(tmp_path / "run")} == {True}
