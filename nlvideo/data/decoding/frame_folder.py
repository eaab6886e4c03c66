"""Videos kept as folders of pictures, video/img_00001.jpg and so on."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from nlvideo.data.decoding.video import Crop, CropSource, DecodeError, Region, Video

SUFFIXES = (".jpg", ".jpeg", ".png")
DEEP_GREYS = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # Pillow's modes of 16-bit grey; "I" is what older ones make
DAMAGE = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)


def frame_number(name: str) -> int | None:
    """Returns the number of a frame, the last one in its file's name; None if it is no frame."""
    stem, suffix = os.path.splitext(name)
    digits = re.findall(r"\d+", stem)
    return int(digits[-1]) if suffix.lower() in SUFFIXES and digits and not name.startswith(".") else None


class FrameFolder(Video):
    """A folder whose pictures, in the order of the last number in their names, are the frames of a video.

    Colours are Pillow's: palettes and CMYK become RGB, an alpha channel is left out, and a picture with an EXIF
    orientation is turned. 16-bit grey is scaled to 8 bits.

    Raises:
        DecodeError: no pictures, two with one number, or a number missing between the first and the last.
    """

    def __init__(self, path: str | os.PathLike, fps: float = 30.0):
        self.path, self.fps = os.fspath(path), fps
        numbered: dict[int, str] = {}
        for name in self._files():
            number = frame_number(name)
            if number is not None and (other := numbered.setdefault(number, name)) != name:
                raise DecodeError(self.path, f"two frames have the number {number}: {other} and {name}")
        if not numbered:
            raise DecodeError(self.path, f"the folder holds no numbered frames ({', '.join(SUFFIXES)})")
        first, last = min(numbered), max(numbered)
        if last - first + 1 != len(numbered):
            gap = next(i for i in range(first, last) if i not in numbered)
            raise DecodeError(self.path, f"frame {gap} is missing between {first} and {last}")
        self._names = [numbered[i] for i in range(first, last + 1)]
        self.num_frames = len(self._names)
        self.height, self.width = self._pixels(0).shape[:2]

    def _files(self) -> list[str]:
        try:
            return sorted(os.listdir(self.path))
        except OSError as error:
            raise DecodeError(self.path, error.strerror or str(error)) from None

    def close(self) -> None:
        pass  # nothing is kept open

    def _pixels(self, index: int) -> np.ndarray:
        """Returns a frame (H, W, 3) uint8."""
        name = self._names[index]
        try:
            with Image.open(Path(self.path, name)) as picture:
                upright = ImageOps.exif_transpose(picture)
                if upright.mode in DEEP_GREYS:
                    grey = np.asarray(upright, np.int64).clip(0, 65535) >> 8  # as swscale does for video
                    return np.repeat(grey[..., None].astype(np.uint8), 3, 2)
                return np.array(upright.convert("RGB"))
        except DAMAGE as error:  # SyntaxError: a PNG with a damaged chunk
            raise DecodeError(self.path, f"{name}: {error}") from None

    def _read_parts(self, indices: np.ndarray, crop: Crop | Region) -> Iterator[CropSource]:
        rows, columns = crop.spans(self.height, self.width)
        for index in indices:
            pixels = self._pixels(index)
            if pixels.shape[:2] != (self.height, self.width):
                height, width = pixels.shape[:2]
                raise DecodeError(
                    self.path,
                    f"{self._names[index]} is {width}x{height}, the first frame {self.width}x{self.height}",
                )
            cut = np.ascontiguousarray(pixels[rows.first : rows.stop, columns.first : columns.stop])
            yield CropSource(torch.from_numpy(cut)[None], rows, columns)
