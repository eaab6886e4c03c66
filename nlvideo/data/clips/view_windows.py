"""Views of windows that slide over a video of any length, a few windows in memory at a time.

T frames, H height, W width, C channels.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from nlvideo.data.clips.sampling import clip_indices, resized_size
from nlvideo.data.clips.views import VideoViews, crops_of
from nlvideo.data.decoding.video import Video


def window_views(
    video: Video,
    starts: np.ndarray,
    lengths: tuple[int, int],
    number: int,
    short_side: int,
    crop_size: int | None,
    num_crops: int,
) -> Iterator[VideoViews]:
    """Yields the views of consecutive windows, `number` windows at a time.

    The video is decoded once. Frames stay until no later window takes them, so as many are in memory as `number`
    windows take, twice, however long the video is.

    Args:
        starts: ascending first frames of the windows.
        lengths: num_frames and frame_stride of a clip.
        crop_size: of the square crops; None: the whole frame.
    """
    size = resized_size(video.height, video.width, short_side)
    crops, crop = crops_of(size, crop_size, num_crops)
    taken = np.zeros(video.num_frames, bool)
    for start in starts:
        taken[clip_indices(start, video.num_frames, *lengths)] = True
    frames = _numbered(video, np.flatnonzero(taken), size)
    held: dict[int, Tensor] = {}
    for first in range(0, len(starts), number):
        some = starts[first : first + number]
        wanted = np.stack([clip_indices(start, video.num_frames, *lengths) for start in some])
        unique, position = np.unique(wanted, return_inverse=True)
        while int(unique[-1]) not in held:
            index, frame = next(frames)
            held[index] = frame
        together = torch.stack([held[index] for index in unique.tolist()])
        yield VideoViews(together, torch.from_numpy(position.reshape(wanted.shape)), crops, crop, 0, [])
        following = starts[first + number : first + number + 1]
        held = {index: frame for index, frame in held.items() if index >= following.min(initial=video.num_frames)}


def _numbered(video: Video, indices: np.ndarray, size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
    """Yields each of these frames (H, W, C) of a video with its index."""
    done = 0
    for frames in video.stream(indices, size):
        yield from zip(indices[done : done + len(frames)].tolist(), frames.unbind(), strict=True)
        done += len(frames)
