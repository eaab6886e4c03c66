"""Frames one after the other, from a video or whatever else has them, resized as a recipe says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nlvideo.data.clips.sampling import resized_size
from nlvideo.data.decoding.video import Crop, Video, resize_part
from nlvideo.features.presets import Recipe
from nlvideo.features.snippets import SnippetPlan


@dataclass(frozen=True)
class FrameSource:
    """Frames of one kind of picture, in order.

    Attributes:
        name: for messages.
        num_frames: how many there are.
        fps: frames per second; frame i is shown from i / fps seconds on.
        height, width: of the first frame.
        read: from ascending frame numbers (int64) to these frames (H, W, 3) uint8, RGB, each of which may be
            overwritten by those that follow.
    """

    name: str
    num_frames: int
    fps: float
    height: int
    width: int
    read: Callable[[np.ndarray], Iterator[Tensor]]


def source_of(video: Video) -> FrameSource:
    return FrameSource(video.path, video.num_frames, video.fps, video.height, video.width, video.whole_frames)


def plan_for(recipe: Recipe, fps: float) -> SnippetPlan:
    """Returns the snippets of a video with this rate; they are at least a frame apart, and so are their frames, by a
    whole number of frames."""
    stride = max(1, int(recipe.stride * fps + 0.5)) if recipe.stride_by_time else int(recipe.stride)
    step = recipe.frames * stride if recipe.step is None else recipe.step
    return SnippetPlan(recipe.frames, stride, max(1.0, step * fps) if recipe.step_by_time else step)


def size_for(recipe: Recipe, source: FrameSource) -> tuple[int, int]:
    """Returns (height, width) that frames are resized to."""
    return recipe.size or resized_size(source.height, source.width, recipe.short_side)


def needed_frames(source: FrameSource, plan: SnippetPlan, recipe: Recipe) -> Iterator[tuple[int, Tensor]]:
    """Yields number and content (H, W, 3) uint8 of each frame that a snippet takes, resized."""
    indices, size = plan.needed(source.num_frames), size_for(recipe, source)
    for index, frame in zip(indices.tolist(), source.read(indices), strict=True):
        yield index, resized(frame, size, recipe.lanczos)


def resized(frame: Tensor, size: tuple[int, int], lanczos: bool) -> Tensor:
    """Returns a copy of a frame (H, W, 3) uint8 in another size (height, width)."""
    out = torch.empty(*size, 3, dtype=torch.uint8)
    if lanczos:
        picture = Image.fromarray(frame.numpy()).resize((size[1], size[0]), Image.Resampling.LANCZOS)
        out.numpy()[:] = np.asarray(picture)
        return out
    rows, columns = Crop(size, 0, 0, *size).spans(*frame.shape[:2])
    resize_part(frame[None], rows, columns, out[None])
    return out
