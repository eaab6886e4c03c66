"""Which frames and which part of them the test views of a video take: integers in, integers out."""

import numpy as np
import torch

from nlvideo.data.clips.sampling import clip_indices

CLIP_SAMPLINGS = ("uniform", "vnl", "slowfast", "mmaction", "mmaction_dense", "points")
NUM_CROPS = (1, 3)


def view_indices(
    sampling: str, num_clips: int, num_video_frames: int, num_frames: int, frame_stride: int, fps: float = 30.0
) -> np.ndarray:
    """Returns the frame indices (num_clips, num_frames) of the test clips, in the order of their starts.

    A checkpoint is scored as it was trained with one of CLIP_SAMPLINGS:
    - "uniform": starts spread evenly from the first to the last one that keeps the window of num_frames *
      frame_stride inside the video; a single clip is the centre one.
    - "vnl": the authors' grid, floor(j * frames / clips), whose last clips run over the end and loop.
    - "slowfast": PySlowFast's. A window of num_frames * frame_stride / 30 seconds at `fps`, starting at every
      1 / clips of the way to the last start, which is not reached; frames spread over the window from its first to
      its last, so that a stride of 8 becomes 9 (decoder.py); past the end the last frame is repeated.
    - "mmaction": mmaction2's SampleFrames. As "uniform" for a window that ends with its last frame taken,
      (num_frames - 1) * frame_stride + 1 (loading.py).
    - "mmaction_dense": mmaction2's DenseSampleFrames. Starts spread over a window of 64 frames, whatever the clip
      takes, rounded down (loading.py).
    - "points": clips around the moments 0, 1, ... num_clips - 1 of num_clips parts of the video, kept inside it; 25 of
      them are what Charades's localisation is scored at (Charades_v1_localize.m).
    The others loop over a video that is shorter than its window.
    """
    window = num_frames * frame_stride
    starts: np.ndarray
    if sampling == "slowfast":
        length = max(1.0, window / 30 * fps)
        starts = max(num_video_frames - length, 0.0) * np.arange(num_clips) / num_clips
        # In float32, as there, which moves some frames by one.
        spread = torch.stack([torch.linspace(start, start + length - 1, num_frames) for start in starts.tolist()])
        return spread.clamp(0, num_video_frames - 1).long().numpy()
    if sampling == "vnl":
        starts = np.arange(num_clips) * num_video_frames // num_clips
    elif sampling == "points":
        centred = np.arange(num_clips) * num_video_frames // num_clips - window // 2
        starts = np.clip(centred, 0, max(num_video_frames - window, 0))
    elif sampling == "uniform":
        last = max(num_video_frames - window, 0)
        starts = np.arange(num_clips) * last / (num_clips - 1) + 0.5 if num_clips > 1 else np.array([last // 2])
    elif sampling == "mmaction":
        last = max(num_video_frames - window + frame_stride - 1, 0)
        starts = np.round(np.arange(num_clips) * (last / (num_clips - 1))) if num_clips > 1 else np.array([last // 2])
    elif sampling == "mmaction_dense":
        starts = np.linspace(0, max(num_video_frames - 64, 0), num_clips, dtype=np.int64)
    else:
        raise ValueError(f"clip sampling {sampling!r} is unknown. Choose from: {', '.join(CLIP_SAMPLINGS)}.")
    return np.stack([clip_indices(int(start), num_video_frames, num_frames, frame_stride) for start in starts])


def spread_order(count: int) -> list[int]:
    """Returns 0 .. count - 1 with the middle first and then always the one farthest from all before it.

    So the first k of the test clips are spread over the video, whatever k is.
    """
    order = [count // 2]
    while len(order) < count:
        distances = [min(abs(i - taken) for taken in order) for i in range(count)]
        order.append(int(np.argmax(distances)))
    return order


def crop_offsets(num_crops: int, height: int, width: int, crop_size: int) -> list[tuple[int, int]]:
    """Returns (top, left) of the test crops: the centre, or start, centre and end of the longer side (Sec. 4.1)."""
    top, left = (height - crop_size) // 2, (width - crop_size) // 2
    if num_crops == 1:
        return [(top, left)]
    if num_crops == 3:
        if height > width:
            return [(0, left), (top, left), (height - crop_size, left)]
        return [(top, 0), (top, left), (top, width - crop_size)]
    raise ValueError(f"{num_crops} test crops are not defined. Choose from: {', '.join(map(str, NUM_CROPS))}.")
