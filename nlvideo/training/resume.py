"""Resuming a run: what its folder holds, whether it is the same run, and what may differ."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nlvideo.config.compose import from_container, to_container
from nlvideo.config.schema import TrainConfig
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.runtime.distributed import is_restarted
from nlvideo.runtime.errors import UserError, UserFileExistsError
from nlvideo.training.metrics_file import METRICS_FILE
from nlvideo.training.step_files import STEPS_FOLDER, FoundCheckpoint, newest_checkpoint
from nlvideo.weights.checkpoint_file import NEWEST_FILE

CONFIG_FILE = "config.yaml"
# What a resumed run may change, because the result is the same run.
FREE_KEYS = (
    "output_dir num_devices resume dry_run keep profile_steps log_every_steps validate_every_steps "
    "validate_every_epochs checkpoint_every_steps patience logger compile cuda_graph model.pretrained "
    "model.activation_checkpointing optim.accumulate optim.max_steps optim.max_epochs data.root data.videos "
    "data.index data.cache_dir data.cache_gb data.num_workers data.start_method data.time_limit_seconds data.skip_slow "
    "data.max_bad_share"
).split()
COSINE_ADVICE = (
    "under optim.schedule=cosine every step's learning rate depends on it: resume with the old value, or start a new "
    "run from these weights with another output_dir and model.pretrained={folder}/checkpoint.pt"
)


def find_checkpoint(config: TrainConfig, table: VideoTable) -> FoundCheckpoint | None:
    """Returns the newest whole checkpoint that the run resumes from, None for a new run.

    A restart by torchrun, after a process has died, resumes too.

    Raises:
        UserFileExistsError: the folder holds a run and resume is not "auto".
        UserError: it is another run, or none of its checkpoints is whole.
    """
    folder = Path(config.output_dir)
    held = [name for name in (NEWEST_FILE, STEPS_FOLDER, METRICS_FILE, CONFIG_FILE) if (folder / name).exists()]
    if not held:
        return None
    if config.resume != "auto" and not is_restarted():
        raise UserFileExistsError(
            f"output_dir={config.output_dir} holds a run already ({', '.join(held)}): resume it with resume=auto, or "
            "give another output_dir. Nothing is overwritten."
        )
    found = newest_checkpoint(folder)
    if found is None:
        _check_same_run(folder, stored_config(folder), config, [])
        return None
    checkpoint = found.content
    if "optimizer" not in checkpoint:
        raise UserError(f"{found.path} holds weights, not a run; use it as model.pretrained.")
    others = []
    if checkpoint["list_sha256"] != table.digest():
        others.append(f"the training list: {table.source} has other videos, labels or class names than before")
    _check_same_run(folder, checkpoint["config"], config, others)
    return found


def stored_config(folder: Path) -> dict[str, Any] | None:
    """Returns the config that a run's folder holds as plain values, None if it holds none."""
    file = folder / CONFIG_FILE
    return OmegaConf.to_container(OmegaConf.load(file)) if file.exists() else None  # type: ignore[return-value]


def begun_config(config: TrainConfig) -> dict[str, Any] | None:
    """Returns the stored config of the run that this one resumes, None if it is a new one."""
    resuming = config.resume == "auto" or is_restarted()
    return stored_config(Path(config.output_dir)) if resuming else None


def differences(stored: dict[str, Any] | None, config: TrainConfig) -> list[str]:
    """Returns lines "key: old -> new" for what makes the config another run than the stored one."""
    if stored is None:
        return []
    old = to_container(from_container(TrainConfig, stored))  # keys that are newer than the run get their defaults
    free, length = list(FREE_KEYS), "optim.max_steps" if config.optim.max_epochs is None else "optim.max_epochs"
    if config.optim.schedule != "steps":
        free.remove(length)
    lines = []
    for line in config_differences(old, to_container(config)):
        if line.startswith(f"{length}:") and length not in free:
            lines.append(f"{line} ({COSINE_ADVICE.format(folder=old['output_dir'])})")
        elif not any(line.startswith((f"{key}:", f"{key}.")) for key in free):
            lines.append(line)
    return lines


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns lines "key: old -> new" for every value in which two nested configs differ."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += config_differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines


def notes_on(found: FoundCheckpoint, config: TrainConfig, world_size: int, dtype: str) -> list[str]:
    """Returns what a user should know about a resumed run: from where, and what differs from before."""
    checkpoint = found.content
    before, old = checkpoint["config"], checkpoint["world"]
    lines = [f"resumed after step {checkpoint['step']}", *(f"skipped: {reason}" for reason in found.skipped)]
    if checkpoint["step"] >= config.optim.max_steps:
        lines.append(f"trained for {checkpoint['step']} steps already, nothing is left to do")
    if (old["size"], before["optim"]["accumulate"]) != (world_size, config.optim.accumulate):
        lines.append(
            f"{world_size} ranks with {config.optim.accumulate} micro-batches instead of {old['size']} with "
            f"{before['optim']['accumulate']}: the same clips per step, but trained batch norm acts within "
            "each micro-batch, and dropout within each rank"
        )
    if old["dtype"] != dtype:
        lines.append(f"compute dtype {dtype} instead of {old['dtype']}")
    for key, now in (
        ("compile", config.compile),
        ("cuda_graph", config.cuda_graph),
        ("activation_checkpointing", config.model.activation_checkpointing),
    ):
        was = (before["model"] if key in before["model"] else before).get(key, now)
        if was != now:
            lines.append(f"{key}={now} instead of {was}: the same function, rounded differently")
    return lines


def _check_same_run(folder: Path, stored: dict[str, Any] | None, config: TrainConfig, others: list[str]) -> None:
    changed = differences(stored, config) + others
    if changed:
        lines = "\n  ".join(changed)
        raise UserError(f"{folder} holds another run than the one asked for:\n  {lines}")
