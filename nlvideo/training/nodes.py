"""Several nodes, with a common disk or without: what must be the same on all, and where the checkpoints must be."""

from pathlib import Path

import av
import numpy as np
import torch

import nlvideo
from nlvideo.runtime import distributed
from nlvideo.runtime.errors import UserError
from nlvideo.training.preflight import Inputs
from nlvideo.training.step_files import FoundCheckpoint, later_step


def check_same_on_all(inputs: Inputs, dtype: torch.dtype) -> None:
    """Refuses ranks that would compute something else than rank 0: other lists, versions or compute dtype.

    Raises:
        UserError: on rank 0; the others exit. It names the rank and its node.
    """
    lists = {"data.train": inputs.train_table.digest(), "data.val": inputs.val_table.digest()}
    distributed.check_same(lists, "list of videos (SHA-256)")
    versions = {"nlvideo": nlvideo.__version__, "torch": str(torch.__version__), "numpy": np.__version__}
    distributed.check_same({**versions, "av": av.__version__}, "version")
    distributed.check_same(str(dtype).removeprefix("torch."), "compute dtype (precision)")


def check_newest_on_main(folder: Path, found: FoundCheckpoint | None) -> None:
    """Refuses to start behind a checkpoint that lies on another node; every rank must call it.

    Without a common disk the checkpoints are on the node that rank 0 had. If rank 0 is now elsewhere, it finds none, or
    older ones, and the run would silently repeat what it has done.

    Args:
        folder: the run's, on each node.
        found: what rank 0 resumes from.

    Raises:
        UserError: on rank 0; the others exit. Another node's folder holds a later whole step.
    """
    step = found.content["step"] if found else 0
    is_asked = distributed.is_first_of_node() and not distributed.is_first()
    later = distributed.together(later_step, folder, step) if is_asked else distributed.together(lambda: None)
    distributed.on_main(_refuse_later, folder, step, distributed.gather_from_nodes(later))


def _refuse_later(folder: Path, step: int, later_steps: list[tuple[str, int | None]]) -> None:
    here = later_steps[0][0]
    newest, node = max((later or 0, node) for node, later in later_steps)
    if newest > step:
        held = f"ends with step {step}" if step else "has no checkpoint"
        raise UserError(
            f"output_dir={folder} on {node} holds step {newest}, but rank 0 is on {here}, where the folder {held}: "
            f"start so that {node} has rank 0 (--node-rank=0 there; c10d ranks nodes by name), or copy the folder to "
            f"{here}. If {node} holds another run, remove it. See docs/clusters.md."
        )
