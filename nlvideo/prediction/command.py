"""nlvideo-predict: the classes of videos, whole or over time, with the scores of nlvideo-evaluate.

Not called predict.py: that would shadow the function nlvideo.predict.
"""

import glob
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import nlvideo.runtime.threads  # noqa: F401, before torch is loaded

# isort: split
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from nlvideo.config.compose import command_line_keys, run_command
from nlvideo.data.decoding.video import DecodeError, SlowVideo
from nlvideo.data.lists.folder_tree import left_out, videos_below
from nlvideo.data.shards.video_file import exists, how_to_name_members, reason_in_tar
from nlvideo.data.stores.addresses import is_address
from nlvideo.data.streams.stream_input import PROTOCOLS, STANDARD_INPUT, without_secrets
from nlvideo.prediction.pictures import clock, write_labelled, write_timeline
from nlvideo.prediction.predictor import Predictions, Predictor
from nlvideo.prediction.stream_command import check_stream, predict_stream
from nlvideo.prediction.timeline import Timeline
from nlvideo.runtime.cores import usable_cores
from nlvideo.runtime.errors import RunFailed, UserError, UserFileExistsError, UserFileNotFoundError
from nlvideo.runtime.progress import print_above_bars, progress_bar

# Options of Hydra that take the next argument as their value
HYDRA_WITH_VALUE = "--cfg -c --package -p --config-path -cp --config-name -cn --config-dir -cd --info -i".split()
OUTPUT_SUFFIXES = {"write": ".mp4", "timeline": ".png"}


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid text
    paths = take_paths(sys.argv)
    run_command(lambda composed: predict_videos(composed, paths), "predict")


def take_paths(argv: list[str]) -> list[str]:
    """Removes the arguments that name videos from `argv` and returns them."""
    paths: list[str] = []
    kept = argv[:1]
    for before, argument in zip(argv, argv[1:], strict=False):
        named = exists(argument) or is_address(argument) or argument == STANDARD_INPUT
        is_path = named or ("=" not in argument and not argument.startswith("-"))
        (paths if is_path and before not in HYDRA_WITH_VALUE else kept).append(argument)
    argv[:] = kept
    return paths


def expand_videos(paths: Sequence[str]) -> list[str]:
    """Returns the videos that paths, folders and glob patterns name, without duplicates.

    A folder stands for all videos below it or, if there are none, for the video whose frames it holds.

    Raises:
        UserError: a path that does not exist, a pattern or folder without videos, or no paths at all.
    """
    if not paths:
        raise UserError("no video given: nlvideo-predict VIDEO ... checkpoint=PATH")
    found = []
    for name in paths:
        if is_address(name):
            streams = ", ".join(f"{scheme}://" for scheme in PROTOCOLS)
            raise UserError(
                f"nlvideo-predict reads files of this machine and streams ({streams}): copy "
                f"{without_secrets(name)} first."
            )
        matching = [name] if exists(name) else sorted(glob.glob(name, recursive=True))
        if not matching:
            why = reason_in_tar(name)
            what = f"cannot be read{why}" if why else "matches no file" if glob.has_magic(name) else "does not exist"
            raise UserFileNotFoundError(f"{name} {what}.")
        for path in matching:
            if hint := how_to_name_members(path):
                raise UserError(hint)
            found += _videos_in(path) if os.path.isdir(path) else [path]
    return list(dict.fromkeys(found))


def _videos_in(folder: str) -> list[str]:
    below = sorted(map(str, videos_below(Path(folder))))
    if not below:
        # A folder of pictures is a video, but of its parent: videos_below() looks inside the folder given.
        if Path(folder).absolute() in videos_below(Path(folder).absolute().parent):
            return [folder]
        hints = filter(None, map(how_to_name_members, sorted(map(str, Path(folder).rglob("*.tar")))))
        raise UserError(" ".join([f"The folder {folder} holds no video and no frames.", *islice(hints, 1)]))
    if rest := left_out(Path(folder)):
        print(f"{folder}: {rest}", file=sys.stderr)
    return below


def predict_videos(composed: DictConfig, paths: Sequence[str]) -> None:
    """Prints the predictions of all videos; one that cannot be decoded does not stop the others.

    Raises:
        UserError: videos or settings that make no sense, before anything is computed.
        RunFailed: some videos could not be decoded.
    """
    given = command_line_keys(composed)
    stream = check_stream(composed, given, paths)
    if stream is not None:
        _check_settings(composed, given, 1)
        torch.set_num_threads(composed.num_threads or usable_cores())
        predict_stream(Predictor(composed.checkpoint, settings=given), stream, given.get("data.test.num_crops", 1))
        return
    videos = expand_videos(paths)
    _check_settings(composed, given, len(videos))
    torch.set_num_threads(composed.num_threads or usable_cores())
    predictor = Predictor(composed.checkpoint, settings=given)
    if composed.sliding:
        predictor.check_sliding()
    failures = []
    with progress_bar(videos, desc="predicting", unit="video", disable=len(videos) == 1) as bar:
        for path in bar:
            try:
                answer = answer_for(predictor, path, given.get("data.test.num_crops", 1))
            except (DecodeError, SlowVideo) as error:
                answer = {"video": path, "error": error.reason}
                failures.append(f"{path}: {error.reason}")
                if len(videos) > 1:
                    print_above_bars(failures[-1], sys.stderr)
            if composed.json:
                print_above_bars(json.dumps(answer))
            elif "error" not in answer:
                print_above_bars("\n".join(text_lines(answer)))
    if failures:
        several = f"{len(failures)} of {len(videos)} videos could not be decoded."
        raise RunFailed(failures[0] if len(videos) == 1 else several)


