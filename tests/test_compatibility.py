"""What version 0.1 left is read, resumed and evaluated: a run of four steps, its evaluation, and a sweep's point.

tests/run_of_0_1 was made by the last commit of 0.1.0 with the options below, on the videos of video_folder.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from runs import TINY, rows_of

import nlvideo
from nlvideo.config.compose import compose_train_config
from nlvideo.data.decoding.opening import open_video
from nlvideo.data.lists.path_list import read_table
from nlvideo.evaluate import main as evaluate_main
from nlvideo.evaluation.alignment import align_runs
from nlvideo.evaluation.comparison import compare_to_baseline
from nlvideo.evaluation.report import write_report
from nlvideo.evaluation.result_files import print_table, read_results
from nlvideo.experiments.run_folders import find_evaluations
from nlvideo.experiments.sweep import is_finished
from nlvideo.train import train
from nlvideo.training.metrics_file import read_metrics
from nlvideo.training.run_status import read_status

OLD = Path(__file__).parent / "run_of_0_1"
OPTIONS = [*TINY, "model.width=2", "optim.schedule=steps"]


@pytest.fixture
def old_run(tmp_path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def test_the_run_resumes(old_run, video_folder, capsys):
    before = rows_of(old_run)
    settings = [*OPTIONS, f"data.root={video_folder}", f"output_dir={old_run}", "optim.max_steps=6", "resume=auto"]
    train(compose_train_config(settings))
    assert "resumed after step 4" in capsys.readouterr().out
    rows = rows_of(old_run)
    assert rows[: len(before)] == before and [row["step"] for row in rows[len(before) :]] == [5, 6, 6]
    checkpoint = torch.load(old_run / "checkpoint.pt", weights_only=True)
    assert checkpoint.keys() >= torch.load(OLD / "checkpoint.pt", weights_only=True).keys()
    assert checkpoint["format"] == 2  # which the earlier version reads


def test_another_run_in_its_folder_is_refused(old_run, video_folder):
    settings = [*OPTIONS, f"data.root={video_folder}", f"output_dir={old_run}", "resume=auto", "seed=5"]
    with pytest.raises(ValueError, match="seed: 0 -> 5"):
        train(compose_train_config(settings))


def test_its_checkpoint_is_evaluated_with_the_scores_that_it_had(old_run, video_folder, monkeypatch):
    given = [f"checkpoint={old_run}", f"data.root={video_folder}", f"output_dir={old_run}/again", "num_threads=1"]
    monkeypatch.setattr(sys, "argv", ["nlvideo-evaluate", *given, "report=false"])
    GlobalHydra.instance().clear()
    evaluate_main()
    before, after = read_results(old_run / "evaluation_step4_2x3_uniform"), read_results(old_run / "again")
    # other processors round otherwise, and encode the test's videos to other bits
    np.testing.assert_allclose(after.scores, before.scores, atol=1e-3)
    assert after.result["checkpoint_sha256"] == before.result["checkpoint_sha256"]
    assert after.result.keys() > before.result.keys()  # later versions measure more
    runs, notes = align_runs({"A": before, "B": after}, common=False)
    assert compare_to_baseline("B", runs["B"], runs["A"]).differences["top1"].value == 0 and not notes


def test_its_evaluation_is_shown_with_what_it_lacks(old_run, video_folder, capsys):
    evaluation = read_results(old_run / "evaluation_step4_2x3_uniform")
    assert "f1_macro" not in evaluation.result
    print_table(evaluation.result, evaluation.folder)
    shown = capsys.readouterr().out
    assert "F1" not in shown
    assert "0.00 to 80.00 (bootstrap)" in shown  # every interval was one
    page = write_report(evaluation, read_table(video_folder, "val.csv", None), open_video).read_text()
    # these are made from the scores
    assert ">F1</button>" in page and page.count('src="data:image/svg+xml,') == 5


def test_its_weights_load_in_python(old_run):
    assert nlvideo.load_model(old_run / "checkpoint.pt").num_classes == 3


def test_the_finished_point_of_its_sweep_is_known(old_run):
    settings = [*OPTIONS, "data.root=set", "seed=1", "optim.max_steps=2", "output_dir=out/sweep/seed-1"]
    assert is_finished(old_run / "sweep/seed-1", compose_train_config(settings))
    assert not is_finished(old_run / "sweep/seed-1", compose_train_config([*settings, "model.dropout=0.5"]))


def test_what_its_folders_say_is_read(old_run):
    (found,) = find_evaluations(old_run)
    assert (found.step, found.views) == (4, (2, 3)) and found.result["num_videos"] == 5
    assert read_status(old_run)["state"] == "finished" and read_metrics(old_run)[-1]["num_videos"] == 5
