"""Loggers besides TensorBoard: what arrives there, that training does not wait for them, and what is refused."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict

import pytest
from runs import TINY, StopAt, assert_equal, config_of, rows_of, weights_of

from nlvideo.runtime.errors import RunFailed, UserError
from nlvideo.train import train
from nlvideo.training import background_log, loggers, run_log
from nlvideo.training.background_log import BackgroundLog
from nlvideo.training.tracked_run import tracked_id


class OwnTracker:
    """Keeps what it is sent; `block` and `fail` say what a server would do."""

    def __init__(self):
        self.rows, self.calls, self.ended = [], [], None
        self.free = threading.Event()
        self.free.set()
        self.failures = []  # raised one after the other

    def start(self):
        self.calls.append("start")
        self.free.wait()
        return "somewhere"

    def send(self, rows):
        self.calls.append("send")
        self.free.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.rows += [(row.step, row.values) for row in rows]

    def finish(self, state, pictures):
        self.ended = (state, list(pictures))
        return ""


def test_all_rows_arrive_in_order_and_the_run_is_ended():
    tracker = OwnTracker()
    log = BackgroundLog("own", tracker)
    for step in range(1, 50):
        log.log("train", step, {"loss": 1 / step, "top1": None})
    log.close("finished", [], seconds=10)
    assert tracker.rows == [(step, {"train/loss": 1 / step}) for step in range(1, 50)]
    assert tracker.ended == ("finished", [])


def test_a_server_that_does_not_answer_delays_neither_a_step_nor_the_end(capsys):
    tracker = OwnTracker()
    tracker.free.clear()
    started = time.monotonic()
    log = BackgroundLog("own", tracker)
    for step in range(1000):
        log.log("train", step, {"loss": 1.0})
    assert time.monotonic() - started < 5
    started = time.monotonic()
    log.close("finished", [], seconds=0.3)
    assert 0.3 <= time.monotonic() - started < 20
    assert "logger    own: not done after 0.3 s" in capsys.readouterr().out
    tracker.free.set()


def test_what_could_not_be_sent_is_sent_later_and_the_error_is_said_once(capsys, monkeypatch):
    monkeypatch.setattr(background_log, "SECONDS_BETWEEN", 0.01)
    tracker = OwnTracker()
    tracker.failures = [OSError("no route\n to host"), OSError("again")]
    log = BackgroundLog("own", tracker)
    for step in range(3):
        log.log("train", step, {"loss": 1.0})
        time.sleep(0.2)
    log.close("failed", [], seconds=10)
    assert [step for step, _ in tracker.rows] == [0, 1, 2] and tracker.ended == ("failed", [])
    out = capsys.readouterr().out
    assert out.count("Training goes on") == 1 and "logger    own: no route to host. Training goes on" in out


def test_a_server_that_has_failed_is_hardly_waited_for(capsys, monkeypatch):
    monkeypatch.setattr(background_log, "SECONDS_BETWEEN", 0.01)
    monkeypatch.setattr(background_log, "FAILING_SECONDS", 0.3)
    tracker = OwnTracker()
    tracker.failures = [OSError("no route to host")]
    log = BackgroundLog("own", tracker)
    log.log("train", 1, {"loss": 1.0})
    while tracker.failures:
        time.sleep(0.01)
    tracker.free.clear()
    log.log("train", 2, {"loss": 1.0})
    time.sleep(0.2)
    started = time.monotonic()
    log.close("finished", [], seconds=60)
    assert time.monotonic() - started < 30 and "own: not done after 0.3 s" in capsys.readouterr().out
    tracker.free.set()


def test_what_never_arrived_is_counted(capsys):
    tracker = OwnTracker()
    tracker.failures = [OSError("no route to host")] * 9
    log = BackgroundLog("own", tracker)
    log.log("train", 1, {"loss": 1.0})
    log.close("finished", [], seconds=10)
    assert "logger    own: 1 of the lines in metrics.jsonl could not be sent." in capsys.readouterr().out
    assert tracker.ended is None


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_without_its_package_is_refused_before_anything_is_written(name, video_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf"logger={name} needs the package {name}.*: pip install 'nlvideo\[{name}\]'"):
        train(config_of(video_folder, tmp_path / "run", f"logger={name}"))
    assert not (tmp_path / "run").exists()


def test_an_unknown_logger_is_refused(video_folder, tmp_path):
    with pytest.raises(UserError, match="logger=neptune: choose from wandb, mlflow"):
        config_of(video_folder, tmp_path / "run", "logger=neptune")


@pytest.fixture
def patience(monkeypatch):
    """Waits for a logger as long as it takes on a busy machine."""
    monkeypatch.setattr(run_log, "LOGGER_SECONDS", dict.fromkeys(run_log.LOGGER_SECONDS, 60.0))


needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")


def run_program(folder, output_dir, *overrides, **environment) -> tuple[subprocess.CompletedProcess, float]:
    """Trains in a process of its own, as users do; returns it and the seconds that it took."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "MLFLOW_"))}
    words = [*TINY, f"data.root={folder}", f"output_dir={output_dir}", *overrides]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "nlvideo.train", *words],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done, time.monotonic() - started


def mlflow_histories(database, run_id) -> dict[str, list[tuple[int, float]]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    names = client.get_run(run_id).data.metrics
    return {name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)] for name in names}


