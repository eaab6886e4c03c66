"""Video files for the tests, and what a plain decode gives of them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import wraps

import av
import pytest
from av.video.reformatter import VideoReformatter

from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.data.index.facts import facts_of_row
from nlvideo.data.shards.video_file import file_status


def in_own_thread(write: Callable) -> Callable:
    """Returns a function that encodes in a thread of its own.

    libsvtav1, run by root, gives the thread that opens it real-time priority, and all other processes wait for that.
    """

    @wraps(write)
    def run(*arguments, **options):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(write, *arguments, **options).result()

    return run


@in_own_thread
def write_video(path, frames, codec="libx264", pix_fmt="yuv420p", rotation=None, times=None, **options):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        stream.options = {"threads": "1"} | options
        if rotation is not None:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV cannot write rotations")
            stream.set_display_rotation(rotation)
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def remux(source, target, change=lambda packet, number: True, **options):
    """Copies the packets of a file; `change(packet, number)` alters one, or drops it by returning False."""
    with av.open(str(source)) as before, av.open(str(target), "w", **options) as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for number, packet in enumerate(before.demux(video=0)):
            if packet.size and change(packet, number) is not False:
                packet.stream = stream
                after.mux(packet)
    return target


def facts_of(path):
    """What an index knows of a file that it has seen, after a comparison with what was put into it."""
    with PyavVideo(path) as video:
        row = video.facts.as_row()
    facts = facts_of_row(row, file_status(path).size)
    with PyavVideo(path, facts=facts) as again:
        assert facts.as_row() == again.facts.as_row() == row
        for name in [name for name in vars(video) if not name.startswith("_")]:
            assert getattr(again, name) == getattr(video, name), name
    return facts


def plain_decode(path):
    """The frames of a file from its first byte on, converted whole, without those that FFmpeg marks as corrupt."""
    swscale, frames = VideoReformatter(), []
    with av.open(str(path), metadata_errors="ignore") as container:
        try:
            stream = container.streams.best("video")
            stream.thread_type = "NONE"  # which conceal damage in another way
            for frame in container.decode(stream):
                if not frame.is_corrupt:
                    rgb = swscale.reformat(frame, format="rgb24", src_color_range=frame.color_range, threads=1)
                    frames.append(rgb.to_ndarray())
        except av.error.InvalidDataError:
            pass
    return frames
