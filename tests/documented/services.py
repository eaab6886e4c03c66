"""What the documents' commands reach on other machines: stores, cameras, SLURM; here on loopback, when wanted."""

import logging
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from documented.google_store import google_store

ALWAYS_WHERE_SLURM_IS = {
    "sbatch": """# At once, on one node, which has two devices for a run and one for what is several.
while [ "${1#-}" != "$1" ]; do shift; done
export SLURM_JOB_ID=$$ SLURM_NNODES=1 SLURM_GPUS_ON_NODE=1 SLURM_CPUS_PER_TASK=2 SLURM_JOB_NODELIST=localhost
case "$1" in */train.sbatch) SLURM_GPUS_ON_NODE=2 ;; esac
exec bash "$@"
""",
    "srun": """# One task, or two where the command has several on a node.
tasks=1
while [ "${1#-}" != "$1" ]; do
  case "$1" in --ntasks-per-node=*) tasks=2 ;; esac
  shift
done
[ "$tasks" = 1 ] && exec "$@"
export SLURM_STEP_NUM_TASKS=2 SLURM_GTIDS=0,1 SLURM_STEP_NODELIST=localhost SLURM_JOB_ID=$$ SLURM_STEP_ID=0
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" &
SLURM_PROCID=1 SLURM_LOCALID=1 "$@"
second=$?
wait $! && exit $second
""",
    "scontrol": "echo localhost\n",
}
FFMPEG = """import sys
import av

with av.open(sys.argv[sys.argv.index("-i") + 1]) as source, av.open(sys.stdout.buffer, "w", format="mpegts") as target:
    stream = source.streams.video[0]
    out = target.add_stream_from_template(stream)
    for packet in source.demux(stream):
        if packet.size:
            packet.stream = out
            target.mux(packet)
"""
STUDY = """exec "{python}" "{program}" {name} "$@"\n"""


def write_programs(folder: Path) -> None:
    """Writes stand-ins for SLURM's programs, and for ffmpeg where it is missing, into a folder for PATH."""
    folder.mkdir()
    for name, text in ALWAYS_WHERE_SLURM_IS.items():
        write_program(folder / name, f"#!/usr/bin/env bash\n{text}")
    if shutil.which("ffmpeg") is None:
        write_program(folder / "ffmpeg", f"#!{sys.executable}\n{FFMPEG}")


def write_programs_of_the_study(folder: Path) -> None:
    """Writes nlvideo-train and nlvideo-evaluate that cut each sweep of scripts/study.sh to one point."""
    folder.mkdir()
    for name in ("nlvideo-train", "nlvideo-evaluate"):
        text = STUDY.format(python=sys.executable, program=Path(__file__).with_name("one_point.py"), name=name)
        write_program(folder / name, f"#!/usr/bin/env bash\n{text}")


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@contextmanager
def reached(command: str, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields a command with the addresses of servers that it needs, and the environment for them.

    Args:
        command: a command of small_forms.
        folder: where the stand-ins are.
    """
    from store_servers import ENVIRONMENT, FaultyServer, s3_server
    from stream_servers import RtspServer, free_port, sent_by_udp, serving, write_stream

    environment: dict[str, str] = {}
    with ExitStack() as stack:
        if "s3://" in command:
            logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
            endpoint = stack.enter_context(s3_server(folder / "data/kinetics400"))
            environment = ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint}
            command = re.sub(r"AWS_ENDPOINT_URL=\S+", f"AWS_ENDPOINT_URL={endpoint}", command)
        if "gs://bucket/k400" in command:
            address = stack.enter_context(google_store("bucket", folder / "data/kinetics400"))
            environment = ENVIRONMENT | {"STORAGE_EMULATOR_HOST": address}
            command = command.replace("gs://bucket/k400", "gs://bucket")
        if "https://host/k400" in command:
            server = stack.enter_context(FaultyServer(folder / "data/kinetics400"))
            environment = ENVIRONMENT
            command = command.replace("https://host/k400", server.address)
        if "rtsp://camera/live" in command:
            server = stack.enter_context(serving(RtspServer(write_stream(folder / "live.ts", 2000), fps=25)))
            command = command.replace("rtsp://camera/live", f"rtsp://127.0.0.1:{server.port}/live")
        if found := re.search(r"udp://0\.0\.0\.0:(\d+)", command):
            stack.enter_context(sent_by_udp(write_stream(folder / "sent.ts", 2000), int(found[1]), fps=25))
        if "node-a" in command or ":29500" in command:
            command = command.replace("29500", str(free_port()))
        yield command, environment
