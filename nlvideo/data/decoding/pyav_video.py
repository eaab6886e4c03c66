"""The default decoder: PyAV, decoding only what is needed."""

import ctypes
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from nlvideo.data.decoding.mp4_rotation import may_turn
from nlvideo.data.decoding.video import Deadline, DecodeError, Span, Video

# In these codecs, skipping frames that no other refers to leaves all others unchanged. In AV1 the same setting loses
# wanted frames.
SKIPPABLE_CODECS = ("h264", "hevc", "mpeg4", "mpeg2video")
# AVI stores no presentation times, and those derived for it can be out of order; a seek in an MPEG stream can land
# after the requested keyframe. In these formats frames are counted from the first.
COUNTED_FORMATS = ("avi", "mpegts", "mpeg")
ROTATING_FORMATS = ("mov", "matroska")  # can carry a rotation; mov includes MP4
# What PyAV raises for corrupt files: IndexError for a packet of a stream that appears midway, ValueError for text.
FAILURES = (av.FFmpegError, OSError, IndexError, ValueError)
RESIZE_CHUNK = 8  # frames that are resized together
TRIM_EVERY = 200  # videos; trimming takes some milliseconds
CROPPABLE = ("yuv420p", "yuvj420p")  # cropped before the conversion to RGB; other formats after it


