"""Two nodes, each with a network, a name, a disk and a hosts file of its own, as Debian installs it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from kills import RUN
from runs import BIN, assert_equal, children, rows_of, weights_of

from nlvideo.runtime.errors import UserError
from nlvideo.training.nodes import check_newest_on_main
from nlvideo.training.step_files import later_step, newest_checkpoint, save_step

ROOT = Path(__file__).parents[2]
NODE_NAMES = ("node-a", "node-b")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
WORKER = """
import os, pathlib, sys
sys.path.insert(0, sys.argv[1])
from nlvideo.runtime import distributed
world = distributed.init_world()
found = f"{distributed.sum_over_ranks([world.rank + 1.0])} {os.environ['GLOO_SOCKET_IFNAME']}"
pathlib.Path(sys.argv[2], f"rank {world.rank}").write_text(found)
distributed.leave_together()
"""
# A node whose program is killed starts it again.
NODE = """
hostname "$1"
mount --bind "$2/$1/hosts" /etc/hosts
mount --bind "$2/$1/disk" "$2/disk"
ip link set lo up
while [ ! -e "$2/connected" ]; do sleep 0.05; done
echo $$ > "$2/$1/pid"
code=137
while [ "$code" = 137 ]; do
  "${@:3}" > "$2/$1/log" 2>&1
  code=$?
  cat "$2/$1/log" >> "$2/$1/all"
done
exit "$code"
"""
NODES = """
set -e
unshare -n -m -u bash -c "$NODE" - node-b "$@" &
other=$!
while [ "$(readlink "/proc/$other/ns/net")" = "$(readlink /proc/$$/ns/net)" ]; do sleep 0.05; done
ip link add name to-b type veth peer name to-a netns "$other"
ip addr add 10.77.0.1/24 dev to-b
ip link set to-b up
nsenter -n -t "$other" ip addr add 10.77.0.2/24 dev to-a
nsenter -n -t "$other" ip link set to-a up
touch "$1/connected"
bash -c "$NODE" - node-a "$@"
wait "$other"
"""


def can_have_networks() -> bool:
    """Whether this process may make networks and connect them, for which it must be root."""
    command = "ip link add name to-b type veth peer name to-a && mount --bind /etc/hosts /etc/hosts && hostname node-a"
    try:
        return subprocess.run(["unshare", "-n", "-m", "-u", "bash", "-c", command], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


needs_root = pytest.mark.skipif(not can_have_networks(), reason="needs root, to make two networks")


class Nodes:
    """node-a and node-b, each of which runs one agent of torchrun with one rank."""

    def __init__(self, folder: Path, *program: str, **variables: str):
        self.folder = folder
        (folder / "disk").mkdir()
        for own, other, address in (("node-a", "node-b", "10.77.0.2"), ("node-b", "node-a", "10.77.0.1")):
            (folder / own / "disk").mkdir(parents=True)
            (folder / own / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {own}\n{address} {other}\n")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=node-a:29477", "--rdzv-id=test", "--max-restarts=3"]
        command = ["env", "-u", "GLOO_SOCKET_IFNAME", f"NODE={NODE}", "unshare", "-n", "-m", "-u", "bash", "-c", NODES]
        command += ["-", str(folder), *torchrun, *program]
        self.process = subprocess.Popen(command, start_new_session=True, env=ENVIRONMENT | variables)

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_) -> None:
        with suppress(ProcessLookupError):  # they have ended
            os.killpg(self.process.pid, signal.SIGTERM)

    def wait(self, seconds: float) -> str:
        """Returns what both have printed, once both have ended well."""
        self.process.wait(timeout=seconds)
        printed = {node: (self.folder / node / "all").read_text() for node in NODE_NAMES}
        assert self.process.returncode == 0, "\n".join(text[-3000:] for text in printed.values())
        return "\n".join(printed.values())

    def disk(self, node: str) -> Path:
        return self.folder / node / "disk"

    def kill(self, node: str) -> None:
        """Kills the agent of a node and its rank; NODE starts the agent again."""
        (agent,) = children(int((self.folder / node / "pid").read_text()))
        for pid in (agent, *children(agent)):
            os.kill(pid, signal.SIGKILL)


@needs_root
@pytest.mark.slow
def test_nodes_whose_own_names_are_loopback_addresses_find_each_other(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    with Nodes(tmp_path, str(tmp_path / "worker.py"), str(ROOT), str(tmp_path)) as nodes:
        nodes.wait(300)
    assert {(tmp_path / f"rank {rank}").read_text() for rank in (0, 1)} == {"[3.0] to-a", "[3.0] to-b"}


LATE = """
import os, pathlib, sys, time
import nlvideo.train

first = pathlib.Path(sys.argv.pop(1), "started")  # on this node
if not first.exists():
    first.touch()
    if os.environ["RANK"] == "1":
        time.sleep(30)
