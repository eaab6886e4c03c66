"""What nlvideo-predict does with a stream: a line of JSON for each window, the newest frames first."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import torch
from omegaconf import DictConfig

from nlvideo.data.clips.sampling import clip_indices
from nlvideo.data.clips.views import VideoViews, crops_of
from nlvideo.data.streams.rolling_frames import StreamFrame
from nlvideo.data.streams.stream_input import StreamBroke, is_stream, problem_of_address, without_secrets
from nlvideo.data.streams.stream_reader import StreamReader
from nlvideo.prediction.immediate_stop import ImmediateStop, StoppedBySignal, leave
from nlvideo.prediction.predictor import Predictor, finite_scores
from nlvideo.runtime.errors import RunFailed, UserError

IDLE_KEYS = ("timeline", "write")


def check_stream(composed: DictConfig, given: Mapping[str, Any], paths: Sequence[str]) -> str | None:
    """Returns the stream among paths, None if there is none.

    Raises:
        UserError: other paths beside it, an address that nothing can be at, no sliding=true, or a key that has no
            effect.
    """
    streams = [path for path in paths if is_stream(path)]
    if not streams:
        if "reconnect_seconds" in given:
            raise UserError(
                "reconnect_seconds has no effect without a stream: rtsp://, udp://, http(s)://, -, a device."
            )
        return None
    name = without_secrets(streams[0])
    if len(paths) > 1:
        raise UserError(f"{name} is a stream, which is read alone; {len(paths)} videos are given.")
    if problem := problem_of_address(streams[0]):
        raise UserError(f"{name}: {problem}.")
    if not composed.sliding:
        raise UserError(
            f"{name} is a stream, which has no end: give sliding=true for the classes from window to window."
        )
    for key in IDLE_KEYS:
        if composed[key] is not None:
            raise UserError(f"{key}={composed[key]} has no effect with a stream, which has no end.")
    return streams[0]


def predict_stream(predictor: Predictor, address: str, num_crops: int) -> None:
    """Prints a line of JSON for one window of a stream after the other, until it ends.

    SIGINT and SIGTERM end the process, with 128 and their number.

    Raises:
        RunFailed: the stream cannot be opened, broke off and does not come back, or is shorter than a window.
    """
    data, name = predictor.config.data, without_secrets(address)
    predictor.check_sliding()
    seconds = predictor.config.reconnect_seconds
    note = lambda line: print(f"{name}: {line}", file=sys.stderr, flush=True)  # noqa: E731
    reader = StreamReader(address, data.test.short_side, predictor.window, data.clip_fps, seconds, note)
    stop, answers = ImmediateStop(), 0
    try:
        with stop, reader:
            for answer in _answers(predictor, reader, num_crops):
                with stop.held():
                    print(json.dumps({"video": name, **answer}), flush=True)
                answers += 1
            if not answers:
                short = f"it ended after {reader.num_frames} frames, before a window of {predictor.window} was full"
                raise StreamBroke(short)
    except StreamBroke as error:
        raise RunFailed(f"{name}: {error.reason}.") from None
    except BrokenPipeError:  # whoever read the lines has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except StoppedBySignal:
        pass
    note(f"{answers} answers from {reader.num_frames} frames, {reader.num_reconnects} reconnects")
    if stop.received:
        leave(128 + stop.received)


def _answers(predictor: Predictor, reader: StreamReader, num_crops: int) -> Iterator[dict[str, Any]]:
    config = predictor.config
    every = max(predictor.window // 2, 1) if config.every_seconds is None else float(config.every_seconds)
    last: StreamFrame | None = None
    damaged = 0
    while (frames := reader.frames.window(last, every)) is not None:
        (scores,) = predictor.window_scores(views_of_window(predictor, frames, num_crops))
        best = predictor.best(finite_scores(scores, without_secrets(reader.address)), config.top)
        lost, damaged = reader.num_damaged - damaged, reader.num_damaged
        yield {
            "start": round(frames[0].seconds, 3),
            "end": round(frames[-1].seconds, 3),
            "clock": datetime.fromtimestamp(frames[-1].arrival, timezone.utc).isoformat(timespec="milliseconds"),
            "latency": round(time.time() - frames[-1].arrival, 3),
            "predictions": [{"class": name, "score": score} for name, score in best],
            "dropped_frames": dropped_frames(last, frames, every),
            "damaged": lost,
            "reconnects": reader.num_reconnects,
        }
        last = frames[-1]


def views_of_window(predictor: Predictor, frames: Sequence[StreamFrame], num_crops: int) -> VideoViews:
    data = predictor.config.data
    wanted = clip_indices(0, len(frames), data.num_frames, data.frame_stride)
    pixels = torch.stack([frames[i].pixels for i in wanted.tolist()])
    crops, crop = crops_of((pixels.shape[1], pixels.shape[2]), data.test.crop_size, num_crops)
    return VideoViews(pixels, torch.arange(len(wanted))[None], crops, crop, 0, [])


def dropped_frames(last: StreamFrame | None, frames: Sequence[StreamFrame], every: int | float) -> int:
    """Returns how many frames between two windows no window takes because the network was slow.

    Args:
        last: frame of the window before.
        every: frames (int) or seconds (float) from window to window, which may leave gaps by itself.
    """
    if last is None:
        return frames[0].number
    hop = frames[-1].number - last.number
    seconds = frames[-1].seconds - last.seconds
    asked = every if isinstance(every, int) else every * hop / seconds if seconds else hop
    return max(0, min(frames[0].number - last.number - 1, int(hop - asked)))