def _check_settings(composed: DictConfig, given: Mapping[str, Any], num_videos: int) -> None:
    if OmegaConf.is_missing(composed, "checkpoint"):
        raise UserError("checkpoint has no value; give it as checkpoint=PATH on the command line.")
    for key in OUTPUT_SUFFIXES:
        if composed[key] is not None:
            _check_output(key, Path(composed[key]), num_videos)
    idle = [key for key in ("data.test.num_clips", "data.test.clip_sampling") if composed.sliding and key in given]
    if idle:
        raise UserError(f"{idle[0]} has no effect with sliding=true; every_seconds sets the windows.")


def _check_output(key: str, file: Path, num_videos: int) -> None:
    suffix = OUTPUT_SUFFIXES[key]
    if num_videos > 1:
        raise UserError(f"{key}={file} is for one video; {num_videos} are given.")
    if file.suffix.lower() != suffix:
        raise UserError(f"{key}={file}: the name must end in {suffix}.")
    if file.exists():
        raise UserFileExistsError(f"{key}={file} exists; remove it or use another name.")
    if not file.parent.is_dir():
        raise UserFileNotFoundError(f"{key}={file}: the folder {file.parent} does not exist.")
    if not os.access(file.parent, os.W_OK):
        raise UserError(f"{key}={file}: the folder {file.parent} is not writable.")


def answer_for(predictor: Predictor, path: str, sliding_crops: int) -> dict[str, Any]:
    """Returns what json=true prints for a video, and writes the files asked for.

    Args:
        predictor: the network.
        path: of the video.
        sliding_crops: crops of each window, with sliding=true.
    """
    config, test = predictor.config, predictor.config.data.test
    timeline = predictor.slide(path, config.every_seconds, sliding_crops, progress=True) if config.sliding else None
    if timeline is None:
        scores, clips, crops = predictor.scores(path), test.num_clips, test.num_crops
    else:
        scores, clips, crops = predictor.pool_windows(timeline), len(timeline.starts), sliding_crops
    answer = {
        "video": path,
        "predictions": _as_dicts(predictor.best(scores, config.top)),
        "num_views": clips * crops,
        "protocol": _protocol(predictor, clips, crops),
    }
    if timeline is not None:
        answer |= _timeline_fields(predictor, timeline)
        if config.timeline is not None:
            edges = timeline.edges() / timeline.fps
            write_timeline(Path(config.timeline), edges, timeline.scores, predictor.classes, Path(path).name)
    if config.write is not None:
        per_label, firsts = (
            (scores[None], np.array([0])) if timeline is None else (timeline.scores, timeline.edges()[:-1])
        )
        labels = [predictor.best(row, config.top) for row in per_label]
        _write_video(Path(config.write), predictor, path, labels, firsts)
    return answer


def _protocol(predictor: Predictor, num_clips: int, num_crops: int) -> dict[str, Any]:
    """Returns how a video was scored."""
    config, test = predictor.config, predictor.config.data.test
    protocol = {
        "num_clips": num_clips,
        "num_crops": num_crops,
        "num_frames": config.data.num_frames,
        "frame_stride": config.data.frame_stride,
        "short_side": test.short_side,
        "crop_size": test.crop_size,
        "pooling": test.pooling,
        "activation": "sigmoid" if predictor.multi_label else "softmax",
    }
    return protocol if config.sliding else protocol | {"clip_sampling": test.clip_sampling}


def _timeline_fields(predictor: Predictor, timeline: Timeline) -> dict[str, Any]:
    """Returns each window with its predictions, and the segments with the same best class."""
    top = predictor.config.top
    ends = np.minimum(timeline.starts + timeline.window, timeline.num_frames)
    spans = np.stack([timeline.starts, ends], 1) / timeline.fps
    return {
        "seconds": round(timeline.num_frames / timeline.fps, 3),
        "timeline": [
            {"start": round(start, 3), "end": round(end, 3), "predictions": _as_dicts(predictor.best(row, top))}
            for (start, end), row in zip(spans.tolist(), timeline.scores, strict=True)
        ],
        "segments": [
            {"start": round(s.start, 3), "end": round(s.end, 3), "class": predictor.classes[s.best], "score": s.score}
            for s in timeline.stretches()
        ],
    }


def _write_video(
    file: Path, predictor: Predictor, path: str, labels: Sequence[Predictions], firsts: np.ndarray
) -> None:
    with predictor.open(path) as video, progress_bar(total=video.num_frames, desc="writing", unit="frame") as bar:
        write_labelled(file, video, labels, firsts, bar.update)
    print_above_bars(f"wrote {file}, without sound", sys.stderr)


def _as_dicts(predictions: Predictions) -> list[dict[str, Any]]:
    return [{"class": name, "score": score} for name, score in predictions]


def text_lines(answer: dict[str, Any]) -> Iterator[str]:
    """Yields the lines that are printed for a video without json=true."""
    protocol = answer["protocol"]
    what = "windows" if "timeline" in answer else "clips"
    views = f"{protocol['num_clips']} {what} x {protocol['num_crops']} crops"
    yield f"{answer['video']}  ({views}, {protocol['activation']})"
    for guess in answer["predictions"]:
        yield f"  {guess['score']:.3f}  {guess['class']}"
    for part in answer.get("segments", ()):
        yield f"  {clock(part['start']):>9} - {clock(part['end']):>9}  {part['score']:.3f}  {part['class']}"


if __name__ == "__main__":
    main()