nlvideo.train.main()
"""
STEPS = ["optim.batch_size=4", "optim.max_steps=24", "checkpoint_every_steps=2", "log_every_steps=3"]
STEPS += ["validate_every_steps=100", "data.num_workers=0", "precise_bn_steps=0"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run of two ranks on one machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = [BIN / "nlvideo-train", *RUN, *STEPS, f"data.root={folder}/videos", "num_devices=2"]
    subprocess.run([*command, f"output_dir={folder}/run"], check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    return folder / "run"


@needs_root
@pytest.mark.slow
@pytest.mark.nightly
def test_nodes_without_a_common_disk_one_late_and_one_killed_equal_an_undisturbed_run(undisturbed, tmp_path):
    (tmp_path / "late.py").write_text(LATE)
    disk = tmp_path / "disk"
    program = [str(tmp_path / "late.py"), str(disk), *RUN, *STEPS, f"data.root={disk}/videos"]
    # Where torchrun shares its store with the ranks, a new agent does not find it (PyTorch 2.14).
    unshared = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with Nodes(tmp_path, *program, f"output_dir={disk}/run", **unshared) as nodes:
        run, deadline = nodes.disk("node-a") / "run", time.monotonic() + 300
        while time.monotonic() < deadline and len(list(run.glob("checkpoints/step_*.pt"))) < 3:
            time.sleep(0.02)
        failed = [node for node in NODE_NAMES if "exitcode" in (tmp_path / node / "log").read_text()]
        assert not failed, "being late is no failure"
        nodes.kill("node-b")
        printed = nodes.wait(300)
    assert "resumed after step" in printed
    assert_equal(weights_of(undisturbed), weights_of(run))
    assert rows_of(undisturbed) == rows_of(run)
    assert not (nodes.disk("node-b") / "run").exists()
    assert (nodes.disk("node-b") / "videos/train.csv").exists()


# node-a serves the videos; each fifteenth request finds the line dropped.
FROM_STORE = """
import os, socket, subprocess, sys, time
import nlvideo.train

tests, videos, end = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)
SERVE = '''
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import store_servers
store_servers.FaultyServer.at = ("", 29478)
with store_servers.FaultyServer(Path(sys.argv[2]), plan=lambda number, *_: "drop" if number % 15 == 0 else None):
    while not Path(sys.argv[3]).exists():
        time.sleep(0.1)
'''
if os.environ["RANK"] == "0" and socket.socket().connect_ex(("127.0.0.1", 29478)):
    subprocess.Popen([sys.executable, "-c", SERVE, tests, videos, end])
nlvideo.train.main()
"""


@needs_root
@pytest.mark.slow
@pytest.mark.nightly
def test_nodes_that_fetch_from_a_store_and_one_is_killed_equal_an_undisturbed_run(undisturbed, tmp_path):
    pytest.importorskip("aiohttp", reason="needs aiohttp")
    (tmp_path / "from_store.py").write_text(FROM_STORE)
    disk, videos = tmp_path / "disk", undisturbed.parent / "videos"
    end = tmp_path / "end"
    program = [str(tmp_path / "from_store.py"), str(ROOT / "tests"), str(videos), str(end), "data=list"]
    program += [*(part for part in RUN if not part.startswith("data.synthetic")), *STEPS]
    program += ["data.classes=classes.txt", "data.flip=false", "data.root=http://node-a:29478"]
    program += [f"data.cache_dir={disk}/cache", f"output_dir={disk}/run"]
    unshared = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "no_proxy": "node-a"}
    try:
        with Nodes(tmp_path, *program, **unshared) as nodes:
            run, deadline = nodes.disk("node-a") / "run", time.monotonic() + 300
            while time.monotonic() < deadline and len(list(run.glob("checkpoints/step_*.pt"))) < 3:
                time.sleep(0.02)
            nodes.kill("node-b")
            printed = nodes.wait(300)
    finally:
        end.touch()  # the server
    assert "resumed after step" in printed and "store        fetched" in printed
    assert_equal(weights_of(undisturbed), weights_of(run))
    assert rows_of(undisturbed) == rows_of(run)
    for node in NODE_NAMES:
        assert list(nodes.disk(node).glob("cache/*/*/*.mp4"))


def run_apart(folder: Path, rank0: str, *command: str) -> dict[str, tuple[int, str]]:
    """Runs a command as two tasks of srun on two nodes, in folders of their own, as where no disk is common.

    Returns:
        {node: exit code and what it has printed}
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        step = {"SLURM_JOB_ID": "47", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}
        step |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    processes = {}
    for node in NODE_NAMES:
        number = str(int(node != rank0))
        environment = ENVIRONMENT | step | {"SLURM_PROCID": number, "SLURM_GTIDS": number}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started = [ROOT / "scripts/slurm/task.sh", *command]
        processes[node] = subprocess.Popen(started, cwd=folder / node, env=environment, **pipes)
    printed = {node: process.communicate(timeout=300)[0] for node, process in processes.items()}
    return {node: (process.returncode, printed[node]) for node, process in processes.items()}


