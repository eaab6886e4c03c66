"""The default decoder: PyAV, decoding only what is needed."""

import os
from collections.abc import Iterator
from dataclasses import fields
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np

from nlvideo.data.decoding.conversion import converted
from nlvideo.data.decoding.decoded_index import DecodedIndex, hash_times
from nlvideo.data.decoding.file_input import FAILURES, FileInput, failure_reason, give_memory_back
from nlvideo.data.decoding.packets import (
    PROGRESSIVE,
    TIMED_FORMATS,
    best_stream,
    check_end,
    leave_out_others,
    packets_are_frames,
    scan_packets,
    times_are_frames,
)
from nlvideo.data.decoding.stored_shape import stored_shape
from nlvideo.data.decoding.video import Crop, CropSource, Deadline, DecodeError, Region, Video
from nlvideo.data.index.facts import VideoFacts

# In these codecs, skipping frames that no other refers to leaves all others unchanged. In AV1 the same setting loses
# wanted frames.
SKIPPABLE_CODECS = ("h264", "hevc", "mpeg4", "mpeg2video")
# Any doubt of the decoder's is an error; what such an error means, a plain decode decides.
STRICT = {"err_detect": "crccheck+explode"}
RECALLED = [field.name for field in fields(VideoFacts) if field.name not in ("stream", "times", "key_times")]
NO_TIMES = np.empty(0, np.int64)
SEEK_FRAMES = 4  # decoding fewer than these takes less time than seeking past them, 0.06 ms at 340x256
RATE_TOLERANCE = 0.1  # a frame rate that the header gives wrong by more than this is taken from the times


