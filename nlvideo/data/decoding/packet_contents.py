"""What is inside compressed packets: whether each holds exactly one frame that is shown."""

from collections.abc import Callable

# Every packet of these is one frame: they have no other kind (AV1: a temporal unit shows one frame).
ONE_EACH = {"av1", "cfhd", "dnxhd", "ffv1", "ffvhuff", "huffyuv", "magicyuv", "mjpeg", "png", "prores", "rawvideo"}
ONE_EACH |= {"utvideo", "v210", "v410"}
SMALL_PACKET = 128  # bytes: H.264 and HEVC packets without a picture hold parameters and messages alone
NOT_CODED = 9  # bytes: MPEG-4 frames that repeat the one before are smaller, no more than the first bits of a header
FRAME_START, B_FRAME = b"\0\0\1\xb6", 2  # MPEG-4 Part 2 (ISO 14496-2, 6.2.5)


def packet_test(codec: str, extradata: bytes | None) -> Callable[[memoryview], bool] | None:
    """Returns a test that is asked about a stream's packets in order: does this one hold exactly one shown frame?

    None where packets of the codec may hold none or several and only decoding tells.

    Args:
        codec: its name in FFmpeg.
        extradata: what the container stores for the decoder.
    """
    if codec in ONE_EACH:
        return lambda _packet: True
    if codec in ("h264", "hevc"):
        return NalUnits(extradata, hevc=codec == "hevc").shows_one
    tests: dict[str, Callable[[memoryview], bool]]
    tests = {"vp8": _vp8_shows_one, "vp9": _vp9_shows_one, "mpeg4": _Mpeg4Test()}
    return tests.get(codec)


def keyframe_test(codec: str, extradata: bytes | None) -> Callable[[memoryview], bool] | None:
    """Returns a test of packets that a container marks as keyframes, which is not always true.

    None where nothing is known of the codec.
    """
    if codec in ONE_EACH:
        return lambda _packet: True
    if codec in ("h264", "hevc"):
        return NalUnits(extradata, hevc=codec == "hevc").is_key
    tests: dict[str, Callable[[memoryview], bool]] = {
        "vp8": lambda packet: not packet[0] & 1,
        "vp9": lambda packet: not _vp9_flags(packet[0]) & 0b1100,
        "mpeg4": lambda packet: _mpeg4_type(bytes(packet)) == 0,
    }
    return tests.get(codec)


def _vp8_shows_one(packet: memoryview) -> bool:
    """RFC 6386, 9.1: bit 4 is show_frame; alternate references are not shown."""
    return bool(packet[0] & 16)


def _vp9_shows_one(packet: memoryview) -> bool:
    """VP9 bitstream specification, annex B (superframes) and 6.2 (show_existing_frame, show_frame)."""
    frames, marker = [packet[0]], packet[-1]
    if marker & 0xE0 == 0xC0:
        count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
        index = packet[-(2 + count * width) :]
        if len(index) == 2 + count * width and index[0] == marker:
            starts = [0]
            for i in range(count):
                starts.append(starts[-1] + int.from_bytes(index[1 + i * width : 1 + (i + 1) * width], "little"))
            if starts[-1] > len(packet):
                return False
            frames = [packet[start] for start in starts[:-1]]
    return sum(map(_vp9_shown, frames)) == 1


def _vp9_shown(first: int) -> bool:
    return bool(_vp9_flags(first) & 0b1010)


def _vp9_flags(first: int) -> int:
    """Returns a frame's first byte whose lower bits are show_existing_frame, frame type (0 is a keyframe), show_frame
    and one more. Before them are frame marker and profile of two bits each, of profile 3 three."""
    return first << 1 if first & 0x30 == 0x30 else first


class _Mpeg4Test:
    """One coded frame. B-frames right behind the first keyframe lack what they refer to and never come."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, packet: memoryview) -> bool:
        data = bytes(packet)
        self.count += 1
        lost = self.count == 2 and _mpeg4_type(data) == B_FRAME
        return len(data) >= NOT_CODED and data.count(FRAME_START) == 1 and not lost


def _mpeg4_type(data: bytes) -> int:
    """Returns the type of a packet's first frame: 0 intra, 1 predicted, 2 bidirectional, 3 sprite; -1 for none."""
    place = data.find(FRAME_START) + len(FRAME_START)
    return data[place] >> 6 if len(FRAME_START) <= place < len(data) else -1


class NalUnits:
    """H.264 or HEVC packets as MP4 and Matroska store them: units behind their length."""

    def __init__(self, extradata: bytes | None, hevc: bool):
        place = 21 if hevc else 4
        stored = extradata and len(extradata) > place and extradata[0] == 1
        self.width = (extradata[place] & 3) + 1 if extradata and stored else 0
        self.hevc = hevc

    def shows_one(self, packet: memoryview) -> bool:
        return len(packet) >= SMALL_PACKET or self._first_picture(packet) is not None

    def is_key(self, packet: memoryview) -> bool:
        """A picture that refers to no other: HEVC's types 16 to 23, H.264's 5, or 1 with an I slice."""
        unit = self._first_picture(packet)
        if unit is None:
            return False
        if self.hevc:
            return 16 <= (unit[0] >> 1 & 63) <= 23
        # H.264, 7.3.3: the slice header begins with two numbers in Exp-Golomb code, the first macroblock (0 is the bit
        # 1) and the type of the slice (2 and 7 are I: the bits 011 and 0001000).
        return unit[0] & 31 == 5 or unit[1] >> 4 == 0b1011 or unit[1] == 0b10001000

    def _first_picture(self, packet: memoryview) -> bytes | None:
        """Returns the first bytes of the first unit that holds a part of a picture."""
        start = 0
        while self.width and start + self.width + 1 < len(packet):
            unit = start + self.width
            kind = packet[unit] >> 1 & 63 if self.hevc else packet[unit] & 31
            if kind < 32 if self.hevc else 1 <= kind <= 5:
                return bytes(packet[unit : unit + 2])
            start = unit + int.from_bytes(packet[start:unit], "big")
        return None
