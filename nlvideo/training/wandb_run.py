"""A run at Weights & Biases, online or in files that `wandb sync` uploads later."""

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb

from nlvideo.training.background_log import LogRow
from nlvideo.training.run_status import FINISHED, STOPPED
from nlvideo.training.tracked_run import keep_tracked_id, tracked_id
from nlvideo.weights.checkpoint_file import NEWEST_FILE

PROJECT = "nlvideo"  # unless WANDB_PROJECT names another
INIT_SECONDS = 10.0  # for a server to answer; then the run is logged offline
FINISH_SECONDS = 10.0  # for the upload of the rest; wandb keeps it on disk


class WandbRun:
    """Online if WANDB_MODE says so, or if it says nothing and there is an API key; otherwise offline.

    Metrics have the run's steps. wandb takes steps in rising order only: of the steps that a resumed run repeats, it
    keeps the first values when online, and both when two offline parts are uploaded.

    Args:
        folder: of the run; wandb's own files go there, too, unless WANDB_DIR names another place.
        config: as plain values.
    """

    def __init__(self, folder: Path, config: dict[str, Any]):
        self._folder, self._config = folder, config | {"checkpoint": str(folder.resolve() / NEWEST_FILE)}
        self._id = tracked_id(folder, "wandb") or uuid.uuid4().hex[:12]
        keep_tracked_id(folder, "wandb", self._id)
        self._run: wandb.Run | None = None

    def start(self) -> str:
        _silence()
        mode = os.environ.get("WANDB_MODE")
        reason = f" (WANDB_MODE={mode})"
        try:
            if mode is None:
                mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
                reason = " (no API key, see `wandb login`)" if mode == "offline" else ""
            self._run = self._init(mode)
        except wandb.Error as error:
            if mode == "offline":
                raise
            reason = f" (no connection: {' '.join(str(error).split())[:100]})"
            wandb.teardown()  # which gives the id free
            _silence()
            self._run = self._init("offline")
        if self._run.url:
            return self._run.url
        return f"{'offline' if self._run.offline else mode}{reason}" + self._upload_advice()

    def _init(self, mode: Any) -> wandb.Run:  # a mode of wandb.Settings, which checks it; None is its own choice
        return wandb.init(
            id=self._id,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", self._folder.resolve().name),
            dir=os.environ.get("WANDB_DIR", str(self._folder)),
            config=self._config,
            settings=wandb.Settings(
                mode=mode,
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                reinit="create_new",
                allow_val_change=True,  # a resumed run may have more workers, or more steps
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
            ),
        )

    def send(self, rows: Sequence[LogRow]) -> None:
        assert self._run
        for row in rows:
            self._run.log(row.values, step=row.step)

    def finish(self, state: str, pictures: Sequence[Path]) -> str:
        assert self._run
        for path in pictures:
            self._run.log({path.stem: wandb.Image(str(path))})
        if state == STOPPED:
            self._run.mark_preempting()  # which wandb shows as preempted rather than failed
        self._run.finish(exit_code=0 if state == FINISHED else 1)
        return self._upload_advice().removeprefix("; ")

    def _upload_advice(self) -> str:
        assert self._run
        return f"; to upload it: wandb sync {Path(self._run.dir).parent}" if self._run.offline else ""


def _silence() -> None:
    wandb.setup(wandb.Settings(silent=True))  # what matters is printed by the thread that this is called from
