"""Part B: the pairwise operations and a whole network against float64, and what frozen batch norm passes on."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_checks.findings import Findings
from nlvideo.build.model import build_model
from nlvideo.config.compose import compose_train_config
from nlvideo.models import pairwise
from nlvideo.models.batch_norm import VideoBatchNorm3d, train_in_four_dimensions
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.models.stem_conv import conv_of_four_pixels

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LARGE_LOGIT = 1000.0
# Blocks with small logits and no norm of their own: behind new weights a block's norm enlarges what float32 rounds off,
# and an untrained softmax picks another key for it, by more than a limit could tell from a mistake.
BLOCKS = ["block.init=released", "block.scale=true", "block.norm=false"]
NETWORK = ["experiment=i3d_r50_nl5", "data.root=none", "model.pretrained=null", "model.dropout=0", *BLOCKS]
FLOAT32_LIMIT, LOGITS_LIMIT, HALF_LIMIT, GAUSSIAN_LIMIT = 1e-5, 1e-4, 1e-2, 5e-2


class Mode(NamedTuple):
    """A pairwise function: ours, the form with the matrix of all pairs, and how its operands are made."""

    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    scalars: bool = False  # one number for each position instead of D channels
    wider: int = 1  # D over the width of g


def _matrix(weights: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda theta, phi, g: pairwise.apply_map(weights(theta, phi), g)


MODES = {
    "dot_product": Mode(pairwise.dot_product, _matrix(pairwise.dot_product_map)),
    "concatenation": Mode(pairwise.concatenation, _matrix(pairwise.concatenation_map), scalars=True),
    "embedded_gaussian": Mode(pairwise.embedded_gaussian, _matrix(pairwise.embedded_gaussian_map)),
    "gaussian": Mode(pairwise.embedded_gaussian, _matrix(pairwise.embedded_gaussian_map), wider=2),
}


class Size(NamedTuple):
    name: str
    queries: int
    keys: int
    width: int  # channels of g


def run(found: Findings, _folder: Path) -> None:
    for size in sizes(found):
        for dtype in DTYPES:
            for mode in MODES:
                check = f"{mode}, {size.name}, {dtype}"
                with found.case(check):
                    error = worst_error(mode, size, DTYPES[dtype], found.device)
                    found.at_most(check, error, limit_of(mode, dtype))
    for dtype in ("float16", "bfloat16"):
        for mode in MODES:
            check = f"{mode}, logits of {LARGE_LOGIT:g}, {dtype}: not finite"
            with found.case(check):
                found.equal(check, values_not_finite(mode, sizes(found)[0], DTYPES[dtype], found.device), 0)
    for dtype in ("float32", "bfloat16"):
        check = f"frozen batch norm, {dtype}: layout of its gradient"
        with found.case(check):
            found.equal(check, layout_of_frozen_gradient(found.device, DTYPES[dtype]), "channels_last_3d")
    check = "batch norm in four dimensions, bfloat16, against float64"
    with found.case(check):
        found.at_most(check, error_of_flat_norm(found.device), HALF_LIMIT)
    for dtype in ("bfloat16", "float16"):
        check = f"the first convolution from four pixels at a time, {dtype}, against float64"
        with found.case(check):
            found.at_most(check, error_of_stem(found.device, DTYPES[dtype]), HALF_LIMIT)
    check = "logits of I3D R50 NL5 in float32"
    with found.case(check):
        found.at_most(check, error_of_logits(found), LOGITS_LIMIT)
    if not found.cuda:
        found.skip("operations and logits on a GPU", "there is none; this is the CPU with an eighth of the positions")


def sizes(found: Findings) -> list[Size]:
    """Returns res3 and res4 of NL5 for clips of 32 frames, with fewer positions on a CPU."""
    part = 1 if found.cuda else 8
    res3 = Size("res3", 3136 // part, 784 // part, 256)
    return [res3] if found.quick else [res3, Size("res4", 784 // part, 196 // part, 512)]


def limit_of(mode: str, dtype: str) -> float:
    if dtype == "float32":
        return FLOAT32_LIMIT
    return GAUSSIAN_LIMIT if "gaussian" in mode else HALF_LIMIT


def worst_error(mode: str, size: Size, dtype: torch.dtype, device: torch.device) -> float:
    """Returns the largest difference of output and gradients to float64, each relative to its largest value."""
    inputs = operands(MODES[mode], size, dtype, device)
    dy = torch.randn(2, size.width, size.queries, device=device).to(dtype)
    ours = with_gradients(MODES[mode].ours, inputs, dy)
    exact = with_gradients(MODES[mode].plain, [t.detach().double() for t in inputs], dy.double())
    return max(relative_error(a, b) for a, b in zip(ours, exact, strict=True))


def values_not_finite(mode: str, size: Size, dtype: torch.dtype, device: torch.device) -> int:
    """Returns how many values of output and gradients are not finite where logits are very large."""
    inputs = operands(MODES[mode], size, dtype, device, LARGE_LOGIT)
    dy = torch.randn(2, size.width, size.queries, device=device).to(dtype)
    return sum(int((~t.isfinite()).sum()) for t in with_gradients(MODES[mode].ours, inputs, dy))


def operands(mode: Mode, size: Size, dtype: torch.dtype, device: torch.device, logit: float = 1.0) -> list[Tensor]:
    """Returns theta, phi and g of two clips, laid out as a channels-last network gives them.

    Args:
        logit: the standard deviation of what theta and phi give.
    """
    torch.manual_seed(0)
    channels = 1 if mode.scalars else mode.wider * size.width
    each = logit / 2**0.5 if mode.scalars else (logit / channels**0.5) ** 0.5
    theta, phi = (each * torch.randn(2, n, channels, device=device) for n in (size.queries, size.keys))
    g = torch.randn(2, size.keys, size.width, device=device)
    made = [t.to(dtype).transpose(1, 2) for t in (theta, phi, g)]
    return [made[0][:, 0], made[1][:, 0], made[2]] if mode.scalars else made


def with_gradients(function: Callable[..., Tensor], inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
    """Returns the output and the gradients of all inputs."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Returns the largest difference over the largest exact value; NaN if a value is NaN."""
    return ((value.double() - exact).abs().max() / exact.abs().max()).item()


