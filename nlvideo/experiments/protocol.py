"""What was run: the data, the recipe and the evaluation of a sweep's runs, in words."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlvideo.config.schema import DataConfig
from nlvideo.experiments.run_folders import HOURS, RunSummary, find_evaluations
from nlvideo.training.run_status import FINISHED

_Settings = Mapping[str, Any]


def protocol(runs: Sequence[RunSummary]) -> dict[str, str]:
    """Returns {what: in words} of the finished runs; where runs differ, what each of them has."""
    finished = [run for run in runs if run.state == FINISHED]
    words = {name: _all_of(say(run.settings) for run in finished) for name, say in SETTINGS.items()}
    results = [found.result for run in finished for found in find_evaluations(run.path)]
    words |= {name: _all_of(say(result) for result in results) for name, say in RESULTS.items()}
    seeds = sorted({run.seed for run in finished if run.seed is not None})
    counted = f"{len(finished)} finished" + (f", {len(runs) - len(finished)} not" if len(finished) < len(runs) else "")
    words = {"runs": counted, "seeds": ", ".join(map(str, seeds))} | words
    return {name: text for name, text in words.items() if text} | {"hours of training": f"{hours_of(finished):.1f}"}


def hours_of(runs: Iterable[RunSummary]) -> float:
    """Returns how long these runs have trained and validated, in all."""
    return sum(run.cost.get(HOURS) or 0 for run in runs)


def _all_of(texts: Iterable[str | None]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))


def data_set(settings: _Settings) -> str:
    """Returns the name of a run's data set: that of synthetic videos, or of its folder."""
    return settings.get("data.synthetic.kind") or Path(settings["data.root"]).name or settings["data.root"]


def networks(runs: Sequence[RunSummary]) -> str:
    """Returns in words which networks these runs trained, besides their blocks."""
    return ", ".join(_all_of(SETTINGS[key](run.settings) for run in runs) for key in ("networks", "channels"))


def _videos(settings: _Settings) -> str:
    lists = f"{settings['data.train']}, {settings['data.val']}"
    if "data.synthetic.kind" not in settings:
        return lists
    counts = settings["data.synthetic.num_train"], settings["data.synthetic.num_val"]
    said = "{:,} of training, {:,} of validation".format(*counts)
    return said if lists == USUAL_LISTS else f"{said}, labelled by {lists}"  # another question on the same videos


def _clips(settings: _Settings) -> str:
    frames, stride, size = (settings[f"data.{key}"] for key in ("num_frames", "frame_stride", "crop_size"))
    return f"{frames} frame{'s' * (frames > 1)}, stride {stride}, {size} x {size} pixels"


def _length(settings: _Settings) -> str:
    epochs, steps = settings["optim.max_epochs"], settings["optim.max_steps"]
    length = f"{steps:,} steps" if epochs is None else f"{epochs} epochs"
    return f"{length} of {settings['optim.batch_size']} clips"


def _optimizer(settings: _Settings) -> str:
    schedule = settings["optim.schedule"]
    return (
        f"{settings['optim.kind'].upper()}, rate {settings['optim.lr']:g} ({schedule} schedule), "
        f"weight decay {settings['optim.weight_decay']:g}"
    )


def _evaluated(result: _Settings) -> str:
    clips, crops = result["views"]["num_clips"], result["views"]["num_crops"]
    seen = f"{clips} clip{'s' * (clips > 1)} x {crops} crop{'s' * (crops > 1)}"
    return f"{seen} of {result['num_videos']:,} videos" if "num_videos" in result else seen


def _versions(result: _Settings) -> str:
    return ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())


USUAL_LISTS = f"{DataConfig.train}, {DataConfig.val}"
LAYOUT_NAMES = {"c2d": "C2D", "i3d": "I3D", "slow": "Slow"}
SETTINGS: dict[str, Callable[[_Settings], str | None]] = {
    "data set": data_set,
    "videos": _videos,
    "clips": _clips,
    "networks": lambda s: f"{LAYOUT_NAMES.get(s['model.layout'], s['model.layout'])} R{s['model.depth']}",
    "channels": lambda s: f"{s['model.width']} channels in the stem",
    "starts from": lambda s: s["model.pretrained"] or "random weights",
    "training": _length,
    "optimiser": _optimizer,
    "precision": lambda s: s["precision"],
}
RESULTS: dict[str, Callable[[_Settings], str | None]] = {
    "evaluation": _evaluated,
    "decoder": lambda result: result.get("decoder"),
    "device": lambda result: result.get("device") or result.get("device_type"),
    "versions": _versions,
}
