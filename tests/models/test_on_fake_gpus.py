"""What networks do on a GPU, as far as fake CUDA tensors tell."""

from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from fake_gpus import GPU, Calls, backward, fake_gpu, gpu_autocast
from torch import Tensor

from nlvideo.models import pairwise
from nlvideo.models.batch_norm import VideoBatchNorm3d
from nlvideo.models.global_context import GlobalContextBlock, SimplifiedNonLocalBlock
from nlvideo.models.non_local import EXTENTS, MODES, NonLocalBlock
from nlvideo.models.resnet import DEPTHS, LAYOUTS, VideoResNet
from nlvideo.runtime.torch_private import FakeTensorMode

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def test_the_walk_through_the_graph_gives_autograds_gradients():
    block = NonLocalBlock(8, mode="concatenation").double()
    x = torch.randn(2, 8, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    torch.nn.init.normal_(block.bn.weight)
    y, dy = block(x), torch.randn(2, 8, 3, 4, 4, dtype=torch.float64)
    found = backward(y, dy)
    leaves = [x, *block.parameters()]
    assert len(found) == len(leaves)
    for leaf, expected in zip(leaves, torch.autograd.grad(block(x), leaves, dy), strict=True):
        torch.testing.assert_close(found[leaf], expected)


@pytest.mark.parametrize(
    "read",
    [
        Tensor.item,
        Tensor.tolist,
        Tensor.nonzero,
        Tensor.cpu,
        lambda x: x[x > 0],
        lambda x: int(x.sum()),
        lambda x: x + torch.ones(4).to(GPU),
        lambda x: torch.ones(4).copy_(x),
    ],
)
def test_reads_and_copies_do_raise(read):
    with fake_gpu(), pytest.raises((RuntimeError, AssertionError, NotImplementedError)):
        read(torch.ones(4, device=GPU))


BLOCKS = {f"res{2 + i // 2}.{i % 2}": partial(NonLocalBlock, mode=mode) for i, mode in enumerate(MODES)} | {
    "res4.0": SimplifiedNonLocalBlock,
    "res4.1": partial(GlobalContextBlock, ratio=4),
    "res5.0": partial(GlobalContextBlock, ratio=4, pooling="average", fusion="mul", norm=False),
    "res5.1": partial(NonLocalBlock, group_frames=1),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_training_step_neither_reads_nor_copies(layout, dtype, monkeypatch):
    """Every block and layout, from clips to gradients."""
    monkeypatch.setitem(DEPTHS, 26, (2, 2, 2, 2))
    with fake_gpu():
        with GPU:
            network = VideoResNet(layout, 26, "paper", 5, width=8, dropout=0.5, blocks=BLOCKS).train()
            clips, targets = torch.randn(2, 3, 8, 64, 64), torch.zeros(2, dtype=torch.long)
        for module in network.modules():  # cuDNN gives that, but its bfloat16 is found on a GPU only
            if isinstance(module, torch.nn.Conv3d):
                module.register_forward_hook(lambda *args: args[2].contiguous(memory_format=torch.channels_last_3d))
        with gpu_autocast(dtype), Calls() as calls:
            logits = network(clips)
        loss = F.cross_entropy(logits, targets)
        gradients = backward(loss, torch.ones_like(loss))
    assert logits.dtype == torch.float32 and logits.device == GPU
    norms = len([m for m in network.modules() if isinstance(m, VideoBatchNorm3d)])
    flat = [args[0] for name, args, _ in calls if name == "native_batch_norm" and args[0].ndim == 4]
    assert len(flat) == (norms if dtype == torch.bfloat16 else 0)
    for name, parameter in network.named_parameters():
        gradient = gradients[parameter]
        assert (gradient.shape, gradient.dtype, gradient.device) == (parameter.shape, torch.float32, GPU), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("pool", ["after", "before"])
def test_no_form_of_the_block_reads_or_copies(mode, extent, pool):
    with fake_gpu(), GPU:
        block = NonLocalBlock(8, mode=mode, extent=extent, pool=pool)
        x = torch.randn(2, 8, 3, 4, 4, requires_grad=True)
        with gpu_autocast(torch.bfloat16):
            z = block(x)
        assert backward(z, torch.ones_like(z)).keys() == {x, *block.parameters()}


# ---- batch norm in four dimensions ----


NORMS = ("native_batch_norm", "native_batch_norm_backward")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gradient", ["channels last", "contiguous", "one number"])
def test_norms_of_bfloat16_get_four_dimensions_in_channels_last(dtype, gradient):
    with fake_gpu(), GPU:
        norm = VideoBatchNorm3d(64).train()
        x = torch.empty(2, 64, 4, 28, 28, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
        x.requires_grad_()
        y = norm(x)
        dy = torch.empty((2, 64, 4, 28, 28) if gradient == "contiguous" else x.shape, dtype=dtype)
        dy = torch.ones((), dtype=dtype).expand_as(x) if gradient == "one number" else dy
        dy = dy.contiguous(memory_format=torch.channels_last_3d) if gradient == "channels last" else dy
        with Calls() as calls:
            gradients = backward(y, dy)
    assert gradients.keys() == {x, *norm.parameters()}
    images = [[a for a in args if isinstance(a, Tensor) and a.ndim > 1] for name, args, _ in calls if name in NORMS]
    if dtype != torch.bfloat16:
        assert not images
        return
    assert [[image.ndim for image in of_call] for of_call in images] == [[4, 4]]
    assert all(image.is_contiguous(memory_format=torch.channels_last) for image in images[0])
    assert all(t.is_contiguous(memory_format=torch.channels_last_3d) for t in (y, gradients[x]))
    assert {gradients[p].dtype for p in norm.parameters()} == {torch.float32}


# ---- attention: which kernel, and what is done without one ----


@pytest.mark.parametrize(
    ("widths", "flash", "efficient", "expected"),
    [
        ((128, 128), True, True, True),
        ((128, 128), False, True, True),
        ((256, 256), False, True, True),
        ((264, 264), False, True, False),
        ((512, 512), False, True, False),
        ((512, 512), True, True, True),
        ((128, 128), False, False, False),
        ((1024, 512), True, True, False),
    ],
)
def test_a_kernel_is_used_where_it_is_fast(widths, flash, efficient, expected, monkeypatch):
    """Flash attention wherever it can; the memory-efficient kernel up to 256 channels."""
    monkeypatch.setattr(pairwise.cuda, "can_use_flash_attention", lambda _: flash)
    monkeypatch.setattr(pairwise.cuda, "can_use_efficient_attention", lambda _: efficient)
    d, e = widths
    with fake_gpu():
        query, key, value = (torch.empty(2, 1, n, c, device=GPU) for n, c in ((60, d), (20, d), (20, e)))
        assert pairwise._fused_attention_takes(query, key, value) is expected


def products(calls: list) -> list[tuple[torch.dtype, torch.dtype]]:
    """Returns the dtypes of each matrix product among the calls: (operands, result)."""
    return [(args[0].dtype, output.dtype) for name, args, output in calls if name in ("bmm", "mm")]


@pytest.mark.skipif(not pairwise.BMM_WIDENS, reason="this torch is older than 2.8")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("widths", [(512, 512), (1024, 512)])  # embedded_gaussian and gaussian in res4
def test_logits_are_float32_and_all_factors_of_16_bits_stay_so(dtype, autocast, widths):
    d, e = widths
    with fake_gpu(), GPU:
        inputs = [torch.empty(2, c, n, dtype=dtype, requires_grad=True) for c, n in ((d, 784), (d, 196), (e, 196))]
        with gpu_autocast(dtype if autocast else torch.float32), Calls() as forward:
            y = pairwise.embedded_gaussian(*inputs, 0.5)
        with Calls() as back:
            gradients = backward(y, torch.empty_like(y))
    assert (y.shape, y.dtype, y.device) == ((2, e, 784), dtype, GPU)
    for x in inputs:
        assert (gradients[x].shape, gradients[x].dtype, gradients[x].device) == (x.shape, dtype, GPU)
    assert products(forward) == [(dtype, torch.float32), (dtype, dtype)]
    assert products(back) == [(dtype, torch.float32), *[(dtype, dtype)] * 3]


def test_a_small_matrix_is_kept_and_a_large_one_computed_again(monkeypatch):
    """Operators that a backward pass takes: of 8 clips in res4, and of more than one chunk."""

    def calls(batch: int) -> int:
        with fake_gpu(), GPU:
            inputs = [torch.empty(batch, 512, n, dtype=torch.bfloat16, requires_grad=True) for n in (784, 196, 196)]
            y = pairwise.embedded_gaussian(*inputs)
            with Calls() as found:
                backward(y, torch.empty_like(y))
        return len(found)

    kept, again = calls(8), calls(800)
    assert kept < 0.5 * again


def test_before_torch_2_8_logits_are_products_of_float32(monkeypatch):
    monkeypatch.setattr(pairwise, "BMM_WIDENS", False)
    with fake_gpu(), GPU, gpu_autocast(torch.bfloat16), Calls() as calls:
        inputs = [torch.empty(2, 512, n, dtype=torch.bfloat16) for n in (784, 196, 196)]
        pairwise.embedded_gaussian(*inputs)
    assert products(calls) == [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_products_of_16_bits_give_the_results_of_those_of_float32(dtype, scale):
    """With torch.bmm of GPUs stood in for on the CPU."""

    def widening(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
        assert a.dtype == b.dtype == dtype
        return torch.matmul(a.to(out_dtype), b.to(out_dtype))

    def run() -> tuple[Tensor, ...]:
        inputs = [t.clone().requires_grad_() for t in (theta, phi, g)]
        y = pairwise.embedded_gaussian(*inputs, scale)
        return (y, *torch.autograd.grad(y, inputs, torch.ones_like(y)))

    theta, phi, g = ((3 * torch.randn(2, c, n)).to(dtype) for c, n in ((48, 300), (48, 80), (24, 80)))
    expected = run()
    with patch.object(pairwise, "_multiplies_16_bits_to_32", lambda _: True), patch.object(torch, "bmm", widening):
        found = run()
    for value, want in zip(found, expected, strict=True):
        size = want.abs().max()
        assert (value - want).abs().max() <= 2 * torch.finfo(dtype).eps * size


@pytest.mark.parametrize(("device", "most"), [("cuda", 256 * 2**20), ("cpu", 8 * 2**20)])
def test_chunks_are_larger_on_gpus(device, most):
    with FakeTensorMode():
        query, key = (torch.empty(8, 1, n, 512, device=device) for n in (12544, 3136))  # res3, 128 frames
        chunks = list(pairwise._chunks(query, key))
        sizes = {8 * (chunk.stop - chunk.start) * 3136 * 4 for chunk in chunks}
        assert len(sizes) == 1 and 0.9 * most < sizes.pop() <= most
        query, key = (torch.empty(64, 1, n, 512, device=device) for n in (784, 196))  # res4, 32 frames
        assert len(list(pairwise._chunks(query, key))) == (1 if device == "cuda" else 5)


def test_concatenation_has_no_loop_over_the_batch():
    """Which for extent "time" has an entry for each place of each clip."""

    def num_calls(batch: int) -> int:
        with fake_gpu(), GPU, Calls() as calls:
            inputs = [torch.empty(batch, *sizes, requires_grad=True) for sizes in ((60,), (20,), (8, 20))]
            y = pairwise.concatenation(*inputs)
            backward(y, torch.empty_like(y))
        return len(calls)

    assert num_calls(2) == num_calls(50)
