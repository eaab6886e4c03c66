"""Which stream of a file is the video, and what its packets tell about its frames, without decoding."""

import io
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import av
import numpy as np
from av.stream import Disposition

from nlvideo.data.decoding.packet_contents import keyframe_test, packet_test
from nlvideo.data.decoding.video import Deadline, DecodeError

TIMED_FORMATS = {"mov", "matroska"}  # store when each frame is presented; mov includes MP4, matroska WebM
REORDERING_CODECS = ("h264", "hevc", "mpeg4")
PROGRESSIVE = (0, 1)  # of AVFieldOrder: unknown, progressive. Packets of interlaced video may hold half a frame.


def best_stream(container: av.container.InputContainer) -> tuple[int, int]:
    """Returns the index of the stream that is the video, and how many packets were read to know it.

    FFmpeg's best one, but never a cover picture, and a still only if nothing moves. -1 if there is none.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        return -1, 0
    best = container.streams.best("video")
    ranked = sorted(streams, key=lambda s: (s is not best, not s.disposition & Disposition.default, -_pixels(s)))
    if len(ranked) == 1:
        return ranked[0].index, 0
    counts, num_read = dict.fromkeys((s.index for s in ranked), 0), 0
    for packet in container.demux(ranked):
        num_read += 1
        counts[packet.stream_index] += packet.size > 0
        if min(counts.values()) > 1:
            break
    moving = [s for s in ranked if counts[s.index] > 1]
    return (moving or ranked)[0].index, num_read


def leave_out_others(container: Any, stream: Any) -> None:
    """Has FFmpeg skip what other streams hold, sound above all, where the format says how long it is."""
    timed = TIMED_FORMATS & set(container.format.name.split(","))
    if not timed or not hasattr(stream, "discard"):  # PyAV 17
        return
    for other in container.streams:
        if other.index != stream.index:
            other.discard = av.stream.Discard.all


def _pixels(stream: av.VideoStream) -> int:
    context = stream.codec_context
    return context.width * context.height if context is not None else 0


@dataclass
class Packets:
    """What the packets of a stream tell, in the order in which they are stored.

    Attributes:
        times: presentation times of the frames, None where there is none.
        key_places: indices in `times` of packets where decoding can start.
        key_times: presentation times of all keyframes, also of those that an edit list cuts off.
        cut_off: presentation times of frames that an edit list cuts off.
        num_empty: packets without content: AVI's dropped frames.
        end: the latest time at which a frame ends.
        starts_with_key: the first packet is a keyframe.
        one_each: every packet holds exactly one frame that is shown.
    """

    times: list[Any] = field(default_factory=list)
    key_places: list[int] = field(default_factory=list)
    key_times: list[Any] = field(default_factory=list)
    cut_off: list[Any] = field(default_factory=list)
    num_empty: int = 0
    end: int = 0
    starts_with_key: bool = False
    one_each: bool = True

    @property
    def reordered(self) -> bool:
        """Frames are stored in another order than they are presented in (B-frames)."""
        return any(later < earlier for earlier, later in zip(self.times, self.times[1:], strict=False))

    @property
    def open_gops(self) -> bool:
        """Some frames are presented before the keyframe that they are stored after. All must have times."""
        latest_key, times = np.full(len(self.times), self.times[0]), np.array(self.times)
        latest_key[self.key_places] = times[self.key_places]
        return bool((times < np.maximum.accumulate(latest_key)).any())


def scan_packets(container: av.container.InputContainer, stream: av.VideoStream, deadline: Deadline) -> Packets:
    """Reads all packets of a stream from here to the end."""
    found = Packets()
    coded = stream.codec_context.codec.canonical_name, stream.codec_context.extradata
    shows_one, is_key = packet_test(*coded), keyframe_test(*coded)
    found.one_each = shows_one is not None
    for packet in container.demux(stream):
        deadline.check()
        if packet.size == 0:  # the flushing packet, or in AVI a frame that was dropped
            found.num_empty += packet.dts is not None
            continue
        starts_here = packet.is_keyframe and is_key is not None and is_key(memoryview(packet))
        if not (found.times or found.cut_off):
            found.starts_with_key = starts_here
        if found.one_each and shows_one is not None:
            found.one_each = shows_one(memoryview(packet))
        found.end = max(found.end, (packet.pts or 0) + (packet.duration or 0))
        if starts_here:
            found.key_times.append(packet.pts)
        if packet.is_discard:  # frames cut off by an edit list
            found.cut_off.append(packet.pts)
            continue
        if starts_here:
            found.key_places.append(len(found.times))
        found.times.append(packet.pts)
    return found


def times_are_frames(packets: Packets, formats: set[str], stream: av.VideoStream) -> bool:
    """Returns whether frame i is surely the one whose packet has the i-th smallest presentation time."""
    times = [*packets.cut_off, *packets.times]
    if not (formats & TIMED_FORMATS and packets.one_each and packets.starts_with_key) or None in times:
        return False
    if len(set(times)) < len(times):
        return False
    # Frames presented before the first keyframe need others that are gone; some decoders give them nevertheless.
    if min(times) < packets.key_times[0]:
        return False
    context = stream.codec_context
    # A stream that reorders its frames and times that do not, or the other way around: one of the two is wrong.
    may_reorder = context.codec.canonical_name in REORDERING_CODECS
    must_reorder = may_reorder and context.reorder_depth > 0 and len(packets.times) > 2
    if (must_reorder and not packets.reordered) or (packets.reordered and not may_reorder):
        return False
    return context.field_order in PROGRESSIVE


def packets_are_frames(packets: Packets, formats: set[str]) -> bool:
    """Returns whether there surely are as many frames as packets with content, though their times tell no order."""
    return "avi" in formats and packets.one_each and packets.starts_with_key


def check_end(packets: Packets, formats: set[str], stream: av.VideoStream, path: str, file: BinaryIO) -> None:
    """Raises DecodeError for a file that was cut short, which FFmpeg reads to its end without complaint.

    Args:
        path: for the message.
        file: at its first byte.
    """
    count = len(packets.times) + len(packets.cut_off)
    promised = 0
    if "mov" in formats:
        promised = len(stream.index_entries)  # after edit lists, which the header's number is not
    elif "avi" in formats and _avi_is_cut(file):
        promised = stream.frames
    if promised > count + packets.num_empty:
        raise DecodeError(path, f"the file ends after {count} of {promised} frames")
    said = stream.metadata.get("DURATION")  # Matroska as FFmpeg writes it: 00:00:10.033000000
    if said and None not in packets.times:
        try:
            hours, minutes, seconds = (float(part) for part in said.split(":"))
        except ValueError:
            return
        time_base = float(stream.time_base or 0)
        expected, end = 3600 * hours + 60 * minutes + seconds, packets.end * time_base
        # The last frame may last as long as any other without saying so.
        longest = max(np.diff(np.sort(np.array(packets.times))), default=0) * time_base
        if end < expected - 1.5 * max(longest, 1 / float(stream.average_rate or 1)):
            raise DecodeError(path, f"the file ends after {end:.2f} of {expected:.2f} seconds")


def _avi_is_cut(file: BinaryIO) -> bool:
    """Returns whether an AVI file is shorter than its first chunk says. Its number of frames counts dropped ones."""
    header = file.read(8)
    return header[:4] == b"RIFF" and int.from_bytes(header[4:], "little") + 8 > file.seek(0, io.SEEK_END)
