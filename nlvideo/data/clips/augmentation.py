"""Changes of a training clip's colours and shape, by torchvision.transforms.v2: one draw, the same for all frames.

C channels, T frames, H height, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK = 4  # frames that are changed together, which stay in the cache: twice as fast as the whole clip
STRENGTHS = {"colour": 0.4, "randaugment": 9.0}  # where none is given


class Augmentation:
    """Maps a clip to an augmented one; which one depends on a seed alone.

    - "none": only the erasing.
    - "colour": brightness, contrast and saturation, each by a factor from 1 - strength to 1 + strength, in any order.
      Hue stays, as in PySlowFast and timm: it would take six times as long as the other three together.
    - "randaugment": two of RandAugment's fourteen changes, with its magnitude `strength` of 0 to 30.
    - "trivial": one of TrivialAugment's (wide) at any strength.
    None of them mirrors a clip, but "trivial" may turn it by up to 135 degrees. What is left open by it is black.

    Args:
        kind: one of the above.
        strength: None: that of STRENGTHS.
        erasing: the probability that a rectangle, 2 to 33 % of the frame, is filled with `colour` in all frames.
        colour: red, green and blue, 0 to 255; the mean of the data makes it zeros for the network.
    """

    def __init__(self, kind: str, strength: float | None, erasing: float, colour: Sequence[float]):
        from torchvision.transforms import v2  # takes a second and more, which only those wait for who augment

        self.kind, self.strength, self.erasing = kind, STRENGTHS.get(kind) if strength is None else strength, erasing
        steps: list[torch.nn.Module] = []
        if kind == "colour":
            steps.append(v2.ColorJitter(self.strength, self.strength, self.strength))
        elif kind == "randaugment":
            # Bilinear as in torchvision's training recipes: it takes as long as nearest, and edges stay smooth.
            steps.append(v2.RandAugment(magnitude=int(self.strength or 0), interpolation="bilinear"))
        elif kind == "trivial":
            steps.append(v2.TrivialAugmentWide(interpolation="bilinear"))
        if erasing:
            stored = [float(min(max(round(value), 0), 255)) for value in colour]  # in uint8
            steps.append(v2.RandomErasing(erasing, value=stored))
        self._transform = v2.Compose(steps)

    def __call__(self, clip: Tensor, seed: int) -> Tensor:
        """Returns a clip (T, H, W, C) uint8, C being red, green and blue, as another one of the same shape."""
        from torchvision.tv_tensors import Video

        out = torch.empty_like(clip)
        # v2 draws from torch's global generator only. Its state is put back, and no GPU's is touched.
        with torch.random.fork_rng(devices=[]):
            for frames, changed in zip(clip.split(CHUNK), out.split(CHUNK), strict=True):
                torch.default_generator.manual_seed(seed)  # the same draw for all: it depends on their size only
                changed.copy_(self._transform(Video(frames.permute(0, 3, 1, 2))).permute(0, 2, 3, 1))
        return out

    def __str__(self) -> str:
        strength = "" if self.strength is None else f" {self.strength:g}"
        parts = [f"{self.kind}{strength}"] if self.kind != "none" else []
        return ", ".join(parts + ([f"erasing {self.erasing:g}"] if self.erasing else []))
