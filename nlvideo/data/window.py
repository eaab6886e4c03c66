"""Which part of a source frame a crop window of the resized frame needs, and the resizing of that part alone.

F frames, H height, W width; colours are RGB.
"""

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

REACH = 32  # source pixels that may be taken in front of the window to start at a fitting one


class Span(NamedTuple):
    """One axis of a window: the source pixels first .. stop - 1 hold what `length` output pixels are made of.

    Resizing them by 1 / scale gives those output pixels after `skip` others.
    """

    first: int
    stop: int
    skip: int
    length: int
    scale: float  # source pixels to one output pixel
    whole: int  # output pixels of the whole axis if all of the source is taken, else 0


def span(offset: int, length: int, size: int, total: int) -> Span:
    """Returns what the output pixels offset .. offset + length - 1 of `size` need of the `total` source pixels.

    Output pixel k lies at (k + 1/2) * scale - 1/2 of the source, so a part that starts at `first` gives the same grid
    only if first / scale is whole. Of the even starts (colour planes have half the resolution) close to the window
    the one that comes nearest to this is taken; the rest, a small part of a pixel, is the error of this module.
    """
    scale = total / size
    if size <= length:
        return Span(0, total, 0, length, scale, size)
    wanted = offset * scale
    if wanted <= REACH:
        first = 0
    else:
        margin = max(1.0, scale)  # half the width of the antialiasing filter
        latest = int(wanted - margin)
        starts = range(max(0, latest - REACH) // 2 * 2, latest + 1, 2)
        first = min(starts, key=lambda start: abs(start / scale - round(start / scale)))
    stop = math.ceil((offset + length) * scale + max(1.0, scale)) + 1
    stop = min(total, stop + stop % 2)
    whole = size if (first, stop) == (0, total) else 0
    return Span(first, stop, offset - round(first / scale), length, scale, whole)


def resize_part(part: Tensor, rows: Span, columns: Span) -> Tensor:
    """Returns the window (F, rows.length, columns.length, 3) of a part of the source (F, H, W, 3), uint8.

    Bilinear with antialiasing, as the whole frame would be resized with
    `F.interpolate(..., mode="bilinear", antialias=True)`.
    """
    if rows.scale != 1 or columns.scale != 1:
        # F.interpolate rounds the size it makes down; the last digits of 1 / scale must not take a pixel from it
        how = {"scale_factor": ((1 + 1e-9) / rows.scale, (1 + 1e-9) / columns.scale)}
        if rows.whole and columns.whole:
            how = {"size": (rows.whole, columns.whole)}
        part = F.interpolate(part.permute(0, 3, 1, 2), mode="bilinear", antialias=True, **how).permute(0, 2, 3, 1)
    return part[:, rows.skip : rows.skip + rows.length, columns.skip : columns.skip + columns.length]