def error_of_stem(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the largest relative error of what I3D's conv1 makes of a clip, and of its weight's gradient."""
    torch.manual_seed(0)
    clip = torch.randn(1, 8, 112, 112, 3, device=device).to(dtype).permute(0, 4, 1, 2, 3)
    weight = (torch.randn(64, 3, 5, 7, 7, device=device) / 27).to(dtype)
    dy = torch.randn(1, 64, 4, 56, 56, device=device).to(dtype)
    ours = with_gradients(lambda x, w: conv_of_four_pixels(x, w, 2, 2), [clip, weight], dy)
    given = [clip.double(), weight.double()]
    exact = with_gradients(lambda x, w: F.conv3d(x, w, None, (2, 2, 2), (2, 3, 3)), given, dy.double())
    return max(relative_error(a, b) for a, b in zip(ours, exact, strict=True))


def layout_of_frozen_gradient(device: torch.device, dtype: torch.dtype) -> str:
    """Returns the memory format of the gradient that frozen batch norm gives to the convolution before it."""
    norm = VideoBatchNorm3d(16).to(device).eval().requires_grad_(False)
    x = torch.randn(2, 16, 4, 14, 14, device=device).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    y = norm(x.requires_grad_())
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    return layout(gradient)


def error_of_flat_norm(device: torch.device) -> float:
    """Returns the largest error of the output, the gradients and the statistics of a batch norm that trains on a view
    of four dimensions, as it does in bfloat16 on GPUs, each relative to its largest value."""
    torch.manual_seed(0)
    x = (3 * torch.randn(2, 64, 8, 28, 28, device=device) + 1).bfloat16()
    dy = torch.randn(x.shape, device=device).bfloat16()
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        norm = VideoBatchNorm3d(64).to(device, torch.promote_types(dtype, torch.float32)).train()
        clips = x.to(dtype).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        y = (train_in_four_dimensions if dtype == torch.bfloat16 else torch.nn.BatchNorm3d.forward)(norm, clips)
        gradients = torch.autograd.grad(y, [clips, norm.weight, norm.bias], dy.to(dtype))
        found.append([y.detach(), *gradients, norm.running_mean, norm.running_var])
    return max(relative_error(a, b) for a, b in zip(*found, strict=True))


def layout(x: Tensor) -> str:
    if x.is_contiguous(memory_format=torch.channels_last_3d):
        return "channels_last_3d"
    return "contiguous" if x.is_contiguous() else f"strides {x.stride()}"


def error_of_logits(found: Findings) -> float:
    """Returns how far the logits of NL I3D on this device are from those of the CPU in float64, relative to the
    largest. Batch norms take the statistics of the clips, as in training."""
    frames, side = (8, 112) if found.cuda else (8, 64)
    config = compose_train_config([*NETWORK, f"data.num_frames={frames}", f"data.crop_size={side}"])
    torch.manual_seed(0)
    network = build_model(config.model, config.block, config.data, 400).train()
    for block in blocks(network):
        torch.nn.init.kaiming_normal_(block.last_weight)  # it is zero, and a new block the identity
    clips = torch.randn(2, 3, frames, side, side)
    with torch.no_grad():
        exact = network.double()(clips.double())
        network = network.to(found.device, torch.float32, memory_format=torch.channels_last_3d)
        ours = network(clips.to(found.device, memory_format=torch.channels_last_3d))
    return relative_error(ours.cpu(), exact)


def blocks(network: torch.nn.Module) -> Iterator[NonLocalBlock]:
    return (module for module in network.modules() if isinstance(module, NonLocalBlock))