def histories_of(folder) -> dict[str, list[tuple[int, float]]]:
    histories = defaultdict(list)
    for row in rows_of(folder):
        for name, value in row.items():
            if name not in ("split", "step") and value is not None:
                histories[f"{row['split']}/{name}"].append((row["step"], value))
    return histories


@needs_mlflow
@pytest.mark.filterwarnings("default")  # of what mlflow itself is built on
def test_mlflow_holds_the_same_metrics_as_metrics_jsonl(curves, patience, video_folder, tmp_path, monkeypatch, capsys):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train(config_of(video_folder, tmp_path / "runs/plain"))
    train(config_of(video_folder, tmp_path / "runs/logged", "logger=mlflow"))
    assert_equal(weights_of(tmp_path / "runs/plain"), weights_of(tmp_path / "runs/logged"))
    database = tmp_path / "runs/mlflow.db"
    out = capsys.readouterr().out
    assert f"mlflow ui --backend-store-uri sqlite:///{database}" in out
    run_id = tracked_id(tmp_path / "runs/logged", "mlflow")
    logged, expected = mlflow_histories(database, run_id), histories_of(tmp_path / "runs/logged")
    assert {name: logged[name] for name in expected} == expected
    assert "gain/res4.4" in logged
    client = MlflowClient(f"sqlite:///{database}")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "logged"
    assert run.data.params["model.width"] == "4" and run.data.params["block.kind"] == "non_local"
    assert run.data.tags["checkpoint"] == f"{tmp_path}/runs/logged/checkpoint.pt"
    assert [file.path for file in client.list_artifacts(run_id)] == ["curves.png"]


@needs_mlflow
@pytest.mark.filterwarnings("default")
def test_a_resumed_run_continues_in_mlflow_without_repeating_steps(patience, video_folder, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    logger = ["logger=mlflow", "checkpoint_every_steps=2", "validate_every_steps=6", "optim.max_steps=6"]
    step = sys.modules["nlvideo.train"].train_step
    seen = []

    def fail_at_4(learner, batches):
        seen.append(batches)
        if len(seen) == 4:
            raise RunFailed("the disk is full")
        return step(learner, batches)

    with monkeypatch.context() as patched:
        patched.setattr("nlvideo.train.train_step", fail_at_4)
        with pytest.raises(RunFailed):
            train(config_of(video_folder, tmp_path / "run", *logger))
    client, run_id = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db"), tracked_id(tmp_path / "run", "mlflow")
    assert client.get_run(run_id).info.status == "FAILED"  # after step 3; the checkpoint is of step 2
    with monkeypatch.context() as patched:
        StopAt(patched, 2, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(config_of(video_folder, tmp_path / "run", *logger, "resume=auto"))
    assert client.get_run(run_id).info.status == "KILLED"
    train(config_of(video_folder, tmp_path / "run", *logger, "resume=auto", "keep=5"))
    assert tracked_id(tmp_path / "run", "mlflow") == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    logged, expected = mlflow_histories(tmp_path / "mlflow.db", run_id), histories_of(tmp_path / "run")
    assert {name: logged[name] for name in expected} == expected
    assert [step for step, _ in logged["train/loss"]] == [1, 2, 3, 4, 5, 6]


@needs_wandb
@pytest.mark.slow
def test_wandb_without_a_key_logs_offline_and_says_how_to_upload(video_folder, tmp_path):
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    words = ["logger=wandb", "optim.schedule=steps"]
    done, _ = run_program(video_folder, tmp_path / "run", *words, **home)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "run/wandb").glob(f"offline-run-*-{tracked_id(tmp_path / 'run', 'wandb')}")
    assert done.stdout.count(f"wandb sync {folder}") == 2  # at the start and at the end
    assert list(folder.glob("files/media/images/curves*.png"))
    done, _ = run_program(video_folder, tmp_path / "run", *words, "resume=auto", "optim.max_steps=6", **home)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run/wandb").glob(f"offline-run-*-{tracked_id(tmp_path / 'run', 'wandb')}"))) == 2
    listed = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--dry-run"],
        cwd=tmp_path / "run",
        env=os.environ | home,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert str(folder.name) in listed.stdout + listed.stderr


@pytest.fixture(params=["refuses", "does not answer"])
def server(request):
    """The address of a server that cannot be used."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if request.param == "does not answer":
            listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@needs_wandb
@pytest.mark.slow
def test_wandb_without_a_network_goes_offline(video_folder, tmp_path, server):
    done, seconds = run_program(
        video_folder, tmp_path / "run", "logger=wandb", WANDB_API_KEY="0" * 40, WANDB_BASE_URL=server
    )
    assert done.returncode == 0, done.stderr
    assert "logger    wandb: offline (no connection:" in done.stdout and seconds < 60
    assert done.stdout.count("wandb sync") == 2 and rows_of(tmp_path / "run")[-1]["step"] == 4


@needs_mlflow
@pytest.mark.slow
def test_an_mlflow_server_that_cannot_be_reached_is_said_once(video_folder, tmp_path, server):
    done, seconds = run_program(video_folder, tmp_path / "run", "logger=mlflow", MLFLOW_TRACKING_URI=server)
    assert done.returncode == 0, done.stderr
    told = [done.stdout.count(words) for words in ("Training goes on", "not done after")]  # the end may come first
    assert any(told) and max(told) == 1 and seconds < 60
