"""From decoded frames to upright RGB pixels, converting no more than the crop needs where that is exact."""

from collections.abc import Iterable, Iterator

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from nlvideo.data.decoding.orientation import Orientation
from nlvideo.data.decoding.video import Crop, CropSource, Region, Span

CROPPABLE = ("yuv420p", "yuvj420p")  # cropped before the conversion to RGB; other formats after it
RESIZE_CHUNK = 8  # frames that are resized together, which stay in the cache


def converted(frames: Iterable[av.VideoFrame], orientation: Orientation, crop: Crop | Region) -> Iterator[CropSource]:
    """Yields what a crop needs of each frame, upright and in RGB; what was yielded is overwritten by the next."""
    convert, place, waiting = Converter(orientation), None, 0
    for frame in frames:
        size = orientation.size(frame.height, frame.width)
        if place is None or size != place.size or waiting == RESIZE_CHUNK:
            if place is not None:
                yield place.part(waiting)
            if place is None or size != place.size:  # as a rule the first; a stream may change its size
                place = _Buffer(size, crop)
            waiting = 0
        convert(frame, place.rows, place.columns, place.pixels[waiting].numpy())
        waiting += 1
    if place is not None:
        yield place.part(waiting)


class _Buffer:
    """Room for the source pixels of some frames of one size."""

    def __init__(self, size: tuple[int, int], crop: Crop | Region):
        self.size = size
        self.rows, self.columns = crop.spans(*size)
        shape = (RESIZE_CHUNK, self.rows.stop - self.rows.first, self.columns.stop - self.columns.first, 3)
        self.pixels = torch.from_numpy(np.empty(shape, np.uint8))

    def part(self, count: int) -> CropSource:
        return CropSource(self.pixels[:count], self.rows, self.columns)


class Converter:
    """Turns the crop of each frame upright and into RGB; buffers and tables are kept between frames."""

    def __init__(self, orientation: Orientation):
        self.orientation = orientation
        self.swscale = VideoReformatter()
        self.cut: av.VideoFrame | None = None

    def __call__(self, frame: av.VideoFrame, rows: Span, columns: Span, out: np.ndarray) -> None:
        """Writes the crop of a frame to `out` (rows, columns, 3)."""
        height, width = out.shape[:2]
        # Cropping costs as much as converting a third of the frame. And where crop or frame have an odd size, swscale
        # derives the colours of the last pixels differently than in the whole frame.
        odd = height % 2 or width % 2 or frame.height % 2 or frame.width % 2
        if frame.format.name not in CROPPABLE or odd or 3 * height * width > frame.height * frame.width:
            pixels = self.orientation.apply(self._rgb(frame))
            out[:] = pixels[rows.first : rows.stop, columns.first : columns.stop]
            return
        cut = self.cut
        if cut is None or (cut.format.name, cut.height, cut.width) != (frame.format.name, height, width):
            cut = self.cut = av.VideoFrame(width, height, frame.format.name)
        cut.colorspace, cut.color_range = frame.colorspace, frame.color_range
        for i, (source, target) in enumerate(zip(frame.planes, cut.planes, strict=True)):
            half = 2 if i else 1
            plane = self.orientation.apply(_plane(source, frame.height // half, frame.width // half))
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
