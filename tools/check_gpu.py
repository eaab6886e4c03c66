"""Shows in a few minutes whether nlvideo is right and fast on this machine's GPU, with a table and a JSON file.

    python tools/check_gpu.py                    # all parts: at most 8 minutes on a GPU, about 2 on two CPU cores
    python tools/check_gpu.py --quick            # fewer cases of A to D: 90 seconds on a GPU
    python tools/check_gpu.py --parts B,C        # some of them

  A  versions, and which kernels PyTorch takes          E  runs: stop, resume, evaluate, float16, compile
  B  operations and networks against float64            F  ranks: NCCL, gloo, synchronised batch norm
  C  times of the attention kernels                     G  data: views of videos, loading workers
  D  the training step

Each part runs in a process of its own and may fail alone; the JSON file is rewritten after each. It needs 40 GB of
GPU memory for all of D (cases that do not fit fail by name) and 2 GB of disk. On a CPU the same parts run with small
sizes, and what only a GPU can show is listed as skipped. The exit code is 1 if anything failed. docs/gpu.md explains
each part.
"""

import argparse
import importlib
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import nlvideo.runtime.threads  # noqa: F401, before torch is loaded

# isort: split
import torch
from gpu_checks.findings import SKIPPED, Finding, Findings, read_findings
from gpu_checks.header import described_machine
from gpu_checks.running import PartResult, run_part
from gpu_checks.table import print_table, write_json

from nlvideo.runtime.errors import UserError, reporting_errors
from nlvideo.runtime.files import check_writable
from nlvideo.runtime.precision import use_tf32

PARTS = {  # in this order: module of gpu_checks, title, seconds that it may take
    "A": ("versions", "versions", 60),
    "B": ("operations", "operations", 120),
    "C": ("attention_times", "attention times", 120),
    "D": ("steps", "training step", 270),
    "E": ("runs", "runs", 200),
    "F": ("ranks", "ranks", 150),
    "G": ("data", "data", 150),
}
TITLES = {name: title for name, (_, title, _) in PARTS.items()}
QUICK_PARTS = "A,B,C,D"
MINUTES, QUICK_MINUTES = 8.0, 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"fewer cases of {QUICK_PARTS}, in 90 s on a GPU")
    parser.add_argument("--parts", metavar="A,B", help="only these")
    parser.add_argument("--output", type=Path, default=Path("check_gpu.json"), metavar="FILE", help="%(default)s")
    parser.add_argument(
        "--minutes", type=float, help="for all parts together; what is left then is skipped (8, or 1.5)"
    )
    parser.add_argument("--run", choices=PARTS, help=argparse.SUPPRESS)  # one part, in a process of its own
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_here(arguments.run, arguments.folder, arguments.quick, arguments.seconds)
        return
    with reporting_errors():
        parts = chosen_parts(arguments.parts or (QUICK_PARTS if arguments.quick else ",".join(PARTS)))
        check_writable(arguments.output.absolute().parent, "--output")
        minutes = arguments.minutes or (QUICK_MINUTES if arguments.quick else MINUTES)
        results = check(parts, arguments.output, 60 * minutes, ["--quick"] * arguments.quick)
    sys.exit(any(result.failed for result in results.values()))


def chosen_parts(text: str) -> list[str]:
    """Returns the parts that a user names, in their order of running.

    Raises:
        UserError: an unknown part.
    """
    named = [name.strip().upper() for name in text.split(",")]
    if unknown := [name for name in named if name not in PARTS]:
        raise UserError(f"--parts {text}: {unknown[0]!r} is not a part. Choose from: {', '.join(PARTS)}.")
    return [name for name in PARTS if name in named]


def check(parts: Sequence[str], output: Path, seconds: float, options: Sequence[str]) -> dict[str, PartResult]:
    """Runs these parts and returns their results; writes them after each, and prints them at the end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what is known gets printed
    header = described_machine() | {"started": datetime.now().isoformat(" ", "seconds")}
    results: dict[str, PartResult] = {}
    started, complete = time.monotonic(), False
    try:
        for name in parts:
            with tempfile.TemporaryDirectory(prefix="check_gpu_", ignore_cleanup_errors=True) as scratch:
                folder, left = Path(scratch, name), seconds - (time.monotonic() - started)
                try:
                    results[name] = run_limited(name, folder, left, options)
                finally:
                    results.setdefault(name, cut_short(folder))
                    complete = name == parts[-1] and not results[name].cut
                    header["seconds"] = f"{time.monotonic() - started:.0f}"
                    write_json(output, header, results, complete=complete)
    finally:
        print_table(header, results, TITLES)
        print(f"{'complete' if complete else 'cut short'}: {output}")
    return results


def cut_short(folder: Path) -> PartResult:
    """Returns what a part had found when the whole check was interrupted."""
    end = Finding("the part", state=SKIPPED, reason="the check was interrupted")
    return PartResult(0, [*read_findings(folder / "findings.jsonl"), end], cut=True)


def run_limited(name: str, folder: Path, left: float, options: Sequence[str]) -> PartResult:
    """Runs a part within its own limit and the time that is left for all."""
    if left < 1:
        return PartResult(0, [Finding("all", state=SKIPPED, reason="no time left: --minutes gives more")])
    limit = min(PARTS[name][2], left)
    print(f"part {name}, {TITLES[name]}: at most {limit:.0f} s", flush=True)
    own = ["--run", name, "--folder", str(folder), "--seconds", f"{limit:.0f}"]
    return run_part([sys.executable, __file__, *own, *options], folder, limit)


def run_here(name: str, folder: Path, quick: bool, seconds: float) -> None:
    """Runs a part in this process."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    use_tf32(False, device)  # as the programs do
    found = Findings(folder / "findings.jsonl", device, quick=quick, seconds=seconds)
    importlib.import_module(f"gpu_checks.{PARTS[name][0]}").run(found, folder)


if __name__ == "__main__":
    main()
