"""Mixup and CutMix of neighbouring clips.

Clips are mixed in pairs of the order in which the whole run draws them, which neither ranks nor micro-batches part.
Where each video gives several clips, the first one of a video is mixed with the first one of the next, and so on.
What a pair draws is a function of the seed and its place in that order. N clips, K classes.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

STREAM = (0, 0, 0, 1)  # behind seed and pair: longer than what seeds samples, orders and dropout, so none is the same


class Mixture(NamedTuple):
    """How two clips are mixed; either gives the other what it takes from it."""

    kept: float  # share of each target that stays
    box: tuple[int, int, int, int] | None  # top, bottom, left, right of what is exchanged; None: clips are blended


class PairMixer:
    """Mixes clips in pairs.

    Args:
        mixup, cutmix: the parameter of the Beta distribution of the shares, 0 for never; where both are given, each
            pair takes one of them with probability 1/2.
        clips_per_video: clips in a row that are of the same video and not mixed with each other.
    """

    def __init__(self, mixup: float, cutmix: float, seed: int, clips_per_video: int = 1):
        self.mixup, self.cutmix, self.seed, self.clips_per_video = mixup, cutmix, seed, clips_per_video

    def draw(self, pair: int, height: int, width: int) -> Mixture:
        """Returns how the clips of a pair are mixed: with one clip a video, 2 * pair and 2 * pair + 1 of the run."""
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, pair], spawn_key=STREAM))
        if not (self.mixup and self.cutmix):
            cut = not self.mixup
        else:
            cut = rng.random() < 0.5
        alpha = self.cutmix if cut else self.mixup
        kept = rng.beta(alpha, alpha)
        if not cut:
            return Mixture(kept, None)
        # a box of this share around a random centre, as far as it lies in the frame (CutMix, Eq. 2)
        half = 0.5 * np.sqrt(1 - kept)
        y, x = rng.random(2)
        top, bottom = (round(height * float(np.clip(y + d, 0, 1))) for d in (-half, half))
        left, right = (round(width * float(np.clip(x + d, 0, 1))) for d in (-half, half))
        return Mixture(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))

    def __call__(self, clips: Tensor, targets: Tensor, places: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Returns the mixed clips and the shares of the classes (N, K) float32.

        Args:
            clips: (N, C, T, H, W) of a floating dtype, those of an even number of videos.
            targets: (N,) int64, or (N, K) bool.
            places: (N,) of the clips in the order of the run.
        """
        num = self.clips_per_video
        of_two = places.view(-1, 2 * num)  # the clips of two videos in each row
        assert (of_two[:, :1] % (2 * num) == 0).all() and (of_two == of_two[:, :1] + torch.arange(2 * num)).all()
        shares = (F.one_hot(targets, num_classes) if targets.ndim == 1 else targets).float()
        clips, shares, before = clips.clone(), shares.clone(), (clips, shares)
        for a, place in enumerate(places.tolist()):
            videos, clip = divmod(place, 2 * num)
            if clip >= num:  # the second of a pair
                continue
            kept, box = self.draw(videos * num + clip, *clips.shape[3:])
            for one, other in ((a, a + num), (a + num, a)):
                shares[one] = kept * before[1][one] + (1 - kept) * before[1][other]
                if box is None:
                    torch.lerp(before[0][other], before[0][one], kept, out=clips[one])
                else:
                    top, bottom, left, right = box
                    clips[one, :, :, top:bottom, left:right] = before[0][other][:, :, top:bottom, left:right]
        return clips, shares
