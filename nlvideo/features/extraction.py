"""The features of many videos on all ranks: what is finished is not computed again, what fails does not stop others."""

import errno
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

import nlvideo
from nlvideo.config.compose import to_yaml
from nlvideo.config.schema import ExtractConfig
from nlvideo.data.decoding.video import DecodeError, SlowVideo
from nlvideo.features.array_file import IncompleteRows, writing_rows
from nlvideo.features.crops import crop_places
from nlvideo.features.extractor import FeatureExtractor, NotFinite
from nlvideo.features.feature_folder import (
    SETTINGS_FILE,
    FeatureFolder,
    recorded_settings,
    refuse_other_failures,
    reporting_full_disks,
    write_failures,
)
from nlvideo.features.frame_source import FrameSource, size_for
from nlvideo.features.lanes import in_lanes
from nlvideo.features.names import ListedVideo, check_array_names, check_names
from nlvideo.features.network_outputs import output_names
from nlvideo.features.shard_lock import shard_lock, shard_suffix
from nlvideo.features.single_file import SUFFIXES_OF, SingleFile, check_format_package
from nlvideo.features.snippets import SnippetPlan
from nlvideo.features.video_list import listed_videos
from nlvideo.features.video_state import description_of
from nlvideo.runtime import distributed
from nlvideo.runtime.cores import cores_of_rank
from nlvideo.runtime.errors import RunFailed
from nlvideo.runtime.files import make_folder, remove_partial_files
from nlvideo.runtime.progress import print_above_bars, progress_bar
from nlvideo.runtime.signals import StopSignal
from nlvideo.weights.exported_network import ExportedFile, read_network
from nlvideo.weights.trained_network import TrainedCheckpoint

SHOWN_FAILURES = 10  # of each rank, while it works
SHOWN_AFTER_SECONDS = 10  # the progress of a single video: logs need no lines about short ones
# What a disk says of one name, not of all: too long, not of its alphabet, or a file where a folder is wanted.
OF_ONE_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # in a RuntimeError of PyTorch


@dataclass(frozen=True)
class Extraction:
    """What this command's ranks have to do.

    Attributes:
        videos: all of the shard.
        parts: where the arrays of each video are written.
        single: the file that they become in the end; None: they stay.
        failed: the file that names the videos that failed.
    """

    extractor: FeatureExtractor
    videos: list[ListedVideo]
    parts: FeatureFolder
    single: SingleFile | None
    failed: Path


def extract(config: ExtractConfig, trained: TrainedCheckpoint | ExportedFile | None = None) -> None:
    """Writes the features of all videos that are not finished.

    Args:
        trained: the checkpoint, where the caller has read it already.

    Raises:
        UserError: what is wrong before anything is computed.
        RunFailed: some videos failed, or nothing more can be written.
    """
    world = distributed.init_world()
    distributed.check_same(hashlib.sha256(to_yaml(config).encode()).hexdigest(), "configuration")
    videos, note = distributed.on_main(listed_videos, config.videos, config.data.root or None)
    trained = trained or read_network(config.checkpoint, config.trusted)
    if world.is_main:
        print(f"{note}; preset={config.preset}, layer={config.layer}, format={config.format}", flush=True)
    distributed.on_main(check_output, config, videos)
    output = Path(config.output)
    torch.set_num_threads(config.num_threads or threads_of_extraction(output))
    job = plan_extraction(config, FeatureExtractor.from_config(config, trained, world.device), trained, videos)
    distributed.on_main(make_folder, output, f"output={output}")
    with ExitStack() as stack, reporting_full_disks(output):
        distributed.on_main(lambda: stack.enter_context(shard_lock(output, config.shard, lambda: tidy(output))))
        remaining = distributed.on_main(open_output, job)
        found, stopped = extract_share(job, remaining[world.rank :: world.size], hidden=not world.is_main)
        failures = {name: reason for part in distributed.gather(found) for name, reason in part.items()}
        distributed.on_main(end_extraction, job, output, failures, stopped)
    if stopped:
        distributed.leave_world()
        sys.exit(128 + stopped)
    if failures and world.is_main:
        raise RunFailed(f"{len(failures)} of {len(job.videos)} videos failed; {job.failed} says why.")


