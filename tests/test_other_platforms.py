"""Training on the CPU, evaluation and prediction where systems lack what Linux has; see platforms/sitecustomize.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import TINY, assert_equal, config_of, rows_of, weights_of

from nlvideo.runtime.errors import UserFileExistsError
from nlvideo.runtime.folder_lock import holding, lock_folder
from nlvideo.train import train

TESTS = Path(__file__).parent
SYSTEMS = ["darwin", "win32"]

PROGRAM = """
import json
import sys

import nlvideo

if __name__ == "__main__":
    overrides, folder, video = json.loads(sys.argv[1])
    nlvideo.train([*overrides, "optim.max_steps=2", "dry_run=true"])
    nlvideo.train([*overrides, "optim.max_steps=2"])
    nlvideo.train([*overrides, "resume=auto", "data.num_workers=1", "keep=1"])  # spawned
    print("scores", nlvideo.evaluate(folder, ["data.num_workers=1"])["top1"])
    print("classes", *(name for name, _ in nlvideo.predict(folder, video)))
"""
STARTS = """
import sys
from pathlib import Path

import nlvideo.doctor, nlvideo.evaluate, nlvideo.experiments.sweep, nlvideo.prediction.command, nlvideo.train
from nlvideo.runtime.folder_lock import lock_folder
from nlvideo.runtime.free_memory import free_memory, peak_memory
from nlvideo.runtime.precision import resolve_precision

lock_folder(Path(sys.argv[1]))
device = nlvideo.train.torch.device("cpu")
print(free_memory(device), peak_memory(device), resolve_precision("auto", device), flush=True)
input()
"""


def environment(system: str) -> dict[str, str]:
    """Returns the variables under which Python has what another system has."""
    path = os.pathsep.join([str(TESTS / "platforms"), str(TESTS.parent)])
    return os.environ | {"PYTHONPATH": path, "NLVIDEO_TEST_SYSTEM": system, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("system", SYSTEMS)
def test_programs_start_and_lock_their_folders(system, tmp_path):
    command = [sys.executable, "-c", STARTS, str(tmp_path)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, env=environment(system), **pipes) as first:
        free, peak, precision = first.stdout.readline().split()
        with pytest.raises(UserFileExistsError, match="is in use by another process"):
            lock_folder(tmp_path)
        _, errors = first.communicate("\n")
    assert first.returncode == 0, errors
    assert (free, precision) == ("None", "torch.float32") and (peak == "None") == (system == "win32")
    with holding(tmp_path):
        lock_folder(tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_run_trains_resumes_and_is_evaluated_and_asked(system, video_folder, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    run = tmp_path / "run"
    overrides = [*TINY, "precision=auto", "optim.schedule=steps", f"data.root={video_folder}", f"output_dir={run}"]
    words = json.dumps([overrides, str(run), str(video_folder / "val/a video 0.mp4")])
    command = [sys.executable, str(tmp_path / "program.py"), words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(system))
    assert done.returncode == 0, done.stderr
    assert "Dry run: nothing was written" in done.stdout and "all 4 steps done" in done.stdout
    assert "classes" in done.stdout and (run / "checkpoint_best.pt").exists()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000004.pt"]
    assert torch.load(run / "checkpoint.pt")["world"]["dtype"] == "float32"
    train(config_of(video_folder, tmp_path / "here", "optim.schedule=steps"))
    assert_equal(weights_of(run), weights_of(tmp_path / "here"))
    assert rows_of(run) == rows_of(tmp_path / "here")
