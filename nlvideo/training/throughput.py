"""What bounds a training run and how long it takes, computed from the seconds that the parts of a step take alone.

A rank decodes the clips of its steps, copies them to its device, computes, and averages gradients with the others. On a
GPU, workers decode and clips are copied while it computes, so the longest of these sets the pace. On a CPU all share
the rank's cores. Without workers each waits for the one before.
"""

import math
from typing import NamedTuple

_NEARLY = 1 - 1e-9  # so that a ratio that is whole but for rounding is not rounded up


class StepParts(NamedTuple):
    """Seconds of a rank's part of a step."""

    decoding: float  # in one process
    copying: float  # to the device, 0 on a CPU
    forward: float  # of `computing`
    computing: float  # with no other rank to wait for
    communication: float = 0.0  # from the first gradient that is sent to the last one that is averaged
    exposed: float = 0.0  # of it, what a step takes longer for it: the backward pass hides the rest

    @property
    def device(self) -> float:
        return self.computing + self.exposed


def step_parts(
    decoding: float, copying: float, forward: float, *, together: float, alone: float, communication: float
) -> StepParts:
    """Returns the parts of a step that has been computed twice: by all ranks together, and by each one alone.

    What together takes longer is communication that is not hidden, up to all of it; the rest is noise.
    """
    exposed = max(0.0, min(communication, together - alone))
    return StepParts(decoding, copying, forward, together - exposed, communication, exposed)


class Rank(NamedTuple):
    """What a rank works with."""

    cores: int
    workers: int
    gpu: bool

    @property
    def decoders(self) -> int:
        """Processes that decode at a time. The one that feeds a GPU needs a core of its own."""
        return max(1, min(self.workers, self.cores - 1 if self.gpu else self.cores))


class Work(NamedTuple):
    """What a run does."""

    steps: int
    clips: int  # of a step, on each rank
    ranks: int
    validations: int
    videos: int  # of a validation, over all ranks
    precise_bn_steps: int  # before each validation
    decoding_apart: float | None = None  # as StepParts.decoding, of clips of as many videos; None: as there


class Pace(NamedTuple):
    """How fast steps follow each other."""

    seconds: float  # of a step
    bound: str  # decoding, copying, computing or communication
    share: float  # of the step that this part takes


class RunSeconds(NamedTuple):
    """How long a run takes, without its start and its checkpoints."""

    training: float
    validation: float
    precise_bn: float


def pace_of(parts: StepParts, rank: Rank) -> Pace:
    """Returns how long a step takes in a long run, and which part that is due to."""
    on_device = "communication" if parts.communication > parts.computing else "computing"
    busy = {"decoding": parts.decoding, "copying": parts.copying, on_device: parts.device}
    if not rank.workers:
        seconds = sum(busy.values())
    elif rank.gpu:
        busy["decoding"] /= rank.decoders
        seconds = max(busy.values())
    else:
        shared = parts.decoding / rank.cores + parts.device
        seconds = max(parts.decoding / rank.decoders, shared)
        busy["decoding"] = seconds if seconds > shared else parts.decoding / rank.cores
    bound = max(busy, key=lambda name: busy[name])
    if bound == on_device:
        busy[bound] = max(parts.computing, parts.communication)
    return Pace(seconds, bound, min(1.0, busy[bound] / seconds))


def workers_needed(parts: StepParts, rank: Rank) -> int:
    """Returns how many workers a rank needs for its data not to be what it waits for.

    Workers on a CPU take cores from computing. There these are enough to use all of them.
    """
    ahead = max(parts.copying, parts.device) if rank.gpu else parts.decoding / rank.cores + parts.device
    return max(1, math.ceil(parts.decoding / ahead * _NEARLY))


def run_seconds(parts: StepParts, rank: Rank, work: Work) -> RunSeconds:
    """Returns how long a run takes. Validations are estimated: their clips take what those of training do, or would
    with one clip of each video, and the forward pass alone."""
    forward = parts._replace(computing=parts.forward, communication=0.0, exposed=0.0)
    apart = forward if work.decoding_apart is None else forward._replace(decoding=work.decoding_apart)
    step, step_forward, step_apart = (pace_of(each, rank).seconds for each in (parts, forward, apart))
    steps_of_validation = math.ceil(work.videos / work.ranks) / work.clips
    return RunSeconds(
        work.steps * step,
        work.validations * steps_of_validation * step_apart,
        work.validations * work.precise_bn_steps * step_forward,
    )


def throughput_rows(parts: StepParts, rank: Rank, work: Work) -> list[tuple[str, str]]:
    """Returns (name, text) for a table: the parts of a step, what bounds it, and the time of the run."""
    pace = pace_of(parts, rank)
    per_rank, of_each = work.clips / pace.seconds, " a rank" if work.ranks > 1 else ""
    rows = [
        ("decoding a step", f"{duration(parts.decoding)} for {work.clips} clips in one process{_spread(parts, rank)}")
    ]
    if rank.gpu:
        rows.append(("copying a step", f"{duration(parts.copying)} to the device"))
    rows.append(("computing a step", f"{duration(parts.computing)}, of which forward {duration(parts.forward)}"))
    if work.ranks > 1:
        shown = f"{duration(parts.communication)} over {work.ranks} ranks, {duration(parts.exposed)} not hidden"
        rows.append(("communication", f"{shown} by computing"))
    total = f", {work.ranks * per_rank:.1f} in all" if work.ranks > 1 else ""
    rows.append(("a step", f"about {duration(pace.seconds)}, {per_rank:.1f} clips/s{of_each}{total}"))
    rows.append(("bound by", f"{pace.bound}, {100 * pace.share:.0f} % of a step{_advice(parts, rank, pace)}"))
    rows.append(("workers needed", _workers(parts, rank, of_each)))
    rows.append(("the whole run", _whole_run(run_seconds(parts, rank, work), work)))
    return rows


def duration(seconds: float) -> str:
    """Returns a time for people, from microseconds to days."""
    for unit, size, least in (("hours", 3600, 7200), ("minutes", 60, 120), ("s", 1, 1), ("ms", 1e-3, 0)):
        if seconds >= least:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    raise ValueError(f"{seconds} s: a time is not negative")


def _spread(parts: StepParts, rank: Rank) -> str:
    if rank.workers < 2:
        return ""
    busy = "" if rank.decoders == rank.workers else f", {rank.decoders} of which have a core"
    return f", {duration(parts.decoding / rank.decoders)} with {rank.workers} workers{busy}"


def _advice(parts: StepParts, rank: Rank, pace: Pace) -> str:
    """Returns what would make the part that bounds a run shorter."""
    if pace.bound == "decoding":
        return f"; without it {duration(max(parts.device, parts.copying))}"
    if pace.bound == "communication":
        return "; larger batches or a faster network help"
    return ""


def _workers(parts: StepParts, rank: Rank, of_each: str) -> str:
    count = workers_needed(parts, rank)
    if not rank.gpu:
        cores = "core" if rank.cores == 1 else f"{rank.cores} cores"
        return f"{count}{of_each}; they share the {cores} with computing"
    return f"{count}{of_each}, on {count + 1} cores, for the device not to wait for data"


def _whole_run(seconds: RunSeconds, work: Work) -> str:
    many = "" if work.validations == 1 else "s"
    estimated = f"{work.validations} validation{many} {duration(seconds.validation)}"
    if work.precise_bn_steps:
        estimated += f", precise batch norm {duration(seconds.precise_bn)}"
    return f"about {duration(sum(seconds))}: {work.steps} steps {duration(seconds.training)}; estimated: {estimated}"
