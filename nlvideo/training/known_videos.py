"""What an index knows of the training videos before any of them is opened."""

import time
from typing import NamedTuple

import numpy as np

from nlvideo.build.data import build_cache, index_file
from nlvideo.config.schema import DataConfig
from nlvideo.data.decoding.excerpt import frames_taken
from nlvideo.data.index.video_index import VideoIndex
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.data.stores.addresses import is_address

MAX_LOOKED_AT = 10_000  # rows, spread over the list
MAX_SECONDS = 5.0
MAX_RATIO = 1.5  # of the highest frame rate to the lowest: more is worth a warning


class KnownVideos(NamedTuple):
    """Rows of a list whose videos an index knows."""

    taken: np.ndarray  # (known,) int64, frames that a clip can be made of
    fps: np.ndarray  # (known,) float64, of the clip's frames
    looked_at: int  # rows of the list, spread over it

    def line(self) -> str:
        """Returns how long the videos are and at which rates, for a plan."""
        seconds = self.taken / self.fps
        low, middle, high = np.quantile(seconds, (0, 0.5, 1))
        slow, fast = self.fps.min(), self.fps.max()
        rates = f"{slow:.4g}" if fast / slow < 1.001 else f"{slow:.4g} to {fast:.4g}"
        return (
            f"{len(self.taken)} of the {self.looked_at} training videos looked at are in the index: {low:.1f} to "
            f"{high:.1f} s, median {middle:.1f} s, at {rates} frames per second"
        )

    def mixed_rates(self) -> str | None:
        """Returns a warning if clips of the videos last differently long, None if they do not."""
        if not len(self.fps) or self.fps.max() / self.fps.min() <= MAX_RATIO:
            return None
        return (
            f"training videos have {self.fps.min():.4g} to {self.fps.max():.4g} frames per second, so clips of one "
            "length in frames last differently long: data.clip_fps takes frames by time"
        )


def known_videos(data: DataConfig, table: VideoTable) -> KnownVideos:
    """Returns what the index says of files of a table as they are now, of as many as MAX_SECONDS allow."""
    file, found, looked_at, cache = index_file(data), [], 0, build_cache(data)
    if file is not None:
        index, end = VideoIndex(file, grows=False), time.monotonic() + MAX_SECONDS
        for i in range(0, len(table), -(-len(table) // MAX_LOOKED_AT)) if index.count() else ():
            looked_at += 1
            path = table.path(i)
            state = index.state(cache.place(path) if is_address(path) else path)
            facts = index.find(state) if state is not None else None
            if facts is not None:
                found.append((frames_taken(facts.num_frames, facts.fps, table.part(i), data.clip_fps), facts.fps))
            if time.monotonic() > end:
                break
    taken, fps = (np.array(values) for values in zip(*found, strict=True)) if found else (np.empty(0), np.empty(0))
    return KnownVideos(taken, np.full(len(fps), data.clip_fps) if data.clip_fps else fps, looked_at)