def check_output(config: ExtractConfig, videos: Sequence[ListedVideo]) -> None:
    """Raises UserError if the features of these videos cannot all be written."""
    endings = output_names(config.layer)
    check_names(videos, endings)
    if config.format != "npy":
        check_format_package(config.format)
        check_array_names((video.name + ending for video in videos for ending in endings), config.format)


def threads_of_extraction(output: Path) -> int:
    """Returns how many CPU threads each rank has unless the config says so: as many as the folder was begun with, or
    a rank's part of the cores, the smallest of all."""
    begun, part = distributed.on_main(recorded_settings, output), min(distributed.gather(cores_of_rank()))
    return begun.get("num_threads") or part


def plan_extraction(
    config: ExtractConfig,
    extractor: FeatureExtractor,
    trained: TrainedCheckpoint | ExportedFile,
    videos: Sequence[ListedVideo],
) -> Extraction:
    output, settings = Path(config.output), settings_of(config, extractor, trained)
    part, _, parts = (config.shard or "1/1").partition("/")
    chosen, own = list(videos)[int(part) - 1 :: int(parts)], shard_suffix(config.shard)
    arrays = output if config.format == "npy" else output / f"unfinished{own}"
    folder = FeatureFolder(output, arrays, settings, output_names(config.layer))
    single = None
    if config.format != "npy":
        single = SingleFile(output / f"features{own}{SUFFIXES_OF[config.format]}", config.format, folder)
    return Extraction(extractor, chosen, folder, single, output / f"failed{own}.csv")


def settings_of(
    config: ExtractConfig, extractor: FeatureExtractor, trained: TrainedCheckpoint | ExportedFile
) -> dict[str, Any]:
    """Returns everything that the features depend on, apart from the videos."""
    data = config.data
    return {
        "checkpoint": str(config.checkpoint),
        "checkpoint_sha256": trained.sha256,
        "preset": config.preset,
        "layer": config.layer,
        "positions": config.positions,
        **asdict(extractor.recipe),
        "mean": data.mean,
        "std": data.std,
        "decoder": data.decoder,
        "frame_rate": data.frame_rate,
        "clip_fps": data.clip_fps,
        "dtype": config.dtype,
        "format": config.format,
        "precision": str(extractor.dtype).removeprefix("torch."),
        "device_type": extractor.device.type,
        "views_per_step": extractor.views_per_step,
        "num_threads": torch.get_num_threads() if extractor.device.type == "cpu" else None,
        "versions": {
            "nlvideo": nlvideo.__version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "av": av.__version__,
        },
    }


def tidy(output: Path) -> None:
    """Removes what a killed process left of the record of a folder. No other process is in it."""
    remove_partial_files(output, SETTINGS_FILE.__eq__)


def open_output(job: Extraction) -> list[ListedVideo]:
    """Makes the folder ready; returns the videos of the shard that are not finished, which fewer ranks may do too."""
    refuse_other_failures(job.failed)
    wanted = job.videos if job.single is None else job.single.not_held(job.videos)
    remaining = job.parts.open(wanted)
    singles = [] if job.single is None else [job.single.file, job.single.facts_file]
    job.parts.remove_partial_files(job.videos, [job.failed, *singles])
    if len(remaining) < len(job.videos):
        print(f"resumed: {len(job.videos) - len(remaining)} of {len(job.videos)} videos are finished already")
    return remaining


def extract_share(job: Extraction, videos: Sequence[ListedVideo], *, hidden: bool) -> tuple[dict[str, str], int]:
    """Writes the features of this rank's videos.

    Returns {name: reason} of those that failed, and the number of the signal that a rank was stopped by, else 0.
    """
    failures, lanes = dict[str, str](), job.extractor.lanes(len(videos))
    with (
        StopSignal() as stopping,
        progress_bar(total=len(videos), desc="extracting", unit="video", disable=hidden) as bar,
    ):

        def extract_one(extractor: FeatureExtractor, video: ListedVideo, ended: Callable[[], bool]) -> None:
            extract_video(
                job, extractor, video, lambda: bool(stopping.received) or ended(), hidden=hidden or len(lanes) > 1
            )

        for video, done in in_lanes(extract_one, lanes, videos):
            try:
                done()
            except IncompleteRows:
                break
            except Exception as error:
                reason = reason_of_failure(error)
                if reason is None:
                    raise
                failures[video.name] = reason
                if len(failures) <= SHOWN_FAILURES:
                    print_above_bars(f"{video.path}: {reason}", sys.stderr)
                elif len(failures) == SHOWN_FAILURES + 1:
                    print_above_bars(f"More videos failed; {job.failed} will name all of them.", sys.stderr)
            bar.update()
            if stopping.received:
                break
        return failures, max(distributed.gather(stopping.received))


