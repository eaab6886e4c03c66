"""Runs one command of a document in a folder, to its end or, where it has none, until it has answered."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from documented.commands import Command
from documented.services import reached
from documented.small_forms import small
from stream_servers import free_port

TIME_LIMIT = 1800  # seconds, for one command
ENDLESS = re.compile(r"nlvideo-predict (rtsp|udp)://")
SERVES_WITHIN = 60  # seconds
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
ANSWERS = 3  # lines after which an endless command is ended
ENDED = 128 + signal.SIGTERM  # not SIGINT, which what runs in the background may ignore


class Done(NamedTuple):
    code: int
    output: str
    ran: str  # what was run


def environment_of(folder: Path, programs: Path | None = None) -> dict[str, str]:
    """Returns the environment of all commands: pip installs nothing, nothing is downloaded or uploaded.

    Args:
        folder: holds `bin` with stand-ins for programs and `torch`, torch's home.
        programs: a folder of stand-ins that come first.
    """
    places = [*([programs] if programs else []), Path(sys.executable).parent, folder / "bin", os.environ["PATH"]]
    # Under PIP_DRY_RUN, pip's own installation of the build's requirements is one that installs nothing, too.
    pip = {"PIP_DRY_RUN": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return os.environ | {
        "PATH": os.pathsep.join(map(str, places)),
        "TORCH_HOME": str(folder / "torch"),
        "WANDB_MODE": "offline",
        **pip,
    }


def run(command: Command, folder: Path, environment: dict[str, str]) -> Done:
    """Runs the small form of a command."""
    if command.language == "python":
        (folder / "program.py").write_text(small(command))
        return shell(f"{sys.executable} program.py", folder, environment)._replace(ran=small(command))
    with reached(small(command), folder) as (text, added):
        if ENDLESS.search(text):
            return until_it_answers(text, folder, environment | added)
        if text.startswith("tensorboard "):
            return until_it_serves(text, folder, environment)
        done = shell(text, folder, environment | added)
    if re.search(r"nlvideo \S+ does not provide the extra", done.output):  # pip only warns
        return done._replace(code=1)
    return done


def shell(text: str, folder: Path, environment: dict[str, str]) -> Done:
    """Runs a command to its end, or ends it and all that it has started after TIME_LIMIT."""
    process = subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", text], cwd=folder, env=environment, text=True, errors="replace",
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return Done(124, f"{output}\nended after {TIME_LIMIT} s", text)
    return Done(process.returncode, output, text)


def until_it_answers(text: str, folder: Path, environment: dict[str, str]) -> Done:
    """Runs a command that would not end, and ends it after some lines of its output; 0 if it then ended."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {text}"], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    errors: list[str] = []  # read at once: a full pipe would stop the process
    reader = threading.Thread(target=lambda: errors.extend(process.stderr))
    reader.start()
    timer = threading.Timer(TIME_LIMIT, process.kill)
    timer.start()
    lines = [line for line, _ in zip(process.stdout, range(ANSWERS), strict=False)]
    process.terminate()
    process.stdout.read()
    code = process.wait()
    timer.cancel()
    reader.join()
    answered = len(lines) == ANSWERS and code in (0, ENDED, -signal.SIGTERM)
    return Done(0 if answered else code or 1, "".join([*lines, *errors]), text)


def until_it_serves(text: str, folder: Path, environment: dict[str, str]) -> Done:
    """Runs a server of pages until it has served one, and ends it; 0 if it has."""
    port, served = free_port(), False
    with open(folder / "served.log", "w+") as log:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {text} --host 127.0.0.1 --port {port}"], cwd=folder, env=environment, stdout=log,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        end = time.monotonic() + SERVES_WITHIN
        while not served and process.poll() is None and time.monotonic() < end:
            time.sleep(0.5)
            with suppress(OSError), DIRECT.open(f"http://127.0.0.1:{port}/data/runs", timeout=5) as answer:
                served = answer.status == 200 and json.load(answer) != []
        process.terminate()
        process.wait(SERVES_WITHIN)
        log.seek(0)
        return Done(0 if served else process.returncode or 1, log.read(), text)
