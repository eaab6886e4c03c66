"""How much a file of weights may ask for. Whoever wrote it chose how many frames are read, and how large they are held.

No network that someone trained comes near these bounds. What the user asks for is not bounded here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nlvideo.models.resnet import DEPTHS
from nlvideo.runtime.errors import UserError
from nlvideo.weights.function_keys import function_values

NUM_CLIPS, SHORT_SIDE = "data.test.num_clips", "data.test.short_side"
SIDE, COUNT = (1, 2048), (1, 4096)
BOUNDS = {
    "data.num_frames": COUNT,
    "data.frame_stride": COUNT,
    "data.clip_fps": (0.001, 1000),
    "data.crop_size": SIDE,
    "data.scale_range": SIDE,
    SHORT_SIDE: SIDE,
    "data.test.crop_size": SIDE,
    NUM_CLIPS: (1, 1000),
}
CLIP_PIXELS, VIDEO_PIXELS = 2**28, 2**32  # 4096 frames of 256x256; 64 clips of 256 frames of 512x512
CONFIG_DEPTH = 8  # levels; block.places.r50 is on the fourth
CONFIG_LENGTH = 2**14  # characters; R101 with all its blocks has a tenth of that


def check_stored(config: Mapping[str, Any]) -> None:
    """Raises UserError unless the values of a stored config, plain dicts, are within the bounds."""
    if _is_deeper(config, CONFIG_DEPTH):
        raise UserError("its config is nested too deeply.")
    check_bounds(function_values(config, (NUM_CLIPS,)))


def check_bounds(values: Mapping[str, Any]) -> None:
    """Raises UserError, in one short line, unless {full key: value} is within the bounds.

    Values of other types than a config's are no matter here: none of them becomes a config.
    """
    for key, (low, high) in BOUNDS.items():
        value = values.get(key)
        for number in value if isinstance(value, list | tuple) else [value]:
            if not _is_within(number, low, high):
                raise UserError(f"{key}={_cut(number)} is outside {low} to {high}, which no network needs.")
    _check_pixels(values)
    _check_blocks(values)


def _is_deeper(value: Any, levels: int) -> bool:
    """Returns whether containers are nested deeper than so many levels."""
    if not isinstance(value, Mapping | list | tuple):
        return False
    inner = value.values() if isinstance(value, Mapping) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in inner)


def _is_within(number: Any, low: float, high: float) -> bool:
    try:
        return low <= float(number) <= high  # of text too, of which a config makes numbers
    except OverflowError:
        return False
    except (TypeError, ValueError):
        return True


def _check_pixels(values: Mapping[str, Any]) -> None:
    frames, clips, side = values.get("data.num_frames"), values.get(NUM_CLIPS, 1), values.get(SHORT_SIDE)
    try:
        pixels = int(frames) * int(side) ** 2  # type: ignore[arg-type]
        too_many = pixels > CLIP_PIXELS or pixels * int(clips) > VIDEO_PIXELS
    except (TypeError, ValueError):
        return
    if too_many:
        raise UserError(
            f"data.num_frames={frames} of {SHORT_SIDE}={side}, {clips} times, are more pixels than any network sees."
        )


def _check_blocks(values: Mapping[str, Any]) -> None:
    most = max(map(sum, DEPTHS.values()))
    places = values.get("block.places")
    for depth, names in places.items() if isinstance(places, Mapping) else ():
        if isinstance(names, list | tuple) and len(names) > most:
            raise UserError(f"block.places.{_cut(depth)} has {len(names)} places; no network has over {most}.")
    length = len(repr(values))
    if length > CONFIG_LENGTH:
        raise UserError(f"its config has {length} characters, which no network needs.")


def _cut(value: Any) -> str:
    """Returns a value of any length as a few characters."""
    text = str(value) if not isinstance(value, int) or abs(value) < 10**20 else "1e20 or more"
    return text if len(text) <= 20 else f"{text[:20]}..."


def distinct_names(names: Sequence[Any]) -> list[str]:
    """Returns the class names of a file of others as text.

    Raises:
        UserError: two are the same, so that an answer would not say which it is.
    """
    found = [str(name) for name in names]
    for name, count in Counter(found).items():
        if count > 1:
            raise UserError(f"the class {_cut(name)!r} is named {count} times.")
    return found
