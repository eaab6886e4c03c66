"""Windows that slide over videos of any length: the frames they take, and how many of them are in memory."""

import weakref

import numpy as np
import pytest
import torch

from nlvideo.data.clips.sampling import clip_indices
from nlvideo.data.clips.view_windows import window_views
from nlvideo.data.clips.views import views_of
from nlvideo.data.decoding.conversion import RESIZE_CHUNK
from nlvideo.data.decoding.video import CropSource, Video
from nlvideo.prediction.pictures import write_labelled
from nlvideo.prediction.timeline import window_starts

LENGTHS = 8, 2  # num_frames, frame_stride


class NumberedVideo(Video):
    """A video whose frame i is all of i, which knows how many of the frames that it has given are in memory."""

    height, width, fps, path = 16, 24, 25.0, "numbered"

    def __init__(self, num_frames):
        self.num_frames, self.given, self.alive, self.most = num_frames, [], 0, 0

    def close(self):
        pass

    def _read_parts(self, indices, crop):
        rows, columns = crop.spans(self.height, self.width)
        for part in np.split(indices, range(RESIZE_CHUNK, len(indices), RESIZE_CHUNK)):
            self.given += part.tolist()
            pixels = np.empty((len(part), self.height, self.width, 3), np.uint8)
            pixels[:] = part[:, None, None, None] % 256
            yield CropSource(torch.from_numpy(pixels), rows, columns)

    def stream(self, indices, size):
        for frames in super().stream(indices, size):
            kept = frames.numpy().copy()
            weakref.finalize(kept, self._freed, len(kept))
            self.alive += len(kept)
            self.most = max(self.most, self.alive)
            yield torch.from_numpy(kept)

    def _freed(self, count):
        self.alive -= count


def views_in_steps(video, every, number, num_crops=3, crop_size=16):
    starts = window_starts(video.num_frames, LENGTHS[0] * LENGTHS[1], every)
    return starts, window_views(video, starts, LENGTHS, number, 16, crop_size, num_crops)


@pytest.mark.parametrize("num_frames", [100, 16, 5])  # the shortest is looped
@pytest.mark.parametrize("every", [1, 8, 21, 200])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_windows_in_steps_are_those_taken_together(num_frames, every, number):
    video = NumberedVideo(num_frames)
    starts, steps = views_in_steps(video, every, number)
    found = [clips for views in steps for clips in views.chunks(number * 3)]
    assert video.given == sorted(set(video.given))  # one pass
    wanted = np.stack([clip_indices(start, num_frames, *LENGTHS) for start in starts])
    expected = list(views_of(video, wanted, 16, 16, 3).chunks(number * 3))
    assert len(found) == len(expected) == -(-len(starts) // number)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(("every", "number"), [(8, 2), (1, 1), (50, 3)])
def test_a_longer_video_takes_no_more_memory(every, number):
    most = []
    for num_frames in (400, 1600):
        video = NumberedVideo(num_frames)
        for _ in views_in_steps(video, every, number)[1]:
            pass
        most.append(video.most)
    assert most[0] == most[1] <= LENGTHS[0] * LENGTHS[1] + number * every + 2 * RESIZE_CHUNK


def test_a_longer_video_takes_no_more_memory_to_be_written(tmp_path):
    video = NumberedVideo(200)
    write_labelled(tmp_path / "a.mp4", video, [[("a", 1.0)]], np.array([0]), lambda count: None)
    assert video.given == list(range(200)) and video.most <= 2 * RESIZE_CHUNK
