"""Which parts of a frame are looked at, and their order."""

from typing import NamedTuple

import torch
from torch import Tensor

from nlvideo.data.clips.view_sampling import crop_offsets

Crops = int | str  # one of config.extract_checks.FEATURE_CROPS


class Place(NamedTuple):
    """A part of a resized frame, or of its mirror image."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool = False


def crop_places(crops: Crops, height: int, width: int, crop_size: int | None) -> list[Place]:
    """Returns the crops of a frame of this size, in the order of the features' second axis.

    1 is the centre. 3 are the beginning, the centre and the end of the longer side. 5 are left-top, right-top, centre,
    left-bottom and right-bottom. 10 are these five and then the same places of the mirrored frame, as RTFM's features
    have them; torchvision's ten_crop has the centre last of each five.

    Args:
        crops: one of FEATURE_CROPS; "full" is the whole frame.
        height, width: of the resized frame.
        crop_size: of the square crops; None with "full".
    """
    if crop_size is None:
        return [Place(0, 0, height, width)]
    size = (crop_size, crop_size)
    if crops in (1, 3):
        return [Place(*offset, *size) for offset in crop_offsets(int(crops), height, width, crop_size)]
    bottom, right = height - crop_size, width - crop_size
    five = [(0, 0), (0, right), (bottom // 2, right // 2), (bottom, 0), (bottom, right)]
    return [Place(*offset, *size, mirrored) for mirrored in (False, True)[: int(crops) // 5] for offset in five]


def cut_places(frames: Tensor, places: list[Place]) -> list[Tensor]:
    """Returns each place (T, height, width, 3) of the frames (T, H, W, 3)."""
    mirror = frames.flip(2) if any(place.mirrored for place in places) else frames
    return [
        (mirror if place.mirrored else frames)[
            :, place.top : place.top + place.height, place.left : place.left + place.width
        ]
        for place in places
    ]


def stack_views(views: list[Tensor]) -> Tensor:
    """Returns views (T, H, W, 3) as clips (N, 3, T, H, W), channels last in memory."""
    return torch.stack(views).permute(0, 4, 1, 2, 3)
