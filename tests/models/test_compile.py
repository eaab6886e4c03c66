"""torch.compile takes each network as one graph, and a training compiles it once."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from fake_gpus import GPU, gpu_autocast
from torch import nn
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters

from nlvideo.models import pairwise
from nlvideo.models.global_context import GlobalContextBlock, SimplifiedNonLocalBlock
from nlvideo.models.non_local import MODES, NonLocalBlock
from nlvideo.models.resnet import DEPTHS, LAYOUTS, VideoResNet
from nlvideo.runtime.torch_private import FakeTensorMode
from nlvideo.training.precise_bn import precise_statistics

DTYPES = (torch.bfloat16, torch.float32)
CLIPS = (2, 3, 8, 64, 64)
KINDS = (
    [partial(NonLocalBlock, mode="gaussian"), SimplifiedNonLocalBlock],
    [partial(NonLocalBlock, mode="embedded_gaussian", scale=True), partial(GlobalContextBlock, ratio=4)],
    [partial(NonLocalBlock, mode="dot_product"), partial(GlobalContextBlock, fusion="mul", norm=False)],
    [partial(NonLocalBlock, mode="concatenation"), partial(GlobalContextBlock, pooling="average")],
)


@pytest.fixture(autouse=True)
def afresh():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def network_with_all_blocks(layout: str, **options) -> VideoResNet:
    """Returns a network with every kind of block, whose zero gains are drawn so that all of it counts."""
    torch.manual_seed(0)
    blocks = {
        f"res{i + 2}.0": lambda channels, kinds=kinds: nn.Sequential(*(kind(channels) for kind in kinds))
        for i, kinds in enumerate(KINDS)
    }
    network = VideoResNet(layout, 23, "paper", 5, width=8, dropout=0.5, blocks=blocks, **options)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.train()


@pytest.fixture
def shallow(monkeypatch):
    monkeypatch.setitem(DEPTHS, 23, (1, 1, 1, 1))


def step(network: nn.Module, clips: torch.Tensor, autocast=nullcontext) -> tuple[torch.Tensor, dict]:
    """Returns the logits and the gradients, with the same dropout each time."""
    network.zero_grad()
    torch.manual_seed(1)
    with autocast():
        logits = network(clips)
    logits.square().sum().backward()
    return logits, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def assert_one_graph() -> None:
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 1


CASES = [
    ("i3d", False, "eager"),
    ("i3d", False, "aot_eager"),  # traces PyTorch's own backward passes too
    *(
        (layout, frozen_bn, "eager")
        for layout in LAYOUTS
        for frozen_bn in (False, True)
        if (layout, frozen_bn) != ("i3d", False)
    ),
]


@pytest.mark.parametrize(
    ("layout", "frozen_bn", "backend"),
    [CASES[0], *(pytest.param(*case, marks=pytest.mark.nightly) for case in CASES[1:])],
)
def test_every_block_in_every_layout_is_one_graph(layout, frozen_bn, backend, shallow):
    """Forward and backward, which is traced too where it is ours; a break raises."""
    network = network_with_all_blocks(layout, frozen_bn=frozen_bn).double()
    clips = torch.randn(CLIPS, dtype=torch.float64)
    expected, wanted = step(network, clips)
    network.compile(backend=backend, fullgraph=True)
    logits, gradients = step(network, clips)
    assert_one_graph()
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.slow
def test_under_autocast_it_is_one_graph_of_the_same_roundings(shallow):
    network, clips = network_with_all_blocks("i3d"), torch.randn(CLIPS)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16)
    expected, wanted = step(network, clips, autocast)
    network.compile(backend="eager", fullgraph=True)
    logits, gradients = step(network, clips, autocast)
    assert_one_graph()
    assert torch.equal(logits, expected)
    assert all(torch.equal(gradient, wanted[name]) for name, gradient in gradients.items())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extent", ["space", "time"])
def test_every_form_of_the_block_is_one_graph(mode, extent):
    block = NonLocalBlock(8, mode=mode, extent=extent, group_frames=2).double().train()
    x = torch.randn(2, 8, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    nn.init.normal_(block.bn.weight)
    expected = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    block.compile(backend="eager", fullgraph=True)
    found = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    assert_one_graph()
    for gradient, want in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-8, atol=1e-10)


def test_a_training_compiles_once(shallow):
    """With validations between its steps, which are not compiled: their batches and modes are others."""
    torch.manual_seed(0)
    network = VideoResNet("c2d", 23, "paper", 5, width=4, dropout=0.5, blocks={"res3.0": NonLocalBlock}).train()
    network.compile(backend="eager", fullgraph=True)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    with dynamo.patch(error_on_recompile=True):
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            network(torch.randn(2, 3, 8, 32, 32)).square().sum().backward()
            optimizer.step()
            network.eval()
            with torch.inference_mode():
                network.forward(torch.randn(1, 3, 8, 32, 32))
            network.train()
            precise_statistics(network, [torch.randn(3, 3, 8, 32, 32)])
    assert_one_graph()


@pytest.mark.parametrize(
    ("mode", "flash", "dtype"),
    [*((mode, False, torch.bfloat16) for mode in MODES), *(("embedded_gaussian", True, dtype) for dtype in DTYPES)],
)
def test_on_a_gpu_each_mode_is_one_graph(mode, flash, dtype, monkeypatch):
    """The question which kernel there is, and the products of 16 bits, are traced; nothing reads a value."""
    monkeypatch.setattr(torch._C, "_can_use_flash_attention", lambda *_: flash)
    monkeypatch.setattr(torch._C, "_can_use_mem_efficient_attention", lambda *_: False)
    with FakeTensorMode(), GPU:
        block, x = NonLocalBlock(64, mode=mode).train(), torch.randn(2, 64, 4, 8, 8)
        expected = pairwise._fused_attention_takes(*torch.empty(3, 2, 1, 5, 8, dtype=dtype))
        assert expected is flash
        block.compile(backend="eager", fullgraph=True)
        with gpu_autocast(dtype):
            z = block(x)
    assert_one_graph()
    assert z.device == GPU and z.shape == x.shape
