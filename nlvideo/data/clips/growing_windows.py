"""Views of windows over frames that come one after the other, and nobody knows how many.

T frames, H height, W width, C channels.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from nlvideo.data.clips.sampling import clip_indices
from nlvideo.data.clips.views import VideoViews, crops_of


class GrowingWindows:
    """The windows and views that window_views gives for a video of known length.

    As many frames are held as `number` windows take.

    Args:
        frames: (H, W, C) uint8, resized.
        every: frames between the starts of windows; the last window ends with the last frame.
        lengths: num_frames and frame_stride of a clip.
        number: windows that are yielded together.
        crop_size: of the square crops; None: the whole frame.

    Attributes:
        starts: first frame of each window that was yielded.
        num_frames: that have come.
    """

    def __init__(
        self,
        frames: Iterable[Tensor],
        every: int,
        lengths: tuple[int, int],
        number: int,
        crop_size: int | None,
        num_crops: int,
    ):
        self._frames, self._every, self._lengths, self._number = frames, every, lengths, number
        self._crop_size, self._num_crops = crop_size, num_crops
        self._held: deque[Tensor] = deque()
        self.starts: list[int] = []
        self.num_frames = 0

    def __iter__(self) -> Iterator[VideoViews]:
        due, whole, window = 0, list[int](), self._lengths[0] * self._lengths[1]
        for frame in self._frames:
            self._held.append(frame)
            self.num_frames += 1
            if self.num_frames > due + window:  # only the last window ends with the last frame
                whole.append(due)
                due += self._every
            if len(whole) == self._number:
                yield self._views(whole)
                whole = []
            needed = max(min([*whole[:1], due, self.num_frames - window]), 0)
            while self.num_frames - len(self._held) < needed:
                self._held.popleft()
        yield self._views([*whole, max(self.num_frames - window, 0)])

    def _views(self, starts: list[int]) -> VideoViews:
        self.starts += starts
        wanted = np.stack([clip_indices(start, self.num_frames, *self._lengths) for start in starts])
        unique, position = np.unique(wanted, return_inverse=True)
        first = self.num_frames - len(self._held)
        frames = torch.stack([self._held[i - first] for i in unique.tolist()])
        crops, crop = crops_of((frames.shape[1], frames.shape[2]), self._crop_size, self._num_crops)
        return VideoViews(frames, torch.from_numpy(position.reshape(wanted.shape)), crops, crop, 0, [])
