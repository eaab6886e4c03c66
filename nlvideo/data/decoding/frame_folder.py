"""Videos kept as folders of pictures, video/img_00001.jpg and so on."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from nlvideo.data.decoding.video import DecodeError, Span, Video

SUFFIXES = (".jpg", ".jpeg", ".png")


class FrameFolder(Video):
    """A folder whose pictures, in the order of the last number in their names, are the frames of a video.

    Raises:
        DecodeError: no pictures, two with one number, or a number missing between the first and the last.
    """

    def __init__(self, path: str | os.PathLike, fps: float = 30.0):
        self.path, self.fps = os.fspath(path), fps
        numbered: dict[int, str] = {}
        for file in self._files():
            stem, suffix = os.path.splitext(file.name)
            digits = re.findall(r"\d+", stem)
            if suffix.lower() in SUFFIXES and digits and not file.name.startswith("."):
                if numbered.setdefault(int(digits[-1]), file.name) != file.name:
                    raise DecodeError(self.path, f"two frames have the number {int(digits[-1])}")
        if not numbered:
            raise DecodeError(self.path, f"the folder holds no numbered frames ({', '.join(SUFFIXES)})")
        first, last = min(numbered), max(numbered)
        if last - first + 1 != len(numbered):
            gap = next(i for i in range(first, last) if i not in numbered)
            raise DecodeError(self.path, f"frame {gap} is missing between {first} and {last}")
        self._names = [numbered[i] for i in range(first, last + 1)]
        self.num_frames = len(self._names)
        with self._open(0) as picture:
            self.width, self.height = picture.size

    def _files(self) -> list[os.DirEntry]:
        try:
            return list(os.scandir(self.path))
        except OSError as error:
            raise DecodeError(self.path, error.strerror or str(error)) from None

    def close(self) -> None:
        pass  # nothing is kept open

    def _open(self, index: int) -> Image.Image:
        try:
            return Image.open(Path(self.path, self._names[index]))
        except (OSError, SyntaxError, UnidentifiedImageError) as error:  # SyntaxError: a PNG with a damaged chunk
            raise DecodeError(self.path, f"{self._names[index]}: {error}") from None

    def _read_parts(self, indices: np.ndarray, rows: Span, columns: Span) -> Iterator[Tensor]:
        for index in indices:
            with self._open(index) as picture:
                if picture.size != (self.width, self.height):
                    raise DecodeError(self.path, f"{self._names[index]} has another size than the first frame")
                try:
                    cut = picture.convert("RGB").crop((columns.first, rows.first, columns.stop, rows.stop))
                except (OSError, SyntaxError) as error:
                    raise DecodeError(self.path, f"{self._names[index]}: {error}") from None
            yield torch.from_numpy(np.array(cut))[None]