class PyavVideo(Video):
    """A video file, opened by FFmpeg through PyAV with one decoder thread: parallelism comes from workers.

    Colours follow the file's matrix and range; where it names none, BT.601 and limited range, as in FFmpeg.

    Attributes:
        timed: the frames have usable presentation times; otherwise they are counted from the first.
        codec: its name in FFmpeg.
        time_base: seconds per unit of the frames' times.
        turns: quarter turns, counter-clockwise, that make the stored frames upright.
        bit_depth: bits per colour.
        num_keyframes, largest_gap: keyframes, and the largest number of frames from one to the next or to the end.

    Raises:
        DecodeError: the file is missing, is no video, ends early, or its frames have no usable order.
        SlowVideo: opening it took longer than `time_limit` seconds.
    """

    def __init__(self, path: str | os.PathLike, time_limit: float | None = None):
        self.path = os.fspath(path)
        self._deadline = Deadline(self.path, time_limit)
        try:
            self._container = av.open(self.path, metadata_errors="ignore")
        except FAILURES as error:
            raise DecodeError(self.path, _reason(error)) from None
        try:
            self._read_index()
            self._read_size()
        except FAILURES as error:
            self.close()
            raise DecodeError(self.path, _reason(error)) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._container.close()
        _give_memory_back()

    def _read_index(self) -> None:
        """Reads every packet's time, without decoding: index i is the frame with the i-th smallest one."""
        if not self._container.streams.video:
            raise DecodeError(self.path, "no video stream")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "NONE"
        if self._stream.codec_context is None:
            raise DecodeError(self.path, "there is no decoder for its video stream")
        # Errors are reported, not concealed.
        self._stream.codec_context.options = {"err_detect": "crccheck+explode"}
        packets = self._scan_packets()
        if not packets.times:
            raise DecodeError(self.path, "the video stream holds no frames")
        self._check_end(len(packets.times) + packets.discarded, packets.end, packets.times)
        formats = self._container.format.name.split(",")
        if "avi" not in formats:
            packets.drop_leading()
        times, damaged = packets.times, packets.damaged
        counted = any(name in COUNTED_FORMATS for name in formats) or None in times or len(set(times)) < len(times)
        if counted and damaged and damaged[0] < len(times) - 1:  # the last one may be cut
            raise DecodeError(self.path, f"packet {damaged[0]} is corrupt, and without times the others do not count")
        self.timed = not counted
        self._times = np.sort(np.array(times if self.timed else [], np.int64))
        self._keyframes = np.sort(np.array(packets.keyframes if self.timed else [], np.int64))
        self.time_base = self._stream.time_base
        self.fps = float(self._stream.average_rate or 30)
        self.codec = self._stream.codec_context.codec.canonical_name
        self._stored, self._key_places = times, packets.key_places
        self.num_frames = len(times)
        self.num_keyframes = len(packets.key_places)
        self.largest_gap = max(np.diff([*packets.key_places, len(times)]), default=len(times))

    def _scan_packets(self) -> "_Packets":
        found = _Packets()
        for packet in self._container.demux(self._stream):
            self._deadline.check()
            if packet.size == 0:  # the flushing packet, or in AVI a frame that was dropped
                found.discarded += packet.dts is not None
                continue
            found.end = max(found.end, (packet.pts or 0) + (packet.duration or 0))
            if found.first is None:
                found.first = packet
            if packet.is_discard:  # frames cut off by an edit list
                found.discarded += 1
                continue
            if packet.is_corrupt:
                found.damaged.append(len(found.times))
            if packet.is_keyframe:
                found.keyframes.append(packet.pts)
                found.key_places.append(len(found.times))
            found.times.append(packet.pts)
        return found

    @property
    def reordered(self) -> bool:
        """Frames are stored in another order than they are presented in (B-frames)."""
        return self.timed and self._stored != sorted(self._stored)

    @property
    def open_gops(self) -> bool:
        """Some frames are presented before the keyframe that they are stored after."""
        if not self.timed:
            return False
        latest_key, stored = np.full(self.num_frames, self._stored[0]), np.array(self._stored)
        latest_key[self._key_places] = stored[self._key_places]
        return bool((stored < np.maximum.accumulate(latest_key)).any())

    def _check_end(self, num_packets: int, end: int, times: list[Any]) -> None:
        """Raises DecodeError for a truncated file, which FFmpeg reads to its end without complaint."""
        formats = self._container.format.name.split(",")
        promised = allowed = 0
        if "mov" in formats:
            promised = len(self._stream.index_entries)  # after edit lists, which the header's number is not
        elif "avi" in formats:
            promised, allowed = self._stream.frames, self._stream.frames // 50  # some programs count one frame too many
        if promised - allowed > num_packets:
            raise DecodeError(self.path, f"the file ends after {num_packets} of {promised} frames")
        said = self._stream.metadata.get("DURATION")  # Matroska as FFmpeg writes it: 00:00:10.033000000
        if said and None not in times:
            try:
                hours, minutes, seconds = (float(part) for part in said.split(":"))
            except ValueError:
                return
            time_base = float(self._stream.time_base or 0)
            said, found = 3600 * hours + 60 * minutes + seconds, end * time_base
            # The last frame may last as long as any other without saying so.
            longest = max(np.diff(np.sort(np.array(times))), default=0) * time_base
            if found < said - 1.5 * max(longest, 1 / float(self._stream.average_rate or 1)):
                raise DecodeError(self.path, f"the file ends after {found:.2f} of {said:.2f} seconds")

    def _read_size(self) -> None:
        context = self._stream.codec_context
        self.height, self.width, self.turns = context.height, context.width, 0
        formats = self._container.format.name.split(",")
        if any(name in ROTATING_FORMATS for name in formats) and ("mov" not in formats or may_turn(self.path)):
            turned = self._first_frame()  # only a decoded frame tells
            if turned is not None and turned.rotation % 90 == 0:
                self.turns = round(turned.rotation / 90) % 4  # counter-clockwise, as np.rot90
        if self.turns % 2:
            self.height, self.width = self.width, self.height
        self.bit_depth = max((part.bits for part in context.format.components), default=8) if context.format else 8
        if min(self.height, self.width) < 1:
            raise DecodeError(self.path, f"the video stream says its frames are {self.width}x{self.height}")

    def _first_frame(self) -> av.VideoFrame | None:
        """Returns any early frame; None if the first ones are corrupt, which reading them will report."""
        context = self._stream.codec_context
        try:
            for alone in (True, False):  # the first packet is a keyframe and mostly enough; an edit list may cut it off
                self._container.seek(0, stream=self._stream)
                for packet in self._container.demux(self._stream):
                    self._deadline.check()
                    frames = packet.decode()
                    if alone and packet.size:
                        frames += context.decode(None)
                    if frames or alone:
                        break
                context.flush_buffers()
                if frames:
                    return frames[0]
        except FAILURES:
            context.flush_buffers()
        return None

    def _read_parts(self, indices: np.ndarray, rows: Span, columns: Span) -> Iterator[Tensor]:
        shape = (rows.stop - rows.first, columns.stop - columns.first, 3)
        some = torch.from_numpy(np.empty((min(RESIZE_CHUNK, len(indices)), *shape), np.uint8))  # stays in the cache
        convert, filled = _Converter(self.turns, rows, columns), 0
        for frame in self.frames(indices):
            convert(frame, some[filled].numpy())
            filled += 1
            if filled == len(some):
                yield some
                filled = 0
        if filled:
            yield some[:filled]

    def frames(self, indices: np.ndarray) -> Iterator[av.VideoFrame]:
        """Yields the wanted frames as they are stored.

        Raises:
            DecodeError, SlowVideo: as `read`.
        """
        found, from_start = 0, False
        while found < len(indices):
            try:
                for frame in self._decode(indices[found:], from_start):
                    if frame.is_corrupt:
                        raise DecodeError(self.path, f"frame {indices[found]} is corrupt")
                    if {frame.height, frame.width} != {self.height, self.width}:
                        raise DecodeError(self.path, f"frame {indices[found]} has another size")
                    yield frame
                    found += 1
                if found < len(indices):
                    raise DecodeError(self.path, f"frame {indices[found]} of {self.num_frames} does not come")
            except (*FAILURES, DecodeError) as error:
                if from_start or not self.timed:
                    if isinstance(error, DecodeError):
                        raise
                    raise DecodeError(self.path, f"at frame {indices[found]}: {_reason(error)}") from None
                # Decoding from a keyframe can fail where nothing is corrupt; decoding from the start decides.
                from_start = True

    def _decode(self, indices: np.ndarray, from_start: bool = False) -> Iterator[av.VideoFrame]:
        """Yields the wanted frames in order."""
        if not self.timed:
            yield from self._decode_counted(indices)
            return
        pending = set(self._times[indices].tolist())
        context = self._stream.codec_context
        skippable = self.codec in SKIPPABLE_CODECS
        for packet in self._packets_from(int(self._times[0]) if from_start else min(pending)):
            self._deadline.check()
            if packet.is_corrupt:
                raise DecodeError(self.path, f"the packet with time {packet.pts} is corrupt")
            if skippable:
                context.skip_frame = "DEFAULT" if packet.size == 0 or packet.pts in pending else "NONREF"
            for frame in packet.decode():
                if frame.pts in pending:
                    pending.remove(frame.pts)
                    yield frame
            if not pending:
                return

    def _packets_from(self, time: int) -> Iterator[av.Packet]:
        """Yields packets from the last keyframe on whose own presentation time is at or before `time`.

        A seek to `time` itself can land on the keyframe of an open GOP, whose leading B-frames are then lost; and a
        seek goes by decoding times where GOPs are short, so what it found is looked at.
        """
        earlier = self._keyframes[self._keyframes <= time].tolist()
        for keyframe in [*reversed(earlier), int(self._times[0])]:
            self._container.seek(keyframe, stream=self._stream)
            packets = self._container.demux(self._stream)
            first = next(packets)
            if first.pts is not None and first.pts <= time:
                break
        yield first
        # Frames shown before that keyframe need others before it; nothing needs them.
        yield from (packet for packet in packets if packet.pts is None or first.pts is None or packet.pts >= first.pts)

    def _decode_counted(self, indices: np.ndarray) -> Iterator[av.VideoFrame]:
        self._container.seek(0, stream=self._stream)
        wanted, last = set(indices.tolist()), indices[-1]
        for i, frame in enumerate(self._container.decode(self._stream)):
            self._deadline.check()
            if i in wanted:
                yield frame
            if i >= last:
                return


