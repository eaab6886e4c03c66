"""Opens videos with the decoder asked for."""

import importlib
import os
from collections.abc import Callable

from nlvideo.data.decoding.frame_folder import FrameFolder
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.decoding.video import Video
from nlvideo.runtime.errors import UserError

# name: (module and class, the package it needs and how that is installed)
DECODERS = {
    "pyav": ("pyav_video.PyavVideo", "av", "pip install av"),
    "decord": ("decord_video.DecordVideo", "decord", "pip install decord"),
    "torchcodec": ("torchcodec_video.TorchcodecVideo", "torchcodec", "pip install nlvideo[torchcodec], and FFmpeg"),
}


def open_video(
    path: str | os.PathLike, decoder: str = "pyav", time_limit: float | None = None, frame_rate: float = 30.0
) -> Video:
    """Returns an open video: a file, read by one of DECODERS, or a folder of its frames as pictures.

    All decoders give the same frames for the same indices, or refuse the file. Their colours differ by rounding.

    Args:
        decoder: a key of DECODERS.
        time_limit: seconds until SlowVideo is raised, seen between packets where the decoder shows them.
        frame_rate: frames a second of a folder of pictures, which does not tell.

    Raises:
        DecodeError: no such file, no video, or one that the decoder does not read rightly.
        UserError: the decoder is not installed.
    """
    if os.path.isdir(path):
        return FrameFolder(path, frame_rate)
    if decoder == "pyav":
        return PyavVideo(path, time_limit)
    return load_decoder(decoder)(path, time_limit)


def load_decoder(name: str) -> Callable[..., Video]:
    """Returns the class of one of DECODERS.

    Raises:
        UserError: an unknown name, or a package that is missing or does not start, with its install line.
    """
    if name not in DECODERS:
        raise UserError(f"data.decoder={name!r} is unknown. Choose from: {', '.join(DECODERS)}.")
    place, package, install = DECODERS[name]
    try:
        importlib.import_module(package)
    except Exception as error:  # a package without the libraries it needs fails in its own ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"data.decoder={name} needs {package} ({install}), which does not start: {reason}") from error
    module, cls = place.split(".")
    return getattr(importlib.import_module(f"nlvideo.data.decoding.{module}"), cls)
