"""Kills a small run again and again, at random moments, and compares it with one that was left alone.

    python tests/kills.py FOLDER --kills 20             # one process with two workers; about 5 minutes on two cores
    python tests/kills.py FOLDER --kills 20 --ranks 3

Half of the kills wait for a checkpoint that is being written. After some of them the newest checkpoint is cut short
or has one bit flipped. Each is followed by the same command with resume=auto.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from nlvideo.training.step_metrics import TIMINGS

RUN = [
    "experiment=quickstart",
    "data.synthetic={num_train: 24, num_val: 8, num_frames: 24, height: 48}",
    "model.width=4",
    "model.dropout=0.5",
    "block=nl1",
    "data.num_frames=4",
    "data.scale_range=[32,40]",
    "data.crop_size=32",
    "data.num_workers=2",
    "data.test={num_clips: 2, num_crops: 3, short_side: 32, crop_size: 32}",
    "optim.batch_size=6",
    "optim.warmup_steps=5",
    "precision=float32",
    "precise_bn_steps=2",
    "log_every_steps=4",
    "checkpoint_every_steps=3",
    "validate_every_steps=50",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    differing = kill_and_compare(**vars(arguments))
    sys.exit("\n".join(differing) or None)


def kill_and_compare(folder: Path, kills: int, ranks: int, steps: int, seed: int, overrides=()) -> list[str]:
    """Returns in what the run that was killed differs from the other."""
    command = [Path(sys.executable).parent / "nlvideo-train", *RUN, f"data.root={folder / 'videos'}"]
    command += [f"optim.max_steps={steps}", f"num_devices={ranks}", "resume=auto", *overrides]
    whole, killed = folder / "whole", folder / "killed"
    subprocess.run([*command, f"output_dir={whole}"], check=True, stdout=subprocess.DEVNULL)
    rng, done, skipped = random.Random(seed), 0, 0
    while True:
        run = Start([*command, f"output_dir={killed}"])
        if done < kills and run.kill(killed, rng):
            done += 1
            what = damage(killed, rng) if done % 4 == 0 else ""
            print(f"kill {done}{' while a checkpoint was written' * run.saving}, {newest(killed)}{what}", flush=True)
            continue
        _, errors = run.process.communicate()
        if run.process.returncode:
            return [f"the run failed:\n{errors}"]
        break
    print(f"{done} kills; the run has {steps} steps, {len(rows_of(killed))} lines of metrics")
    skipped = [] if done == kills else [f"the run ended after {done} kills"]
    return skipped + differences(whole, killed)


class Start:
    """A process group that trains, and its end."""

    def __init__(self, command: list):
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, start_new_session=True, text=True, **pipes)
        self.saving = False

    def kill(self, folder: Path, rng: random.Random) -> bool:
        """Kills all processes some time after new steps were made; returns False if the run ended before."""
        before, wait_for_saving, delay = newest(folder), rng.random() < 0.5, rng.uniform(0, 2)
        while newest(folder) == before and self.process.poll() is None:
            time.sleep(0.01)
        end = time.monotonic() + delay
        while time.monotonic() < end + 10 * wait_for_saving and self.process.poll() is None:
            if wait_for_saving and time.monotonic() > end and list((folder / "checkpoints").glob(".*.part")):
                self.saving = True
                break
            time.sleep(0.0002 if wait_for_saving else 0.01)
        if self.process.poll() is not None:
            return False
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        return True


def newest(folder: Path) -> str:
    return max((file.name for file in (folder / "checkpoints").glob("step_*.pt")), default="no checkpoint")


def damage(folder: Path, rng: random.Random) -> str:
    """Cuts the newest checkpoint short or flips one of its bits, if there is an older one."""
    *older, file = sorted((folder / "checkpoints").glob("step_*.pt"))
    if not older:
        return ""
    data = bytearray(file.read_bytes())
    if rng.random() < 0.5:
        file.write_bytes(data[: rng.randrange(len(data))])
        return ", cut short"
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return ", one bit flipped"


def rows_of(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def differences(whole: Path, killed: Path) -> list[str]:
    """Returns in what two runs differ: weights, momentum, statistics, and metrics but for timings."""
    a, b = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, killed))
    best = [torch.load(folder / "checkpoint_best.pt", weights_only=True) for folder in (whole, killed)]
    parts = ("model", "ema", "optimizer", "precise_bn", "step", "meter")
    found = [key for key in parts if not equal(a[key], b[key])]
    found += ["best"] * (not equal(best[0]["model"], best[1]["model"]))
    found += ["metrics"] * (rows_of(whole) != rows_of(killed))
    return [f"{key} differs" for key in found]


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


if __name__ == "__main__":
    main()
