"""Two nodes, each with a network, a name and a hosts file of its own, as Debian installs it."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

WORKER = """
import os, pathlib, sys
sys.path.insert(0, sys.argv[1])
from nlvideo.runtime import distributed
world = distributed.init_world()
found = f"{distributed.sum_over_ranks([world.rank + 1.0])} {os.environ['GLOO_SOCKET_IFNAME']}"
pathlib.Path(sys.argv[2], f"rank {world.rank}").write_text(found)
distributed.leave_together()
"""
NODE = """
hostname "$1"
mount --bind "$2/$1" /etc/hosts
ip link set lo up
while [ ! -e "$2/connected" ]; do sleep 0.05; done
exec "${@:3}"
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


@pytest.mark.slow
@pytest.mark.skipif(not can_have_networks(), reason="needs root, to make two networks")
def test_nodes_whose_own_names_are_loopback_addresses_find_each_other(tmp_path):
    for own, other, address in (("node-a", "node-b", "10.77.0.2"), ("node-b", "node-a", "10.77.0.1")):
        (tmp_path / own).write_text(f"127.0.0.1 localhost\n127.0.1.1 {own}\n{address} {other}\n")
    (tmp_path / "worker.py").write_text(WORKER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=node-a:29477", "--rdzv-id=test"]
    command = ["env", "-u", "GLOO_SOCKET_IFNAME", f"NODE={NODE}", "unshare", "-n", "-m", "-u", "bash", "-c", NODES, "-"]
    command += [str(tmp_path), *torchrun, str(tmp_path / "worker.py"), str(Path(__file__).parents[2]), str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    nodes = subprocess.Popen(command, start_new_session=True, **pipes)
    try:
        _, errors = nodes.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):  # they have ended
            os.killpg(nodes.pid, signal.SIGTERM)
    assert nodes.returncode == 0, errors[-3000:]
    assert {(tmp_path / f"rank {rank}").read_text() for rank in (0, 1)} == {"[3.0] to-a", "[3.0] to-b"}
