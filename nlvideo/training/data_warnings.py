"""What is said about the data before a run: nothing that stops it, much that people want to know."""

import time

from nlvideo.build.data import index_file, index_note
from nlvideo.config.schema import DataConfig
from nlvideo.data.decoding.opening import Opener
from nlvideo.data.decoding.video import DecodeError, SlowVideo
from nlvideo.data.index.video_index import VideoIndex
from nlvideo.data.lists.list_warnings import list_warnings
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.data.stores.addresses import is_address
from nlvideo.training.known_videos import MAX_SECONDS, KnownVideos

MAX_OPENED = 64  # videos that are opened to see how long they are


def data_warnings(data: DataConfig, train: VideoTable, val: VideoTable, known: KnownVideos) -> list[str]:
    """Returns one line for each thing about the lists and their videos that is probably not meant.

    Args:
        known: what the index says of the training videos.
    """
    found = list_warnings(train, val)
    found += filter(None, [index_note(data)])
    window = data.num_frames * data.frame_stride
    found += filter(None, [known.mixed_rates()])
    if len(known.taken) >= min(len(train), MAX_OPENED):
        short, looked_at = int((known.taken < window).sum()), len(known.taken)
    else:
        short, looked_at = count_short(data, train)
    if short:
        found.append(
            f"{short} of the {looked_at} training videos looked at are shorter than a clip's window of {window} frames "
            "and looped: data.num_frames, data.frame_stride or data.clip_fps make it shorter"
        )
    return found


def count_short(data: DataConfig, table: VideoTable) -> tuple[int, int]:
    """Returns how many of some videos, spread over the list, are shorter than a clip's window, and of how many."""
    # PyAV whatever the decoder: others start threads, which the workers that are forked later would lack.
    file = index_file(data)
    index = VideoIndex(file, grows=False) if file is not None else None
    opener = Opener("pyav", MAX_SECONDS, data.frame_rate, data.clip_fps, index)
    short = looked_at = 0
    end = time.monotonic() + MAX_SECONDS
    for i in range(0, len(table), -(-len(table) // MAX_OPENED)):
        if time.monotonic() > end:
            break
        if is_address(table.path(i)):  # it would be fetched first
            continue
        try:
            with opener(table.path(i), table.part(i)) as video:
                short += video.num_frames < data.num_frames * data.frame_stride
                looked_at += 1
        except (DecodeError, SlowVideo):  # training will name it
            continue
    return short, looked_at
