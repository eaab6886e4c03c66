"""The machine that was checked; as a program, prints it as JSON."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import torch

import nlvideo
from nlvideo.runtime.cores import usable_cores
from nlvideo.runtime.device_facts import driver_version, library_versions, visible_gpu

ANSWER_SECONDS = 90


def described_machine() -> dict[str, str]:
    """Returns what describe_machine does, asked in another process: this one leaves the GPU to the parts, which may
    each need it alone, and a GPU that hangs does not hang this one."""
    try:
        done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        return {"device": f"does not answer within {ANSWER_SECONDS} s"}
    if done.returncode:
        return {"device": f"does not answer: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])


def describe_machine() -> dict[str, str]:
    """Returns the device, the versions in use and the number of cores, by name."""
    gpu = visible_gpu()
    if isinstance(gpu, str):
        device = {"device": f"CPU, {platform.processor() or platform.machine()}", "gpu": gpu}
    else:
        capability = ".".join(map(str, gpu.capability))
        memory = f"{gpu.free_bytes / 1e9:.1f} of {gpu.total_bytes / 1e9:.1f} GB free"
        device = {"device": gpu.name, "capability": capability, "memory": memory, "driver": driver_version()}
    versions = {"torch": torch.__version__, **library_versions(), "python": platform.python_version()}
    return device | versions | {"nlvideo": f"{nlvideo.__version__}, {revision()}", "cores": str(usable_cores())}


def revision() -> str:
    """Returns the git revision of the code that runs, with a + if it was changed; "no git" where it is not known."""
    folder = Path(nlvideo.__file__).parents[1]
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "no git"
    return done.stdout.strip() or "no git"


if __name__ == "__main__":
    print(json.dumps(describe_machine()))
