"""Denoises a picture by non-local means, the block's ancestor, with the block's own pairwise operation.

    python tools/denoise.py picture.png                    # adds noise, removes it, prints the PSNR before and after
    python tools/denoise.py picture.png --method gaussian  # the same with a local mean
    python tools/denoise.py scan.png --noise 0             # a picture that is already noisy

Non-local means (Buades et al. 2005) is y_i = sum_j f(x_i, x_j) g(x_j) / C(x), where f = exp(-|P_i - P_j|^2 / h^2)
compares the patches around i and j, and g is the identity. It is embedded_gaussian of nlvideo/models/pairwise.py with
theta and phi computed from patches instead of learned. Every pixel attends to the whole picture, so the cost is
quadratic in the number of pixels.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur, pil_to_tensor, resize

from nlvideo.models.pairwise import embedded_gaussian
from nlvideo.runtime.errors import UserError, reporting_errors
from nlvideo.runtime.files import replacing
from nlvideo.runtime.progress import progress_bar

QUERIES = 1024  # pixels per step of the progress bar


def main() -> None:
    arguments = parse_arguments()
    with reporting_errors():
        denoise(arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--method", choices=("nlm", "gaussian"), default="nlm")
    parser.add_argument("--noise", type=float, default=0.1, help="standard deviation, pixels in [0, 1] (default 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--h", type=float, default=0.15, help="nlm: patches h apart weigh exp(-1) (default 0.15)")
    parser.add_argument("--patch-size", type=int, default=7, help="nlm: side of a patch in pixels, odd (default 7)")
    parser.add_argument("--sigma", type=float, default=1.0, help="gaussian: standard deviation in pixels (default 1)")
    parser.add_argument("--max-side", type=int, default=128, help="larger pictures are shrunk to this (default 128)")
    parser.add_argument("--output", type=Path, help="default: IMAGE_denoised.png")
    arguments = parser.parse_args()
    for name in ("h", "sigma", "max_side"):
        if not 0 < getattr(arguments, name) < float("inf"):
            parser.error(f"--{name.replace('_', '-')} must be above 0.")
    if not 0 <= arguments.noise < float("inf"):
        parser.error("--noise must not be negative.")
    if arguments.patch_size < 1 or arguments.patch_size % 2 == 0:
        parser.error("--patch-size must be odd.")
    return arguments


def denoise(arguments: argparse.Namespace) -> None:
    """Writes the pictures before and after, and prints their PSNR."""
    clean = read_image(arguments.image, arguments.max_side)
    height, width = clean.shape[1:]
    if arguments.method == "nlm" and arguments.patch_size // 2 >= min(height, width):
        raise UserError(f"--patch-size {arguments.patch_size} is too large for {width} x {height} pixels.")
    noise = arguments.noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(arguments.seed))
    noisy = clean + noise
    if arguments.method == "nlm":
        denoised = non_local_means(noisy, arguments.h, arguments.patch_size)
    else:
        size = 2 * int(3 * arguments.sigma + 0.5) + 1
        denoised = gaussian_blur(noisy, [size, size], [arguments.sigma, arguments.sigma])
    if arguments.noise:
        before, after = psnr(noisy, clean), psnr(denoised, clean)
        panels = {"clean": clean, f"noisy, {before:.2f} dB": noisy, f"denoised, {after:.2f} dB": denoised}
        print(f"PSNR {before:.2f} dB before, {after:.2f} dB after")
    else:
        panels = {"noisy": clean, "denoised": denoised}
    file = arguments.output or arguments.image.with_name(f"{arguments.image.stem}_denoised.png")
    draw(panels, file)
    print(file)


def read_image(path: Path, max_side: int) -> Tensor:
    """Returns a picture as (3, H, W) floats in [0, 1], no side longer than max_side.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            pixels = pil_to_tensor(image.convert("RGB")) / 255
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read as a picture: {error}") from error
    longest = max(pixels.shape[1:])
    if longest <= max_side:
        return pixels
    size = [max(1, round(side * max_side / longest)) for side in pixels.shape[1:]]
    return resize(pixels, size, antialias=True).clamp(0, 1)


def non_local_means(image: Tensor, h: float, patch_size: int) -> Tensor:
    """Returns (C, H, W): each pixel is the mean of all pixels, weighted by the similarity of their patches.

    The distance of two patches is the weighted mean of squared differences, with a Gaussian of standard deviation
    (patch_size - 1) / 4 around the centre, as in scikit-image's denoise_nl_means (slow mode). The picture is mirrored
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
    # -|P_i - P_j|^2 = 2 P_i . P_j - |P_j|^2 - |P_i|^2, and the softmax over j cancels the last term.
    theta = torch.cat([2 * patches, torch.ones_like(patches[:, :1])], 1)
    phi = torch.cat([patches, -patches.square().sum(1, keepdim=True)], 1)
    g = image.reshape(1, channels, -1)
    starts = progress_bar(range(0, height * width, QUERIES), desc="non-local means", unit="chunk", delay=2)
    parts = [embedded_gaussian(theta[..., start : start + QUERIES], phi, g) for start in starts]
    return torch.cat(parts, 2).reshape(image.shape)


def psnr(image: Tensor, reference: Tensor) -> float:
    """Returns the peak signal-to-noise ratio in dB of pictures in [0, 1]."""
    return -10 * (image - reference).square().mean().log10().item()


def draw(panels: dict[str, Tensor], file: Path) -> None:
    """Writes pictures (3, H, W) side by side.

    Raises:
        UserError: the file cannot be written, or its ending is not that of a picture.
    """
    from matplotlib.figure import Figure

    height, width = next(iter(panels.values())).shape[1:]
    figure = Figure(figsize=(3.2 * len(panels), 3.2 * height / width + 0.4), layout="constrained")
    for axes, (title, image) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    try:
        with replacing(file) as partial:
            figure.savefig(partial, dpi=150, format=file.suffix.removeprefix(".") or "png")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be written: {error}") from error


if __name__ == "__main__":
    main()