def reason_of_failure(error: Exception) -> str | None:
    """Returns why a video failed; None if the error is not of one video alone."""
    if isinstance(error, DecodeError | SlowVideo | NotFinite):
        return error.reason
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.errno in OF_ONE_NAME else None
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY in str(error):
        return "there is not enough memory for its frames (fewer views_per_step or a smaller short_side take less)"
    return None


def extract_video(
    job: Extraction,
    extractor: FeatureExtractor,
    video: ListedVideo,
    stopped: Callable[[], bool],
    *,
    hidden: bool,
) -> None:
    """Writes the arrays of one video and, before they get their names, what is known of them.

    Raises:
        DecodeError: the video cannot be decoded, or is too short.
        NotFinite: its features are not.
        IncompleteRows: it was stopped before the end.
        OSError: the disk is full, or cannot hold a file of that name.
    """
    if stopped():
        raise IncompleteRows
    description = description_of(video)  # before it is read: it may change meanwhile
    with extractor.open(video.path, video.part) as source, ExitStack() as stack:
        plan = extractor.plan(source)
        count = plan.count(source.num_frames)
        job.parts.facts_file(video).parent.mkdir(parents=True, exist_ok=True)
        files = [stack.enter_context(writing_rows(file, count)) for file in job.parts.array_files(video)]
        options: dict[str, Any] = {"total": count, "desc": Path(video.path).name, "unit": "snippet", "leave": False}
        with progress_bar(**options, delay=SHOWN_AFTER_SECONDS, disable=hidden) as bar:
            for arrays in extractor.rows(source, plan, stopped):
                for file, array in zip(files, arrays, strict=True):
                    file.append(array)
                bar.update()
        if not all(file.is_whole for file in files):
            raise IncompleteRows
        shapes = {video.name + end: list(file.shape) for end, file in zip(job.parts.endings, files, strict=True)}
        job.parts.claim(video, description | facts_of(source, plan, extractor) | {"shapes": shapes})


def facts_of(source: FrameSource, plan: SnippetPlan, extractor: FeatureExtractor) -> dict[str, Any]:
    """Returns what is known of a video's features besides what made them: above all the times of the snippets."""
    starts = plan.starts(source.num_frames)
    places = crop_places(extractor.recipe.crops, *size_for(extractor.recipe, source), extractor.recipe.crop_size)
    return {
        "fps": source.fps,
        "num_frames": source.num_frames,
        "height": source.height,
        "width": source.width,
        "snippets": {
            "first_frame": starts.tolist(),
            "last_frame": (starts + plan.span - 1).tolist(),
            "start": (starts / source.fps).round(6).tolist(),
            "end": ((starts + plan.span) / source.fps).round(6).tolist(),
        },
        "frames_after_the_last_snippet": int(source.num_frames - starts[-1] - plan.span),
        "crops": [place._asdict() for place in places],
    }


def end_extraction(job: Extraction, output: Path, failures: Mapping[str, str], stopped: int) -> None:
    """Writes the list of failures and, unless the extraction was stopped, the single file; prints where all is."""
    write_failures(job.failed, [(video, failures[video.name]) for video in job.videos if video.name in failures])
    if stopped:
        print(f"Stopped; what is finished is kept in {job.parts.arrays}. The same command goes on.")
        return
    if job.single is not None:
        job.single.take_parts(job.videos)
    held = len(job.videos) - len(failures)
    where = job.single.file if job.single and held else output
    print(f"{where} holds features of {held} of {len(job.videos)} videos")
