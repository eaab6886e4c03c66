"""nlvideo-predict: the classes of videos, whole or from moment to moment.

Scores are nlvideo-evaluate's. A module called predict would hide the function nlvideo.predict, so this one is not.
"""

import glob
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from nlvideo.config.compose import command_line_keys, run_command
from nlvideo.data.decoding.video import DecodeError, SlowVideo
from nlvideo.data.lists.path_list import videos_below
from nlvideo.prediction.pictures import clock, write_labelled, write_timeline
from nlvideo.prediction.predictor import BLOCK_BYTES, Predictions, Predictor, Timeline, progress_bar, reduction
from nlvideo.runtime.errors import RunFailed, UserError, UserFileExistsError, UserFileNotFoundError

HYDRA_WITH_VALUE = "--cfg -c --package -p --config-path -cp --config-name -cn --config-dir -cd --info -i".split()
OUTPUTS = {"write": ".mp4", "timeline": ".png"}


def main() -> None:
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    paths = take_paths(sys.argv)
    run_command(lambda composed: run(composed, paths), "predict")


def take_paths(argv: list[str]) -> list[str]:
    """Returns the arguments that name videos, and removes them from `argv`."""
    paths, kept = [], argv[:1]
    for before, argument in zip(argv, argv[1:], strict=False):
        named = os.path.exists(argument) or ("=" not in argument and not argument.startswith("-"))
        (paths if named and before not in HYDRA_WITH_VALUE else kept).append(argument)
    argv[:] = kept
    return paths


def expand(paths: Sequence[str]) -> list[str]:
    """Returns the videos that paths, folders and globs name, each once.

    A folder stands for all videos below it, or, if there are none, for the video whose frames its pictures are.

    Raises:
        UserError: a path that does not exist, a glob or a folder without videos, or nothing.
    """
    if not paths:
        raise UserError("no video given: nlvideo-predict VIDEO ... checkpoint=PATH")
    found = []
    for name in paths:
        matching = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
        if not matching:
            raise UserFileNotFoundError(f"{name} {'matches no file' if glob.has_magic(name) else 'does not exist'}.")
        for path in matching:
            found += _videos_in(path) if os.path.isdir(path) else [path]
    return list(dict.fromkeys(found))


def _videos_in(folder: str) -> list[str]:
    below = sorted(map(str, videos_below(Path(folder))))
    if not below:
        # the parent's view of it: a folder that holds pictures is a video
        if Path(folder).absolute() in videos_below(Path(folder).absolute().parent):
            return [folder]
        raise UserError(f"The folder {folder} holds no video and no frames.")
    return below


def run(composed: DictConfig, paths: Sequence[str]) -> None:
    """Prints the predictions of all videos; one that cannot be decoded does not stop the others."""
    videos, given = expand(paths), command_line_keys(composed)
    if OmegaConf.is_missing(composed, "checkpoint"):
        raise UserError("checkpoint has no value; give it as checkpoint=PATH on the command line.")
    for key, suffix in OUTPUTS.items():
        if composed[key] is not None:
            check_output(key, Path(composed[key]), suffix, len(videos))
    idle = [key for key in ("data.test.num_clips", "data.test.clip_sampling") if composed.sliding and key in given]
    if idle:
        raise UserError(f"{idle[0]} has no effect with sliding=true; windows come every_seconds.")
    torch.set_num_threads(composed.num_threads or len(os.sched_getaffinity(0)))
    predictor = Predictor(composed.checkpoint, settings=given)
    if composed.sliding and predictor.config.data.test.pooling == "sum":
        raise UserError("data.test.pooling=sum: scores from moment to moment need mean or max with sliding=true.")
    failures = []
    with progress_bar(len(videos) > 1, videos, desc="predicting", unit="video") as bar:
        for path in bar:
            try:
                answer = answer_for(predictor, path, given.get("data.test.num_crops", 1))
            except (DecodeError, SlowVideo) as error:
                answer = {"video": path, "error": error.reason}
                failures.append(f"{path}: {error.reason}")
                if len(videos) > 1:
                    say(failures[-1], sys.stderr)
            if composed.json:
                say(json.dumps(answer), sys.stdout)
            elif "error" not in answer:
                say("\n".join(text_lines(answer)), sys.stdout)
    if failures:
        several = f"{len(failures)} of {len(videos)} videos could not be decoded."
        raise RunFailed(failures[0] if len(videos) == 1 else several)


