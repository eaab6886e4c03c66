"""A run reads the same from a store as from a disk, whatever the network does."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import write_grey_video
from runs import BIN, TINY, assert_equal, config_of, ledger_of, rows_of, weights_of
from store_servers import BUCKET, ENVIRONMENT, FaultyServer, s3_server

from nlvideo.data.index.video_index import VideoIndex
from nlvideo.data.stores import store
from nlvideo.data.stores.cache import Cache
from nlvideo.data.stores.entries import remove_entry
from nlvideo.data.stores.space import Space, held_entries
from nlvideo.data.stores.store import StoreFailed
from nlvideo.evaluate import evaluate_from_python
from nlvideo.prediction.predictor import Predictor
from nlvideo.runtime.errors import UserError
from nlvideo.train import launch as train
from nlvideo.weights.checkpoint_file import save_checkpoint

pytest.importorskip("aiohttp", reason="needs aiohttp")
ROOT = Path(__file__).parents[2]
TWO_EPOCHS = ["optim.max_steps=6", "data.num_workers=2", "data.max_bad_share=0.9"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(store, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(store, "STALL_SECONDS", 0.5)
    store._made.clear()  # clients with other timeouts or another endpoint
    yield
    store._made.clear()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of 6 and 5 videos whose names need escapes; a seventh of the training list is missing."""
    folder = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 6), ("val", 5)):
        for i in range(count):
            write_grey_video(folder / split / f"a video #{i} 100%.mp4", 20)
        rows = [f"{split}/a video #{i} 100%.mp4,{i % 3}\n" for i in range(count)]
        missing = ["train/missing.mp4,0\n"] if split == "train" else []
        (folder / f"{split}.csv").write_text("path,label\n" + "".join(rows + missing))
    return folder


@pytest.fixture(scope="module")
def from_disk(videos, tmp_path_factory):
    """A run of two passes over the videos on a disk."""
    folder, threads = tmp_path_factory.mktemp("from_disk") / "run", torch.get_num_threads()
    torch.set_num_threads(1)  # as in the tests that compare with it
    train(config_of(videos, folder, *TWO_EPOCHS))
    torch.set_num_threads(threads)
    return folder


def assert_same(run, other) -> None:
    assert_equal(weights_of(run), weights_of(other))
    assert rows_of(run) == rows_of(other) and ledger_of(run) == ledger_of(other)


def run_from(root: str, tmp_path: Path, *more: str) -> Path:
    train(config_of(root, tmp_path / "run", *TWO_EPOCHS, f"data.cache_dir={tmp_path}/cache", *more))
    return tmp_path / "run"


def test_a_web_server_with_faults_equals_a_disk(videos, from_disk, tmp_path):
    rng = random.Random(5)  # 5 % of requests, and each kind at least once
    kinds = ["500", "drop", "cut", "stall", "503"]
    planned = {number: rng.choice(kinds) for number in range(1, 1000) if rng.random() < 0.05}
    planned |= {7: "stall", 11: "cut", 14: "500", 19: "drop"}
    with FaultyServer(videos, plan=lambda number, *_: planned.get(number)) as server:
        assert_same(from_disk, run_from(server.address, tmp_path))
        assert server.number > 19  # so all that were planned by hand came true
    ledger = ledger_of(from_disk)
    assert ledger and all(row["video"] == "train/missing.mp4" for row in ledger)


