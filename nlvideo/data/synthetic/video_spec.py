"""A synthetic video before it is drawn."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

FRAME_RATE = 25


class VideoSpec(NamedTuple):
    """A file, and what draws its frames (T, H, W, 3) uint8 from random numbers of the seed."""

    name: str
    seed: list[int]
    draw: Callable[[np.random.Generator], np.ndarray]