TRAIN = [str(BIN / "nlvideo-train"), *RUN, *STEPS, "optim.max_steps=4", "data.root=videos", "output_dir=run"]
TRAIN += ["resume=auto"]


@pytest.fixture(scope="module")
def apart(tmp_path_factory) -> Path:
    """The folders of two nodes that have trained a run, with rank 0 on node-a."""
    folder = tmp_path_factory.mktemp("apart")
    for node in NODE_NAMES:
        (folder / node).mkdir()
    ended = run_apart(folder, "node-a", *TRAIN)
    assert [code for code, _ in ended.values()] == [0, 0], ended
    return folder


@pytest.mark.slow
def test_each_node_has_its_data_and_rank_0_the_run_which_two_local_ranks_repeat(apart, tmp_path):
    assert sorted(path.name for path in (apart / "node-b").iterdir()) == ["videos"]
    command = [*TRAIN, "num_devices=2"]
    subprocess.run(command, check=True, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    assert_equal(weights_of(tmp_path / "run"), weights_of(apart / "node-a/run"))


@pytest.mark.slow
def test_a_rank_0_that_has_moved_away_from_the_checkpoints_starts_nothing(apart):
    ended = run_apart(apart, "node-b", *TRAIN)
    assert [code for code, _ in ended.values()] == [1, 1]
    here = socket.gethostname()
    assert f"rank 0: error: output_dir=run on {here} holds step 4, but rank 0 is on {here}" in ended["node-b"][1]
    assert "where the folder has no checkpoint" in ended["node-b"][1]
    assert not list((apart / "node-b").glob("run/c*"))  # neither config nor checkpoints


@pytest.mark.slow
def test_a_node_with_another_list_is_named(apart, tmp_path):
    shutil.copytree(apart, tmp_path / "apart")
    val = tmp_path / "apart/node-b/videos/val.csv"
    val.write_text("".join(val.read_text().splitlines(keepends=True)[:-1]))
    ended = run_apart(tmp_path / "apart", "node-a", *TRAIN)
    assert [code for code, _ in ended.values()] == [1, 1]
    assert f"Rank 1 on {socket.gethostname()} has another list of videos" in ended["node-a"][1]
    assert "data.val: " in ended["node-a"][1] and "data.train: " not in ended["node-a"][1]


@pytest.mark.slow
def test_nodes_without_the_checkpoint_help_to_evaluate_it(apart):
    ended = run_apart(apart, "node-a", str(BIN / "nlvideo-evaluate"), "checkpoint=run/checkpoint.pt")
    assert [code for code, _ in ended.values()] == [0, 0], ended
    (result,) = (apart / "node-a/run").glob("evaluation*/result.json")
    assert json.loads(result.read_text())["num_devices"] == 2
    assert not list(apart.glob("node-b/run/**/*.npz"))


def whole_checkpoint(folder: Path, step: int) -> None:
    folder.mkdir(exist_ok=True)
    save_step(folder, {"model": {}, "step": step, "config": {}, "classes": []}, keep=3)


def test_a_later_step_counts_if_it_is_whole(tmp_path):
    assert later_step(tmp_path / "none", 0) is None
    whole_checkpoint(tmp_path / "run", 20)
    assert [later_step(tmp_path / "run", step) for step in (0, 19, 20, 21)] == [20, 20, None, None]
    (tmp_path / "run/checkpoints/step_00000030.pt").write_bytes(b"torn")
    assert [later_step(tmp_path / "run", step) for step in (0, 20)] == [20, None]
    shutil.rmtree(tmp_path / "run/checkpoints")  # the newest one's second name is left
    assert [later_step(tmp_path / "run", step) for step in (0, 20)] == [20, None]
    (tmp_path / "run/checkpoint.pt").write_bytes(b"torn")
    assert later_step(tmp_path / "run", 0) is None


def test_the_node_with_the_latest_step_is_named(tmp_path, monkeypatch):
    later = [("node-a", None), ("node-b", 20), ("node-b", None), ("node-c", 30)]
    monkeypatch.setattr("nlvideo.training.nodes.distributed.gather_from_nodes", lambda _: later)
    with pytest.raises(UserError, match="on node-c holds step 30, but rank 0 is on node-a, .* the folder has no check"):
        check_newest_on_main(tmp_path, None)
    whole_checkpoint(tmp_path / "run", 10)
    found = newest_checkpoint(tmp_path / "run")
    with pytest.raises(UserError, match="on node-c holds step 30, .* the folder ends with step 10"):
        check_newest_on_main(tmp_path, found)
    later[1:] = [("node-b", None), ("node-b", None), ("node-c", None)]
    check_newest_on_main(tmp_path, found)
