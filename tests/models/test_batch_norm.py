"""Frozen batch norm against PyTorch's: the same outputs and gradients, less memory, gradients in channels last."""

import copy
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nlvideo.models.batch_norm import VideoBatchNorm3d
from nlvideo.models.cost import activation_bytes
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.models.resnet import DEPTHS, VideoResNet
from nlvideo.runtime.torch_private import FakeTensorMode

CLIP = (2, 3, 8, 32, 32)


@pytest.fixture
def shallow(monkeypatch):
    monkeypatch.setitem(DEPTHS, 23, (1, 1, 1, 1))


def norm_of(dtype=torch.float64, channels=6) -> VideoBatchNorm3d:
    """Returns a frozen norm with statistics, gain and bias."""
    norm = VideoBatchNorm3d(channels).to(dtype)
    with_values(norm)
    return norm.eval().requires_grad_(False)


def with_values(network: nn.Module) -> nn.Module:
    for norm in network.modules():
        if isinstance(norm, VideoBatchNorm3d):
            for values, low, high in (
                (norm.running_mean, -0.5, 0.5),
                (norm.running_var, 0.3, 3.0),
                (norm.weight, -1.0, 1.0),
                (norm.bias, -0.5, 0.5),
            ):
                nn.init.uniform_(values, low, high)
    return network


def network_of(**options) -> VideoResNet:
    torch.manual_seed(0)
    blocks = {"res3.0": NonLocalBlock}
    return with_values(VideoResNet("i3d", 23, "paper", 5, width=4, blocks=blocks, **options))


def pytorchs():
    """Makes every norm PyTorch's own."""
    return patch.object(VideoBatchNorm3d, "forward", nn.BatchNorm3d.forward)


def gradients(network: nn.Module, clips: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    network(clips).square().sum().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 8e-3)]
)
def test_outputs_and_gradients_are_pytorchs(dtype, tolerance):
    norm = norm_of(torch.float64 if dtype == torch.float64 else torch.float32)
    x = torch.randn(2, 6, 3, 5, 5, dtype=dtype, requires_grad=True)
    dy = torch.randn_like(x)
    y = norm(x)
    with pytorchs():
        expected = norm(x)
    assert type(y.grad_fn) is not type(expected.grad_fn) and torch.equal(y, expected)
    (dx,), (expected_dx,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, x, dy)
    assert dx.dtype == dtype
    torch.testing.assert_close(dx, expected_dx, rtol=tolerance, atol=0)


def test_the_gradient_is_that_of_differences():
    x = torch.randn(2, 6, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(norm_of(), [x])
    torch.autograd.gradgradcheck(norm_of(), [x])


@pytest.mark.parametrize("fake", [False, True])
def test_gradients_stay_channels_last_between_a_convolution_and_its_norm(fake):
    """On CPUs PyTorch's own backward pass does so too; the one on GPUs returns a contiguous gradient."""
    norm, seen = norm_of(torch.float32), []
    conv = nn.Conv3d(3, 6, 3, padding=1, bias=False).to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 3, 4, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    if fake:
        with FakeTensorMode(allow_non_fake_inputs=True):
            _, dy = run_pair(norm, conv, x, seen)
    else:
        _, dy = run_pair(norm, conv, x, seen)
    assert dy.is_contiguous(memory_format=torch.channels_last_3d)
    assert [g.is_contiguous(memory_format=torch.channels_last_3d) for g in seen] == [True]


def run_pair(norm, conv, x, seen):
    z = conv(x)
    z.register_hook(seen.append)
    y = norm(z)
    dy = torch.ones_like(y)
    y.backward(dy)
    return y, dy


@pytest.mark.parametrize("options", [{"frozen_bn": True}, {"frozen": ("res3", "res4")}])
@pytest.mark.parametrize("stages", [(), ("res2", "res3", "res4", "res5")])
def test_a_network_has_pytorchs_logits_and_gradients(options, stages, shallow):
    network = network_of(activation_checkpointing=stages, **options).double().train()
    again = copy.deepcopy(network)
    clips = torch.randn(CLIP, dtype=torch.float64)
    ours = gradients(network, clips)
    with pytorchs():
        expected = gradients(again, clips)
    assert ours.keys() == expected.keys() and "conv1.weight" in ours
    for name, gradient in ours.items():
        size = expected[name].abs().max().clamp_min(1e-6)  # that of phi's bias is zero but for rounding
        assert (gradient - expected[name]).abs().max() <= 1e-12 * size, name
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())


def test_where_nothing_trains_it_is_pytorchs():
    """Evaluation, batches without gradients, and gradients of gains that learn."""
    norm = norm_of(torch.float32)
    x = torch.randn(2, 6, 3, 5, 5)
    assert norm(x).grad_fn is None
    with torch.inference_mode():
        assert torch.equal(norm(x), F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))
    norm.requires_grad_(True)
    norm(x.requires_grad_()).sum().backward()
    assert norm.weight.grad is not None and norm.bias.grad is not None
    with pytest.raises(ValueError, match="expected 5D input"):
        norm_of(torch.float32)(torch.randn(2, 6, 5, 5, requires_grad=True))


def test_a_frozen_r50_saves_less():
    """2 clips; PyTorch's own kept the input of each norm besides the ReLU's output."""
    with torch.device("meta"):
        network = VideoResNet("i3d", 50, "paper", 400, frozen_bn=True)
    for dtype in (torch.float32, torch.bfloat16):
        ours = activation_bytes(network, (2, 3, 32, 224, 224), dtype)
        with pytorchs():
            before = activation_bytes(network, (2, 3, 32, 224, 224), dtype)
        assert ours <= 0.72 * before, f"{dtype}: {ours / 1e9:.2f} of {before / 1e9:.2f} GB"


def test_the_state_has_the_keys_of_batch_norm_and_it_is_one():
    norm, plain = norm_of(), nn.BatchNorm3d(6)
    assert isinstance(norm, nn.BatchNorm3d) and list(norm.state_dict()) == list(plain.state_dict())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(norm))[0]
    assert type(converted) is nn.SyncBatchNorm and not converted.weight.requires_grad and not converted.training
    assert torch.equal(converted.running_var, norm.running_var)


def test_the_network_is_compiled_as_one_graph(shallow):
    network = network_of(frozen_bn=True).train()
    compiled = torch.compile(copy.deepcopy(network), backend="aot_eager", fullgraph=True)
    clips = torch.randn(CLIP)
    expected = gradients(network, clips)
    found = {name.removeprefix("_orig_mod."): value for name, value in gradients(compiled, clips).items()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert (gradient - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max(), name
