"""Part C: whether the blocks take the fastest attention, forward and backward."""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_checks.findings import Findings
from nlvideo.models import pairwise

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
REPEATS, CLIPS = 7, 8
SLOWEST = 1.3  # of what the blocks take, over the fastest that has logits in float32, as plain does not
PART = 16  # of the positions are tried on a CPU


class Case(NamedTuple):
    name: str
    queries: int
    keys: int
    width: int  # D of queries and keys
    values: int  # channels of the values


CASES = (
    Case("res3", 3136, 784, 256, 256),
    Case("res4", 784, 196, 512, 512),
    Case("res4, 128 frames", 3136, 784, 512, 512),
    Case("res3, 128 frames", 12544, 3136, 256, 256),
    Case("gaussian in res4", 784, 196, 1024, 512),
)


def run(found: Findings, _folder: Path) -> None:
    clips = CLIPS if found.cuda else 1
    for case in CASES[:2] if found.quick else CASES:
        case = case if found.cuda else smaller(case)
        check = f"{case.name}, {case.queries} x {case.keys}, D {case.width}"
        with found.case(check):
            milliseconds = times(case, clips, found.device)
            chosen = milliseconds.pop("chosen")
            shown = ", ".join(f"{name} {value:.3g}" for name, value in milliseconds.items())
            found.show(f"{check}: ms for {clips} clips", f"{shown}; the blocks' {chosen:.3g}")
            exact = [value for name, value in milliseconds.items() if name != "plain"]
            found.speed(f"{check}: the blocks' over the best", chosen / min(exact), most=SLOWEST)
    if not found.cuda:
        found.skip("times on a GPU", f"there is none; these are the CPU's with one {PART}th of the positions")


def smaller(case: Case) -> Case:
    return case._replace(queries=case.queries // PART, keys=case.keys // PART)


def times(case: Case, clips: int, device: torch.device) -> dict[str, float]:
    """Returns the milliseconds, in bfloat16, of each way that takes these, and of what the blocks call as "chosen"."""
    torch.manual_seed(0)
    shapes = ((case.queries, case.width), (case.keys, case.width), (case.keys, case.values))
    inputs = [
        (torch.randn(clips, *shape, device=device) / case.width**0.25).bfloat16().transpose(1, 2).requires_grad_()
        for shape in shapes
    ]  # (clips, channels, positions), laid out as a channels-last network gives them
    found = {}
    for name, function in ways():
        try:
            found[name] = milliseconds_of(function, inputs)
        except RuntimeError:
            if name not in BACKENDS:  # these say so by an error where they do not take the tensors
                raise
    return found


def ways() -> Iterator[tuple[str, Callable[..., Tensor]]]:
    yield "chosen", pairwise.embedded_gaussian
    for name, backend in BACKENDS.items():
        yield name, lambda theta, phi, g, backend=backend: by_backend(backend, theta, phi, g)
    yield "chunked", chunked
    yield "plain", lambda theta, phi, g: pairwise.apply_map(pairwise.embedded_gaussian_map(theta, phi), g)


def by_backend(backend: SDPBackend, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    query, key, value = (t.transpose(1, 2).unsqueeze(1) for t in (theta, phi, g))
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value, scale=1.0).squeeze(1).transpose(1, 2)


def chunked(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    query, key, value = (t.transpose(1, 2).unsqueeze(1).contiguous() for t in (theta, phi, g))
    return pairwise._ChunkedAttention.apply(query, key, value, 1.0).squeeze(1).transpose(1, 2)


def milliseconds_of(function: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    """Returns the median time of a forward and backward pass."""
    dy = torch.ones_like(function(*inputs).detach())
    in_a_row = 5 if dy.is_cuda else 1  # as in a step, where the CPU runs ahead of the GPU

    def once() -> float:
        if dy.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(in_a_row):
            torch.autograd.grad(function(*inputs), inputs, dy)
        if dy.is_cuda:
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start) / in_a_row

    once()
    return statistics.median(once() for _ in range(REPEATS))