@pytest.fixture(scope="module")
def s3(videos):
    with s3_server(videos) as endpoint:
        yield endpoint


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_s3_equals_a_disk(from_disk, s3, tmp_path, monkeypatch, capfd, share):
    rng = random.Random(1)
    planned = {number: rng.choice(["503", "drop", "cut"]) for number in range(1, 1000) if rng.random() < share}
    planned |= {9: "cut", 12: "503"} if share else {}
    with FaultyServer(upstream=s3, plan=lambda number, *_: planned.get(number)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        assert_same(from_disk, run_from(f"s3://{BUCKET}/set", tmp_path))
    line = re.search(r"store +fetched [\d.e-]+ GB, (\d+) objects; (\d+) % of ([\d,]+) opens", capfd.readouterr().out)
    assert int(line[1]) == 11 and int(line[3]) > 20


def test_a_cache_of_a_third_fetches_again_what_it_had_to_drop(videos, from_disk, tmp_path, capfd):
    size = sum(file.stat().st_size for file in videos.rglob("*.mp4"))
    largest = max(file.stat().st_size for file in videos.rglob("*.mp4"))
    held, space = [], Space(tmp_path / "cache", 0)
    with FaultyServer(videos) as server:

        def plan(*_):
            with space._state():  # nothing comes or goes while it is held
                held.append(sum(entry.size for entry in held_entries(space.folder)))

        server.plan = plan
        assert_same(from_disk, run_from(server.address, tmp_path, f"data.cache_gb={size / 3e9}"))
    assert 0 < max(held) <= size / 3
    line = re.search(
        r"fetched ([\d.e-]+) GB, (\d+) objects; (\d+) % of ([\d,]+) opens.* ([\d.]+) s", capfd.readouterr().out
    )
    fetched, opens = 1e9 * float(line[1]), int(line[4])
    assert size < fetched <= 1.01 * opens * largest and int(line[3]) < 100


def test_the_index_outlasts_what_the_cache_drops(videos, tmp_path):
    with FaultyServer(videos) as server:
        run_from(server.address, tmp_path, "optim.max_steps=2")
        index = tmp_path / "cache/.nlvideo_index"
        assert index.exists()
        cache, address = Cache(tmp_path / "cache", 1), f"{server.address}/val/a%20video%20%231%20100%25.mp4"
        assert remove_entry(Path(cache.place(address)).parent)
        with cache.file(address) as file:
            known = VideoIndex(index, grows=False)
            assert known.find(known.state(file)).num_frames == 20


@pytest.mark.parametrize("place", ["train", "val"])
def test_a_store_that_goes_away_ends_the_run_with_one_line_and_blames_no_video(videos, tmp_path, monkeypatch, place):
    monkeypatch.setattr(store, "TRIES", 2)
    with FaultyServer(videos) as server:
        server.plan = lambda number, method, path: "500" if method == "GET" and path.startswith(f"/{place}/") else None
        with pytest.raises(StoreFailed, match=rf"^{server.address}/{place}/a%20video%20.*500.* \(after 2 tries\)\.$"):
            run_from(server.address, tmp_path)
    ledger = tmp_path / "run/bad_videos.csv"
    assert not ledger.exists() or {row["video"] for row in ledger_of(tmp_path / "run")} <= {"train/missing.mp4"}


def test_an_evaluation_from_a_store_equals_one_from_a_disk(videos, from_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "TRIES", 2)
    more = ["report=true", "data.num_workers=1"]
    disk = evaluate_from_python(from_disk, [f"data.root={videos}", f"output_dir={tmp_path}/disk", *more])
    with FaultyServer(videos) as server:
        more += [f"data.root={server.address}", f"data.cache_dir={tmp_path}/cache"]
        web = evaluate_from_python(from_disk, [f"output_dir={tmp_path}/web", *more])
        server.plan = lambda number, method, path: "drop" if path.startswith("/val/") and method == "GET" else None
        with pytest.raises(StoreFailed, match=rf"^{server.address}/val/"):
            more[-1] = f"data.cache_dir={tmp_path}/other"
            evaluate_from_python(from_disk, [f"output_dir={tmp_path}/faulty", *more])
    same = ("top1", "top5", "num_videos", "num_undecodable", "list_sha256")
    assert {key: disk[key] for key in same} == {key: web[key] for key in same}


def test_no_address_of_a_checkpoint_is_opened_that_the_user_has_not_named(videos, from_disk, tmp_path):
    """A checkpoint may come from anyone."""
    with FaultyServer(videos) as server:
        content = torch.load(from_disk / "checkpoint.pt", weights_only=True)
        content["config"]["data"] |= {"root": server.address, "classes": f"{server.address}/classes.txt"}
        save_checkpoint(tmp_path / "theirs.pt", content)
        scores = Predictor(tmp_path / "theirs.pt").scores(videos / "val/a video #0 100%.mp4")
        assert scores.shape == (3,)
        with pytest.raises(UserError, match=rf"data.root={server.address} is the checkpoint's, and no address"):
            evaluate_from_python(tmp_path / "theirs.pt", [f"output_dir={tmp_path}/evaluated"])
        assert server.number == 0
        given = [f"data.root={server.address}", "data.classes=null", f"data.cache_dir={tmp_path}/cache"]
        evaluate_from_python(tmp_path / "theirs.pt", [f"output_dir={tmp_path}/evaluated", "report=false", *given])


@pytest.mark.parametrize(
    ("overrides", "error", "line"),
    [
        (
            ["data.root=http://127.0.0.1:1/k"],
            StoreFailed,
            "^http://127.0.0.1:1/k/train.csv cannot be .*Refused",
        ),
        (["data.root={forbidden}"], StoreFailed, "train.csv cannot be read: no permission"),
        (["data.root={server}/none"], UserError, "The list {server}/none/train.csv does not exist"),
        (
            ["data.root={server}", "data.videos=none"],
            UserError,
            "7 were looked for and none exists; .*/none/train/a%20",
        ),
        (["data.root={server}", "data=ucf101"], UserError, "data.format=ucf101 reads folders of this machine"),
        (["data.root={server}", "data.cache_gb=0"], UserError, "data.cache_gb=0.0: must be"),
        (["data.root={server}", "data.cache_dir=s3://b/c"], UserError, "data.cache_dir=s3://b/c: must be on a disk"),
        (["data.root=s3://me:secret@b/k"], UserError, "data.root: an address with a user"),
        (["data.root=file:///data"], UserError, "data.root: give a folder"),
        (["data.root={server}", "data=synthetic"], UserError, "a synthetic set is written to a folder of this machine"),
    ],
)
def test_what_cannot_be_read_is_one_line_at_the_start(videos, tmp_path, monkeypatch, overrides, error, line):
    monkeypatch.setattr(store, "TRIES", 2)
    with FaultyServer(videos) as server, FaultyServer(videos, plan=lambda *_: "403") as forbidden:
        names = {"server": server.address, "forbidden": forbidden.address}
        root, *more = (override.format(**names) for override in overrides)
        with pytest.raises(error, match=line.format(**names)) as caught:
            train(config_of(root.removeprefix("data.root="), tmp_path / "run", f"data.cache_dir={tmp_path}/c", *more))
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("scheme, install", [("gs", "gcsfs"), ("s3", "s3fs")])
def test_a_missing_package_is_one_line(tmp_path, monkeypatch, scheme, install):
    monkeypatch.setitem(sys.modules, install, None)
    with pytest.raises(UserError, match=rf"{scheme}:// needs {install} \(pip install nlvideo\[{scheme}\]\)"):
        train(config_of(f"{scheme}://bucket/k", tmp_path / "run"))


def started(folder: Path, root: str | Path, *more: str, **variables: str) -> subprocess.Popen:
    """Starts a run of TWO_EPOCHS in a process group of its own."""
    tiny = [part for part in TINY if not part.startswith(("optim.max_steps", "data.num_workers"))]
    command = [BIN / "nlvideo-train", *tiny, *TWO_EPOCHS, f"data.root={root}", f"data.cache_dir={folder}/cache"]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | variables | {"PYTHONPATH": paths}
    command += [f"output_dir={folder}/run", *more]
    return subprocess.Popen(command, start_new_session=True, env=environment, **pipes)


@pytest.mark.slow
def test_a_run_that_is_killed_in_a_fetch_resumes_as_if_it_had_not_been(videos, from_disk, tmp_path):
    size, fetches = sum(file.stat().st_size for file in videos.rglob("train/*.mp4")), []

    def plan(_, method, path):
        if method == "GET" and path.startswith("/train/"):
            fetches.append(path)
            return "stall" if len(fetches) > 7 else None
        return None

    more = ["resume=auto", "checkpoint_every_steps=1", f"data.cache_gb={0.6 * size / 1e9}"]
    with FaultyServer(videos, plan=plan) as server:
        process, deadline = started(tmp_path, server.address, *more), time.monotonic() + 300
        while not (list(tmp_path.glob("run/checkpoints/step_*.pt")) and list(tmp_path.glob("cache/*/*/*.part"))):
            assert process.poll() is None and time.monotonic() < deadline, "it was to be killed in a fetch"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        server.plan = lambda *_: None
        process = started(tmp_path, server.address, *more)
        printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and "resumed after step" in printed, printed[-2000:]
    assert_equal(weights_of(from_disk), weights_of(tmp_path / "run"))
    assert rows_of(from_disk) == rows_of(tmp_path / "run")


@pytest.mark.slow
def test_ranks_may_have_their_data_at_different_places(videos, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with FaultyServer(videos) as server:
        ranks = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}"}
        processes = [
            started(
                tmp_path, root, "optim.max_steps=2", "optim.batch_size=4", RANK=f"{rank}", LOCAL_RANK=f"{rank}", **ranks
            )
            for rank, root in enumerate((videos, server.address))
        ]
        printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert "store        fetched" in printed[0]