def check_output(key: str, file: Path, suffix: str, num_videos: int) -> None:
    """Raises UserError or OSError if a file cannot be written as asked, before anything is computed."""
    if num_videos > 1:
        raise UserError(f"{key}={file} is for one video; {num_videos} are given.")
    if file.suffix.lower() != suffix:
        raise UserError(f"{key}={file}: the name must end in {suffix}.")
    if file.exists():
        raise UserFileExistsError(f"{key}={file} exists; remove it or give another name.")
    if not file.parent.is_dir():
        raise UserFileNotFoundError(f"{key}={file}: the folder {file.parent} does not exist.")


def answer_for(predictor: Predictor, path: str, sliding_crops: int) -> dict[str, Any]:
    """Returns what json=true prints of a video, and writes the files asked for."""
    config, test = predictor.config, predictor.config.data.test
    protocol = {
        "num_frames": config.data.num_frames,
        "frame_stride": config.data.frame_stride,
        "short_side": test.short_side,
        "crop_size": test.crop_size,
        "pooling": test.pooling,
        "activation": "sigmoid" if predictor.multi_label else "softmax",
    }
    answer: dict[str, Any] = {"video": path}
    if config.sliding:
        found = predictor.slide(path, config.every_seconds, sliding_crops, progress=True)
        crops, clips = sliding_crops, len(found.starts)
        scores, labels, firsts = reduction(config)(found.scores, 0), found.scores, found.edges()[:-1]
    else:
        crops, clips = test.num_crops, test.num_clips
        protocol["clip_sampling"] = test.clip_sampling
        scores = predictor.scores(path)
        labels, firsts = scores[None], np.array([0])
    answer |= {"predictions": _as_dicts(predictor.best(scores, config.top)), "num_views": clips * crops}
    answer["protocol"] = {"num_clips": clips, "num_crops": crops, **protocol}
    if config.sliding:
        answer |= timeline_of(predictor, found, config.top)
        if config.timeline is not None:
            edges = found.edges() / found.fps
            write_timeline(Path(config.timeline), edges, found.scores, predictor.classes, Path(path).name)
    if config.write is not None:
        texts = [predictor.best(row, config.top) for row in labels]
        with (
            predictor.open(path) as video,
            progress_bar(True, total=video.num_frames, desc="writing", unit="frame") as bar,
        ):
            write_labelled(Path(config.write), video, texts, firsts, BLOCK_BYTES, bar.update)
        say(f"{config.write} is written, without sound", sys.stderr)
    return answer


def timeline_of(predictor: Predictor, found: Timeline, top: int) -> dict[str, Any]:
    """Returns a timeline for json: every window with its predictions, and the stretches with one best class."""
    ends = np.minimum(found.starts + found.window, found.num_frames)
    spans = np.stack([found.starts, ends], 1) / found.fps
    return {
        "seconds": round(found.num_frames / found.fps, 3),
        "timeline": [
            {"start": round(start, 3), "end": round(end, 3), "predictions": _as_dicts(predictor.best(row, top))}
            for (start, end), row in zip(spans.tolist(), found.scores, strict=True)
        ],
        "segments": [
            {"start": round(s.start, 3), "end": round(s.end, 3), "class": predictor.classes[s.best], "score": s.score}
            for s in found.stretches()
        ],
    }


def _as_dicts(predictions: Predictions) -> list[dict[str, Any]]:
    return [{"class": name, "score": score} for name, score in predictions]


def text_lines(answer: dict[str, Any]) -> Iterator[str]:
    """Yields the lines that say an answer."""
    protocol = answer["protocol"]
    what = "windows" if "timeline" in answer else "clips"
    views = f"{protocol['num_clips']} {what} x {protocol['num_crops']} crops"
    yield f"{answer['video']}  ({views}, {protocol['activation']})"
    for guess in answer["predictions"]:
        yield f"  {guess['score']:.3f}  {guess['class']}"
    for part in answer.get("segments", ()):
        yield f"  {clock(part['start']):>9} - {clock(part['end']):>9}  {part['score']:.3f}  {part['class']}"


def say(text: str, file: TextIO) -> None:
    """Prints text; on a terminal above the bars."""
    if sys.stderr.isatty():
        tqdm.write(text, file=file)
    else:
        print(text, file=file, flush=True)


if __name__ == "__main__":
    main()
