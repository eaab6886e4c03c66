"""Cutting the views of a video: on the CPU with NumPy, elsewhere on the device of the frames."""

import numpy as np
import pytest
import torch

from nlvideo.data.clips.view_sampling import crop_offsets, view_indices
from nlvideo.data.clips.views import VideoViews
from nlvideo.runtime.torch_private import FakeTensorMode


def views_of_noise(num_frames: int, height: int, width: int, num_crops: int, crop_size: int | None) -> VideoViews:
    """Three clips of four frames of a video of noise; clips share frames."""
    wanted = view_indices("uniform", 3, num_frames, 4, 2)
    unique, position = np.unique(wanted, return_inverse=True)
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(256, size=(len(unique), height, width, 3), dtype=np.uint8))
    size = (height, width) if crop_size is None else (crop_size, crop_size)
    crops = [(0, 0)] if crop_size is None else crop_offsets(num_crops, height, width, crop_size)
    return VideoViews(frames, torch.from_numpy(position.reshape(wanted.shape)), crops, size, 0, [])


def chunks_by_device_path(views: VideoViews, views_per_step: int, monkeypatch) -> list[torch.Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(VideoViews, "_cut_on_cpu", VideoViews._cut_on_device)
        return list(views.chunks(views_per_step))


@pytest.mark.parametrize("num_frames", [12, 3])  # the shorter video repeats its frames
@pytest.mark.parametrize("size", [(20, 36), (36, 20), (21, 33)])
@pytest.mark.parametrize(("num_crops", "crop_size"), [(3, 16), (3, 20), (1, 16), (1, None)])
def test_views_cut_on_a_device_are_those_of_numpy(num_frames, size, num_crops, crop_size, monkeypatch):
    views = views_of_noise(num_frames, *size, num_crops, crop_size)
    on_cpu, on_device = list(views.chunks(2)), chunks_by_device_path(views, 2, monkeypatch)
    assert [len(clips) for clips in on_device] == [2] * (views.num_views // 2) + [1] * (views.num_views % 2)
    for cut, clips in zip(on_cpu, on_device, strict=True):
        assert clips.dtype == torch.uint8 and torch.equal(clips, cut) and clips.stride() == cut.stride()
        assert clips.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.cat(on_cpu).float().std() > 50  # not one frame everywhere


def test_views_on_a_gpu_are_cut_without_waiting_for_it(monkeypatch):
    """A fake tensor has no values: whatever asks for one raises, as it would wait for a real GPU."""
    views = views_of_noise(12, 20, 36, 3, 16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        frames = torch.empty(views.frames.shape, dtype=torch.uint8, device="cuda")
        frame_index = torch.empty(views.frame_index.shape, dtype=torch.int64, device="cuda")
        chunks = list(views._replace(frames=frames, frame_index=frame_index).chunks(4))
    assert [tuple(clips.shape) for clips in chunks] == [(4, 3, 4, 16, 16), (4, 3, 4, 16, 16), (1, 3, 4, 16, 16)]
    assert all(clips.device.type == "cuda" and clips.dtype == torch.uint8 for clips in chunks)
    assert all(clips.is_contiguous(memory_format=torch.channels_last_3d) for clips in chunks)