class PyavVideo(Video):
    """A video file, opened by FFmpeg through PyAV with one decoder thread: parallelism comes from workers.

    Frame i is the i-th that a plain decode of the best stream gives, from the first byte on and without frames that
    are marked as corrupt. Where the packets say which frame is which (`timed`), decoding starts at a keyframe and the
    time of each frame that comes is compared with the one wanted. Otherwise frames are counted from the first; their
    number takes one decode of the whole file, whose result the process keeps.

    Colours follow the file's matrix and range; where it names none, BT.601 and limited range, as in FFmpeg.
    Interlaced frames are given as they are.

    A `file` is read instead of the path, as FileInput says.

    Opening it reads the whole file, unless `facts` tell what that has told before: then its header. They must be of
    this very file; of another one, frames whose times differ are noticed, and nothing else.

    Attributes:
        timed: frames are found by their presentation times; otherwise they are counted from the first.
        reordered, open_gops: of timed frames: some are stored in another order than they are presented in; some are
            presented before the keyframe that they are stored after.
        codec: its name in FFmpeg.
        time_base: seconds per unit of the frames' times.
        orientation: how stored frames are made upright.
        interlaced: the stream says that its frames consist of two fields.
        pixel_aspect: width over height of a pixel as it is meant to be seen.
        bit_depth: bits per colour.
        num_keyframes, largest_gap: keyframes, and the largest number of frames from one to the next or to the end.

    Raises:
        DecodeError: the file is missing, is no video, ends early, or cannot be decoded to its end where that is
            needed to count its frames.
        SlowVideo: opening it took longer than `time_limit` seconds.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        time_limit: float | None = None,
        facts: VideoFacts | None = None,
        file: BinaryIO | None = None,
    ):
        self._file = FileInput(path, file)
        self.path = self._file.path
        self._deadline = Deadline(self.path, time_limit)
        self._container: Any = None
        self._stream: Any = None
        self._place = None if facts is None else facts.stream
        self._unread = facts is not None  # FFmpeg knows of the file what its header says
        try:
            self._open(strict=True)
            if facts is None:
                self._read_index()
            else:
                self._recall(facts)
        except FAILURES as error:
            self.close()
            raise DecodeError(self.path, failure_reason(error)) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None
            give_memory_back()

    def _open(self, strict: bool) -> None:
        """Opens the file anew: the next packet is its first."""
        num_read = 1
        while num_read:
            if self._container is not None:
                self._container.close()
            self._container = self._file.open()
            num_read = 0
            if self._place is None:
                self._place, num_read = best_stream(self._container)
        if self._place is None or self._place < 0:
            raise DecodeError(self.path, "no video stream")
        self._stream = self._container.streams[self._place]
        if self._stream.type != "video":  # as facts of something else may have it
            raise DecodeError(self.path, f"stream {self._place} is no video")
        self._stream.thread_type = "NONE"
        leave_out_others(self._container, self._stream)
        if self._stream.codec_context is None:
            raise DecodeError(self.path, "there is no decoder for its video stream")
        self._strict = strict
        if strict:
            self._stream.codec_context.options = STRICT

    def _read_index(self) -> None:
        packets = scan_packets(self._container, self._stream, self._deadline)
        if not packets.times:
            raise DecodeError(self.path, "the video stream holds no frames")
        stream, context = self._stream, self._stream.codec_context
        formats = set(self._container.format.name.split(","))
        with self._file.bytes() as file:
            check_end(packets, formats, stream, self.path, file)
        self.codec = context.codec.canonical_name
        self.time_base = stream.time_base
        self.bit_depth = max((part.bits for part in context.format.components), default=8) if context.format else 8
        self.interlaced = context.field_order not in PROGRESSIVE
        self.pixel_aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
        self._times = np.array([] if None in packets.times else sorted(packets.times), np.int64)
        self._key_times = np.array([] if None in packets.key_times else sorted(packets.key_times), np.int64)
        self.timed = times_are_frames(packets, formats, stream)
        if self.timed or packets_are_frames(packets, formats):
            self.num_frames, self.num_keyframes = len(packets.times), len(packets.key_places)
            self.largest_gap = int(max(np.diff([*packets.key_places, len(packets.times)]), default=len(packets.times)))
            span = int(self._times[-1] - self._times[0]) if self.timed else 0
            shape = stored_shape(self._container, stream, self._file, self._deadline)
            self.orientation, (self.height, self.width) = shape.orientation, shape.orientation.size(*shape[:2])
        else:
            span = self._take(self._decoded())
            searchable = bool(formats & TIMED_FORMATS) and len(self._key_times) > 0
            self.timed = searchable and self._decoded().times == hash_times(self._times)
        self.fps = self._rate(span)
        self.reordered = self.timed and packets.reordered
        self.open_gops = self.timed and packets.open_gops
        if min(self.height, self.width) < 1:
            raise DecodeError(self.path, f"the video stream says its frames are {self.width}x{self.height}")

    def _recall(self, facts: VideoFacts) -> None:
        for name in RECALLED:
            setattr(self, name, getattr(facts, name))
        self._times, self._key_times = facts.times, facts.key_times

    @property
    def facts(self) -> VideoFacts:
        """What opens this file again without reading all of it."""
        assert self._place is not None
        times, key_times = (self._times, self._key_times) if self.timed else (NO_TIMES, NO_TIMES)
        plain = {name: getattr(self, name) for name in RECALLED}
        return VideoFacts(stream=self._place, times=times, key_times=key_times, **plain)

    def _take(self, decoded: DecodedIndex) -> int:
        """Takes over what a decode has told; returns the time from the first frame to the last."""
        if not decoded.num_frames:
            raise DecodeError(self.path, "the video stream holds no frames")
        self.num_frames, self.num_keyframes = decoded.num_frames, decoded.num_keyframes
        self.largest_gap, self.orientation = decoded.largest_gap, decoded.orientation
        self.height, self.width = decoded.orientation.size(decoded.height, decoded.width)
        return decoded.span

    def _rate(self, span: int) -> float:
        said = float(self._stream.average_rate or 0)
        measured = (self.num_frames - 1) / float(span * self.time_base) if span else 0.0
        if not said or (measured and abs(said / measured - 1) > RATE_TOLERANCE):
            return measured or 30.0
        return said

    def _read_parts(self, indices: np.ndarray, crop: Crop | Region) -> Iterator[CropSource]:
        try:
            yield from converted(self.frames(indices), self.orientation, crop)
        except FAILURES as error:  # of the conversion; damaged frames can have colours that there is no way from
            raise DecodeError(self.path, f"a frame cannot be converted to RGB: {failure_reason(error)}") from None

    def frames(self, indices: np.ndarray) -> Iterator[av.VideoFrame]:
        """Yields the wanted frames as they are stored.

        Raises:
            DecodeError, SlowVideo: as `read`.
        """
        taken = 0
        if self.timed:
            try:
                for frame in self._frames_by_time(self._times[indices]):
                    yield frame
                    taken += 1
                return
            except (*FAILURES, _UnexpectedFrame):
                # Whether that is damage or a stream that the decoder need not like, a plain decode decides.
                decoded = self._decoded()
                if decoded.times != hash_times(self._times):
                    raise DecodeError(
                        self.path,
                        f"at frame {indices[taken]}: a decode from the first byte gives {decoded.num_frames} frames "
                        f"where the packets hold {self.num_frames}",
                    ) from None
        yield from self._frames_by_count(indices[taken:])

    def _frames_by_time(self, times: np.ndarray) -> Iterator[av.VideoFrame]:
        """Yields the frames of these presentation times, decoding from a keyframe on, and where many frames lie
        between one wanted and the keyframe before the next, from that one anew.

        Raises:
            _UnexpectedFrame: one that is corrupt, or another than the next of these.
        """
        keyframes = self._key_times[np.maximum(np.searchsorted(self._key_times, times, "right") - 1, 0)]
        between = np.searchsorted(self._times, keyframes[1:]) - np.searchsorted(self._times, times[:-1]) - 1
        for part in np.split(times, np.flatnonzero(between >= SEEK_FRAMES) + 1):
            yield from self._frames_from_keyframe(part)

    def _frames_from_keyframe(self, times: np.ndarray) -> Iterator[av.VideoFrame]:
        """Yields the frames of these presentation times, decoding from the keyframe before the first on."""
        expected, wanted = times.tolist(), set(times.tolist())
        taken, latest = 0, None
        for frames in self._decoded_until(wanted, self._packets_from(expected[0])):
            for frame in frames:
                if frame.pts is None or (latest is not None and frame.pts <= latest):
                    raise _UnexpectedFrame
                latest = frame.pts
                if frame.pts not in wanted:
                    continue
                if frame.is_corrupt or taken == len(expected) or frame.pts != expected[taken]:
                    raise _UnexpectedFrame
                taken += 1
                yield frame
            if taken == len(expected):
                return
        raise _UnexpectedFrame

    def _decoded_until(self, wanted: set[int], packets: Iterator[av.Packet]) -> Iterator[list[av.VideoFrame]]:
        """Yields what the decoder gives for packets, up to the last of those with the `wanted` frames.

        Frames that it then still holds back, to put them in order, are asked for: without that, it would decode some
        packets more.
        """
        missing, skippable = len(wanted), self.codec in SKIPPABLE_CODECS
        for packet in packets:
            context = self._stream.codec_context  # the first packet may open the file anew
            self._deadline.check()
            if packet.is_corrupt:
                raise _UnexpectedFrame
            is_wanted = packet.pts in wanted
            if skippable:
                context.skip_frame = "DEFAULT" if is_wanted or packet.size == 0 else "NONREF"
            yield packet.decode()
            missing -= is_wanted
            if not missing:
                yield context.decode(None)
                return

    def _packets_from(self, time: int) -> Iterator[av.Packet]:
        """Yields packets from the last keyframe on whose own presentation time is at or before `time`.

        A seek to `time` itself can land on the keyframe of an open GOP, whose leading B-frames are then lost; and a
        seek goes by decoding times where GOPs are short, so what it found is looked at.
        """
        if not self._strict:
            self._open(strict=True)
        for keyframe in self._key_times[self._key_times <= time][::-1].tolist():
            first, packets = self._packets_at(keyframe)
            if first.pts is not None and first.pts <= time:
                break
        else:
            raise _UnexpectedFrame
        yield first
        # Frames shown before that keyframe need others before it; nothing needs them.
        yield from (packet for packet in packets if packet.pts is None or packet.pts >= first.pts)

    def _packets_at(self, keyframe: int) -> tuple[av.Packet, Iterator[av.Packet]]:
        """Seeks to the presentation time of a keyframe and returns the packet found there and those after it.

        MP4 is sought by decoding times, which may lead to the keyframe before. Anything else says that the header has
        no index of the keyframes: then FFmpeg finds only those that it has come by.
        """
        if self._unread:
            place = int(np.searchsorted(self._key_times, keyframe))
            try:
                self._container.seek(keyframe, stream=self._stream)
                packets = self._container.demux(self._stream)
                first = next(packets)
                if first.pts in self._key_times[max(place - 1, 0) :]:
                    return first, packets
            except FAILURES:
                pass
            self._open(strict=True)
            for _ in self._container.demux(self._stream):
                self._deadline.check()
            self._unread = False
        self._container.seek(keyframe, stream=self._stream)
        packets = self._container.demux(self._stream)
        return next(packets), packets

    def _frames_by_count(self, indices: np.ndarray) -> Iterator[av.VideoFrame]:
        """Yields the wanted frames of a plain decode."""
        taken = 0
        for i, frame in enumerate(self._plain_decode()):
            if i == indices[taken]:
                yield frame
                taken += 1
                if taken == len(indices):
                    return
        raise DecodeError(self.path, f"frame {indices[taken]} of {self.num_frames} does not come")

    def _plain_decode(self) -> Iterator[av.VideoFrame]:
        """Yields the frames from the first byte on, without those that are marked as corrupt.

        A broadcast that is recorded from the middle of a group of pictures on starts with packets that are no use; a
        decoder may raise an error for those, and for no others.
        """
        self._open(strict=False)
        packets, count = self._container.demux(self._stream), 0
        key_seen = bool(TIMED_FORMATS & set(self._container.format.name.split(",")))
        while True:
            self._deadline.check()
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                key_seen = key_seen or packet.is_keyframe
                frames = packet.decode()
            except FAILURES as error:
                if key_seen or not isinstance(error, av.error.InvalidDataError):
                    raise DecodeError(self.path, f"at frame {count}: {failure_reason(error)}") from None
                continue
            for frame in frames:
                if not frame.is_corrupt:
                    count += 1
                    yield frame

    def _decoded(self) -> DecodedIndex:
        return self._file.decoded(self._plain_decode)


class _UnexpectedFrame(Exception):
    """The decoder gave another frame than the next one wanted, or none."""
