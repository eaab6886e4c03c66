"""Which frames the snippets of a video take, and the snippets from frames that come one after the other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SnippetPlan:
    """Snippets of so many frames, `stride` apart, that start every `step` frames from the first one on.

    Only whole snippets count: what is left at the end of a video is no snippet.

    Attributes:
        step: frames; of a step in seconds not always a whole number, and starts are rounded.
    """

    frames: int
    stride: int
    step: float

    @property
    def span(self) -> int:
        """Frames from the first one of a snippet to its last one, both included."""
        return (self.frames - 1) * self.stride + 1

    def start(self, number: int) -> int:
        return int(number * self.step + 0.5)

    def count(self, num_frames: int) -> int:
        """Returns how many snippets a video of so many frames has."""
        count = max(0, int((num_frames - self.span) / self.step) + 2)
        while count and self.start(count - 1) + self.span > num_frames:
            count -= 1
        return count

    def starts(self, num_frames: int) -> np.ndarray:
        """Returns the first frame of each snippet (snippets,) int64."""
        return np.array([self.start(i) for i in range(self.count(num_frames))], np.int64)

    def needed(self, num_frames: int) -> np.ndarray:
        """Returns the frames that any snippet takes, ascending, int64."""
        wanted, starts = np.zeros(num_frames, bool), self.starts(num_frames)
        for k in range(self.frames):
            wanted[starts + k * self.stride] = True
        return np.flatnonzero(wanted)


def snippets_of(frames: Iterable[tuple[int, Tensor]], plan: SnippetPlan) -> Iterator[Tensor]:
    """Yields snippets (T, H, W, 3) as soon as their last frame has come.

    Frames that several snippets take are held, not asked for again; no more are held than a snippet spans.

    Args:
        frames: number and content (H, W, 3) of frames in ascending order, all that the snippets need among them.
    """
    held: dict[int, Tensor] = {}
    number = 0
    for index, frame in frames:
        held[index] = frame
        while index >= plan.start(number) + plan.span - 1:
            first = plan.start(number)
            yield torch.stack([held[first + k * plan.stride] for k in range(plan.frames)])
            number += 1
            held = {i: kept for i, kept in held.items() if i >= plan.start(number)}
