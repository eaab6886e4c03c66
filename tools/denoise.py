"""Removes noise from a picture by non-local means, the block's ancestor, through the block's own pairwise operation.

    python tools/denoise.py picture.png                        # adds noise, removes it, says the PSNR before and after
    python tools/denoise.py picture.png --method gaussian      # the same by a local mean
    python tools/denoise.py scan.png --noise 0                 # a picture that is noisy already

Non-local means (Buades et al. 2005) is y_i = sum_j f(x_i, x_j) g(x_j) / C(x) with f = exp(-|P_i - P_j|^2 / h^2) of the
patches around i and j and g the identity: embedded_gaussian of nlvideo/models/pairwise.py, whose theta and phi are made
of patches instead of learnt. Every pixel looks at the whole picture, so the cost grows with the square of its pixels.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur, pil_to_tensor, resize
from tqdm import tqdm

from nlvideo.models.pairwise import embedded_gaussian

ROWS = 1024  # pixels that look at the picture at a time, so that progress shows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--method", choices=("nlm", "gaussian"), default="nlm")
    parser.add_argument("--noise", type=float, default=0.1, help="its deviation, of [0, 1] (default 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--h", type=float, default=0.15, help="nlm: how far apart patches may be (default 0.15)")
    parser.add_argument("--patch-size", type=int, default=7, help="nlm: pixels, odd (default 7)")
    parser.add_argument("--sigma", type=float, default=1.0, help="gaussian: of the mean, in pixels (default 1)")
    parser.add_argument("--max-side", type=int, default=128, help="the picture is made this small first (default 128)")
    parser.add_argument("--output", type=Path, help="default: IMAGE_denoised.png")
    arguments = parser.parse_args()
    for name in ("h", "sigma", "max_side"):
        if not 0 < getattr(arguments, name) < float("inf"):
            parser.error(f"--{name.replace('_', '-')} must be above 0.")
    if not 0 <= arguments.noise < float("inf"):
        parser.error("--noise must not be negative.")
    if arguments.patch_size < 1 or arguments.patch_size % 2 == 0:
        parser.error("--patch-size must be odd.")
    try:
        clean = read_image(arguments.image, arguments.max_side)
    except (OSError, UnidentifiedImageError) as error:
        sys.exit(f"error: {arguments.image} cannot be read as a picture: {error}")
    if arguments.method == "nlm" and arguments.patch_size // 2 >= min(clean.shape[1:]):
        sys.exit(
            f"error: --patch-size {arguments.patch_size} is too large for {clean.shape[2]} x {clean.shape[1]} pixels."
        )
    noise = arguments.noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(arguments.seed))
    noisy = clean + noise
    if arguments.method == "nlm":
        denoised = non_local_means(noisy, arguments.h, arguments.patch_size)
    else:
        denoised = gaussian_blur(noisy, 2 * int(3 * arguments.sigma + 0.5) + 1, arguments.sigma)
    panels = {"noisy" if arguments.noise == 0 else "clean": clean}
    if arguments.noise:
        panels |= {f"noisy, {psnr(noisy, clean):.2f} dB": noisy, f"denoised, {psnr(denoised, clean):.2f} dB": denoised}
        print(f"PSNR {psnr(noisy, clean):.2f} dB before, {psnr(denoised, clean):.2f} dB after")
    else:
        panels["denoised"] = denoised
    file = arguments.output or arguments.image.with_name(f"{arguments.image.stem}_denoised.png")
    try:
        draw(panels, file)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {file} cannot be written: {error}")
    print(file)


def read_image(path: Path, max_side: int) -> Tensor:
    """Returns a picture as (3, H, W) floats in [0, 1], no side longer than max_side."""
    with Image.open(path) as image:
        pixels = pil_to_tensor(image.convert("RGB")) / 255
    longest = max(pixels.shape[1:])
    if longest <= max_side:
        return pixels
    size = [max(1, round(side * max_side / longest)) for side in pixels.shape[1:]]
    return resize(pixels, size, antialias=True).clamp(0, 1)


def non_local_means(image: Tensor, h: float, patch_size: int) -> Tensor:
    """Returns (C, H, W): each pixel the mean of all, weighted by how alike their patches are.

    The distance of patches is the mean over their pixels and channels, those near the middle counting more, as in
    scikit-image's denoise_nl_means (slow mode): a Gaussian of deviation (patch_size - 1) / 4. The picture is mirrored
    at its borders.

    Args:
        image: (C, H, W).
        h: patches h apart weigh exp(-1).
        patch_size: odd.
    """
    channels, height, width = image.shape
    reach = patch_size // 2
    offsets = torch.arange(-reach, reach + 1, dtype=image.dtype)
    near = torch.exp(-(offsets**2) / (2 * max((patch_size - 1) / 4, 1e-6) ** 2))
    weights = (near[:, None] * near[None]).flatten().repeat(channels)
    padded = F.pad(image[None], (reach,) * 4, mode="reflect")
    patches = F.unfold(padded, patch_size) * (weights / weights.sum()).sqrt()[:, None] / h  # (1, C * patch, H * W)
    # -|P_i - P_j|^2 is 2 P_i . P_j - |P_j|^2 and what does not depend on j, which the softmax leaves out.
    theta = torch.cat([2 * patches, torch.ones_like(patches[:, :1])], 1)
    phi = torch.cat([patches, -patches.square().sum(1, keepdim=True)], 1)
    g = image.reshape(1, channels, -1)
    starts = tqdm(range(0, height * width, ROWS), "non-local means", unit="rows", delay=2)
    parts = [embedded_gaussian(theta[..., start : start + ROWS], phi, g) for start in starts]
    return torch.cat(parts, 2).reshape(image.shape)


def psnr(image: Tensor, reference: Tensor) -> float:
    """Returns the peak signal-to-noise ratio in dB of pictures in [0, 1]."""
    return -10 * (image - reference).square().mean().log10().item()


def draw(panels: dict[str, Tensor], file: Path) -> None:
    from matplotlib.figure import Figure

    height, width = next(iter(panels.values())).shape[1:]
    figure = Figure(figsize=(3.2 * len(panels), 3.2 * height / width + 0.4), layout="constrained")
    for axes, (title, image) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
