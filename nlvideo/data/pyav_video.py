"""From a video file and frame indices to uint8 frames, decoding only what is needed.

F frames, H height, W width; colours are RGB.
"""

import os
from collections.abc import Sequence

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# For these codecs a frame that nothing refers to can be left out without changing any other frame. With AV1 the
# same setting loses wanted frames.
SKIPPABLE_CODECS = ("h264", "hevc", "mpeg4", "mpeg2video")


COUNTED_FORMATS = ("avi", "mpegts", "mpeg")


class DecodeError(RuntimeError):
    """A video, or the frames wanted of it, cannot be decoded. Has `path` and `reason`."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self):  # two arguments, so that workers can send it to the parent
        return DecodeError, (self.path, self.reason)


class Video:
    """An open video file; use it in a `with` statement.

    Attributes:
        num_frames: frames that the file holds, counted from its packets, not guessed from rate and duration.
        height, width: of a frame, in pixels.

    Raises:
        DecodeError: the file is missing, is no video, or its frames have no usable order.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        try:
            self._container = av.open(self.path, metadata_errors="ignore")
        except (av.FFmpegError, OSError) as error:
            raise DecodeError(self.path, _reason(error)) from None
        try:
            self._read_index()
        except (av.FFmpegError, OSError) as error:
            self.close()
            raise DecodeError(self.path, _reason(error)) from None
        except DecodeError:
            self.close()
            raise

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def _read_index(self) -> None:
        """Reads every packet's time, without decoding: index i is the frame with the i-th smallest one."""
        if not self._container.streams.video:
            raise DecodeError(self.path, "no video stream")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "NONE"  # workers are the parallelism
        self.height, self.width = self._stream.codec_context.height, self._stream.codec_context.width
        times, keyframes = [], []
        for packet in self._container.demux(self._stream):
            if packet.size == 0 or packet.is_discard:  # the flushing packet; frames cut off by an edit list
                continue
            times.append(packet.pts)
            if packet.is_keyframe:
                keyframes.append(packet.pts)
        if not times:
            raise DecodeError(self.path, "the video stream holds no frames")
        # AVI stores no presentation times, and the ones made up for it can be out of order; a seek in an MPEG stream
        # can land behind the keyframe asked for. There frames are counted from the first.
        names = self._container.format.name.split(",")
        counted = any(name in COUNTED_FORMATS for name in names) or None in times or len(set(times)) < len(times)
        self._timed = not counted
        if "avi" in names and self._stream.frames > len(times):
            raise DecodeError(self.path, f"the file ends after {len(times)} of {self._stream.frames} frames")
        self._times = np.sort(np.array(times, np.int64)) if self._timed else None
        self._keyframes = np.sort(np.array(keyframes, np.int64)) if self._timed else None
        self.num_frames = len(times)
        if min(self.height, self.width) < 1:
            raise DecodeError(self.path, f"the video stream says its frames are {self.width}x{self.height}")

    def read(
        self, indices: Sequence[int] | np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int] | None = None
    ) -> Tensor:
        """Returns frames (F, height, width, 3) uint8: resized to `size`, of which the part in `box` is kept.

        Resizing is bilinear with antialiasing.

        Args:
            indices: ascending frame indices without repetition, each below num_frames.
            size: (height, width) of the whole resized frame.
            box: (top, left, height, width) inside the resized frame; None for all of it.

        Raises:
            DecodeError: a wanted frame does not come or is damaged.
        """
        indices = np.asarray(indices)
        assert len(indices) and (np.diff(indices) > 0).all() and 0 <= indices[0] and indices[-1] < self.num_frames
        top, left, height, width = box or (0, 0, *size)
        out = torch.empty(len(indices), height, width, 3, dtype=torch.uint8)
        try:
            found = 0
            for frame in self._decode(indices):
                if frame.is_corrupt:
                    raise DecodeError(self.path, f"frame {indices[found]} is damaged")
                pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None]
                pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
                out[found] = pixels[0, :, top : top + height, left : left + width].permute(1, 2, 0)
                found += 1
        except (av.FFmpegError, OSError) as error:
            raise DecodeError(self.path, f"at frame {indices[found]}: {_reason(error)}") from None
        if found < len(indices):
            raise DecodeError(self.path, f"frame {indices[found]} of {self.num_frames} does not come")
        return out

    def _decode(self, indices: np.ndarray):
        """Yields the wanted av.VideoFrames in order."""
        if not self._timed:
            yield from self._decode_counted(indices)
            return
        wanted = self._times[indices].tolist()
        before = self._keyframes[self._keyframes <= wanted[0]]
        # A keyframe's own time at or before the first wanted one: a seek to the wanted time itself can land on
        # the keyframe of an open GOP, whose leading B-frames are then lost.
        self._container.seek(int(before[-1] if len(before) else self._times[0]), stream=self._stream)
        context, pending = self._stream.codec_context, set(wanted)
        skippable = context.codec.name in SKIPPABLE_CODECS
        for packet in self._container.demux(self._stream):
            if skippable:
                context.skip_frame = "DEFAULT" if packet.size == 0 or packet.pts in pending else "NONREF"
            for frame in packet.decode():
                if frame.pts in pending:
                    pending.remove(frame.pts)
                    yield frame
            if not pending:
                return

    def _decode_counted(self, indices: np.ndarray):
        self._container.seek(0, stream=self._stream)
        wanted, last = set(indices.tolist()), indices[-1]
        for i, frame in enumerate(self._container.decode(self._stream)):
            if i in wanted:
                yield frame
            if i >= last:
                return


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
