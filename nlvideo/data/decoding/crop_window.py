"""Which part of a source frame a crop window of the resized frame needs, and the resizing of that part alone.

F frames, H height, W width; colours are RGB.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

TOLERANCE = 1 / 32  # of an output pixel: how far a window may lie from where it should


class Span(NamedTuple):
    """One axis of a window: the source pixels first .. stop - 1 hold what `length` output pixels are made of.

    They stand behind `skip` others when those source pixels are resized by size / total.
    """

    first: int
    stop: int
    skip: int
    length: int
    size: int  # output pixels of the whole axis
    total: int  # source pixels of the whole axis


def span(offset: int, length: int, size: int, total: int) -> Span:
    """Returns what the output pixels offset .. offset + length - 1 of `size` need of the `total` source pixels.

    Output pixel k lies at (k + 1/2) * scale - 1/2 of the source, so a part that starts at `first` gives the same grid
    only if first / scale is whole. Taken is the last start in front of the window for which it is to within TOLERANCE,
    and which is even, as colour planes have half the resolution. 0 always is.
    """
    scale = total / size
    margin = max(1.0, scale)  # half the width of the antialiasing filter
    stop = math.ceil((offset + length) * scale + margin) + 1
    latest = max(0, int(offset * scale - margin))
    first = next(s for s in range(latest // 2 * 2, -1, -2) if abs(s / scale - round(s / scale)) <= TOLERANCE)
    return Span(first, min(total, stop + stop % 2), offset - round(first / scale), length, size, total)


def resize_part(part: Tensor, rows: Span, columns: Span, out: Tensor) -> None:
    """Writes the window (F, rows.length, columns.length, 3) of a part of the source (F, H, W, 3) to `out`, uint8.

    Bilinear with antialiasing, as the whole frame would be resized with
    `F.interpolate(..., mode="bilinear", antialias=True)`.
    """
    spans = (rows, columns)
    made = [s.skip + s.length for s in spans]
    if any(s.size != s.total for s in spans):
        # What F.interpolate calls. Of size and scale it passes on one only, and a part needs both: its size is not
        # its number of pixels times the scale, rounded down.
        resize, scales = torch.ops.aten._upsample_bilinear2d_aa, [s.size / s.total for s in spans]
        if rows.skip == columns.skip == 0:
            resize.out(part.permute(0, 3, 1, 2), made, False, *scales, out=out.permute(0, 3, 1, 2))
            return
        part = resize(part.permute(0, 3, 1, 2), made, False, *scales).permute(0, 2, 3, 1)
    out.copy_(part[:, rows.skip : made[0], columns.skip : made[1]])
