"""nlvideo.train and nlvideo.evaluate, called from a program that goes on afterwards."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from runs import TINY, StopAt, assert_equal, weights_of

import nlvideo
from nlvideo.config.compose import compose_train_config
from nlvideo.runtime.errors import UserError
from nlvideo.runtime.folder_lock import lock_folder
from nlvideo.runtime.signals import STOP_SIGNALS
from nlvideo.train import train_step


@pytest.fixture
def overrides(video_folder, tmp_path):
    return [*TINY, f"data.root={video_folder}", f"output_dir={tmp_path}/run", "optim.max_steps=2"]


def handlers():
    return [signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGALRM)]


def test_a_program_trains_twice_and_evaluates_and_keeps_its_signals(overrides, tmp_path, request):
    received = []
    old = signal.signal(signal.SIGINT, lambda *_: received.append("by the program"))
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, old))
    before = handlers()
    first = nlvideo.train([*overrides, "data.num_workers=1"])
    assert (first.state, first.reason, first.step, first.metric) == ("finished", "max_steps", 2, "top1")
    second = nlvideo.train([*overrides, f"output_dir={tmp_path}/again"])
    assert first.score == second.score and first.folder.name == "run"
    assert_equal(weights_of(tmp_path / "run"), weights_of(tmp_path / "again"))
    result = nlvideo.evaluate(tmp_path / "run", ["report=false", f"output_dir={tmp_path}/scores"])
    assert 0 <= result["top1"] <= 1 and (tmp_path / "scores/result.json").exists()
    assert handlers() == before
    os.kill(os.getpid(), signal.SIGINT)
    assert received == ["by the program"]


def test_the_folder_is_free_for_other_processes_after_a_run(overrides, tmp_path):
    nlvideo.train(overrides)
    code = f"""
from pathlib import Path
from nlvideo.runtime.folder_lock import lock_folder
lock_folder(Path({str(tmp_path / "run")!r}))"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    lock_folder(tmp_path / "run")  # what a run holds meanwhile
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 1


def test_stopping_a_run_saves_it_and_raises_what_python_programs_expect(overrides, tmp_path, monkeypatch):
    for number, raised in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
        with monkeypatch.context() as patch, pytest.raises(raised):
            StopAt(patch, 1, number)
            nlvideo.train([*overrides, f"output_dir={tmp_path}/{raised.__name__}"])
        assert (tmp_path / raised.__name__ / "checkpoint.pt").exists()


def test_a_run_in_a_thread_has_no_signal_handlers_and_says_so(overrides, tmp_path, capsys):
    found = []
    thread = threading.Thread(target=lambda: found.append(nlvideo.train([*overrides, "data.num_workers=1"])))
    thread.start()
    thread.join()
    assert found[0].state == "finished"
    assert "signals   not handled: this is not the main thread" in capsys.readouterr().out
    failed = []

    def several() -> None:
        with pytest.raises(UserError, match="num_devices=2: ranks can be started from the main thread"):
            nlvideo.train([*overrides, f"output_dir={tmp_path}/two", "num_devices=2", "optim.batch_size=4"])
        failed.append(True)

    thread = threading.Thread(target=several)
    thread.start()
    thread.join()
    assert failed


def test_processes_of_others_outlive_a_run_that_ends_early(overrides, tmp_path, monkeypatch):
    other = multiprocessing.Process(target=time.sleep, args=(60,))

    def started(learner, batches):
        if not other.is_alive():
            other.start()
        return train_step(learner, batches)

    monkeypatch.setattr("nlvideo.train.train_step", started)
    scores = iter([0.5, 0.5, 0.5])
    monkeypatch.setattr("nlvideo.train.validate", lambda run, stopping: {"top1": next(scores), "num_videos": 5})
    more = ["optim.max_steps=50", "patience=2", "validate_every_steps=1", "data.num_workers=1"]
    assert nlvideo.train([*overrides, *more]).reason == "patience"
    assert other.is_alive()
    other.kill()


def test_a_config_is_checked_and_a_second_run_at_a_time_refused(overrides, tmp_path, monkeypatch):
    config = compose_train_config(overrides)
    with pytest.raises(UserError, match="best_metric=nonsense"):
        nlvideo.train(dataclasses.replace(config, best_metric="nonsense"))
    with pytest.raises(UserError, match="is a sweep over several runs"):
        nlvideo.train(["+ablation=table_2a", "data.root=x"])
    assert not (tmp_path / "run").exists()
    refused = []

    def second(learner, batches):
        with pytest.raises(UserError, match="Another run is training in this process"):
            nlvideo.train([*overrides, f"output_dir={tmp_path}/second"])
        refused.append(True)
        return train_step(learner, batches)

    monkeypatch.setattr("nlvideo.train.train_step", second)
    assert nlvideo.train(config).state == "finished" and refused and not (tmp_path / "second").exists()


def test_an_evaluation_gives_the_number_of_threads_back(overrides, tmp_path):
    run = nlvideo.train(overrides)
    before = torch.get_num_threads()
    nlvideo.evaluate(run.folder, ["report=false", f"num_threads={before + 1}"])
    assert torch.get_num_threads() == before


def test_a_mistake_is_an_exception_and_writes_nothing(overrides, tmp_path):
    with pytest.raises(UserError, match="Key 'learning_rate' not in 'OptimConfig'"):
        nlvideo.train([*overrides, "optim.learning_rate=1"])
    with pytest.raises(UserError, match="does not exist"):
        nlvideo.evaluate(tmp_path / "nothing.pt")
    assert not (tmp_path / "run").exists()


def test_the_programs_are_modules_too():
    import nlvideo.evaluate
    import nlvideo.train

    assert callable(nlvideo.train) and nlvideo.train.main and nlvideo.evaluate.main