@dataclass
class _Packets:
    """What the packets of a stream tell, in the order in which they are stored."""

    times: list[Any] = field(default_factory=list)  # presentation times of the frames; None where there is none
    keyframes: list[Any] = field(default_factory=list)  # those of keyframes
    key_places: list[int] = field(default_factory=list)  # indices of keyframes in `times`
    damaged: list[int] = field(default_factory=list)  # indices of corrupt packets
    discarded: int = 0
    end: int = 0  # the latest time at which a frame ends
    first: av.Packet | None = None

    def drop_leading(self) -> None:
        """Drops the frames of an open group of pictures that was cut: they need others that are gone."""
        first = self.first
        if first is None or not first.is_keyframe or None in (*self.times, first.pts) or min(self.times) >= first.pts:
            return
        kept = [i for i, time in enumerate(self.times) if time >= first.pts]
        self.key_places = [kept.index(place) for place in self.key_places]
        self.times = [self.times[i] for i in kept]


class _Converter:
    """Turns the crop of each frame upright and into RGB; buffers and tables are kept between frames."""

    def __init__(self, turns: int, rows: Span, columns: Span):
        self.turns, self.rows, self.columns = turns, rows, columns
        self.swscale = VideoReformatter()
        self.cut: av.VideoFrame | None = None

    def __call__(self, frame: av.VideoFrame, out: np.ndarray) -> None:
        """Writes the crop of a frame to `out` (rows, columns, 3)."""
        rows, columns = self.rows, self.columns
        height, width = out.shape[:2]
        # Cropping costs as much as converting a third of the frame. And where crop or frame have an odd size, swscale
        # derives the colours of the last pixels differently than in the whole frame.
        odd = height % 2 or width % 2 or frame.height % 2 or frame.width % 2
        if frame.format.name not in CROPPABLE or odd or 3 * height * width > frame.height * frame.width:
            pixels = np.rot90(self._rgb(frame), self.turns)
            out[:] = pixels[rows.first : rows.stop, columns.first : columns.stop]
            return
        cut = self.cut
        if cut is None or cut.format.name != frame.format.name:
            cut = self.cut = av.VideoFrame(width, height, frame.format.name)
        cut.colorspace, cut.color_range = frame.colorspace, frame.color_range
        for i, (source, target) in enumerate(zip(frame.planes, cut.planes, strict=True)):
            half = 2 if i else 1
            plane = np.rot90(_plane(source, frame.height // half, frame.width // half), self.turns)
            _plane(target, height // half, width // half)[:] = plane[
                rows.first // half : rows.stop // half, columns.first // half : columns.stop // half
            ]
        out[:] = self._rgb(cut)

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        rgb = self.swscale.reformat(frame, format="rgb24", src_color_range=frame.color_range, threads=1)
        return _plane(rgb.planes[0], frame.height, 3 * frame.width).reshape(frame.height, frame.width, 3)


def _plane(plane, height: int, width: int) -> np.ndarray:
    """Returns a view (height, width) of a plane, without the padding of its lines."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, :width]


def _give_memory_back() -> None:
    """Returns freed memory to the system now and then: FFmpeg's aligned buffers, of other sizes for every video, leave
    holes that glibc keeps, 10 kB and more per video, without end."""
    global _num_closed
    _num_closed += 1
    if _num_closed % TRIM_EVERY == 0 and _trim is not None:
        _trim(0)


_num_closed = 0
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
