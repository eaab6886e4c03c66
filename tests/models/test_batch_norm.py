"""Both short ways of batch norm against PyTorch's: the same results, less memory, gradients in channels last."""

import copy
from unittest.mock import patch

import pytest
import torch
from fake_gpus import Calls
from torch import nn
from torch.nn import functional as F

from nlvideo.models import batch_norm
from nlvideo.models.batch_norm import VideoBatchNorm3d
from nlvideo.models.cost import activation_bytes
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.models.resnet import DEPTHS, VideoResNet
from nlvideo.runtime.torch_private import FakeTensorMode, storage_id
from nlvideo.training.precise_bn import precise_statistics

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


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_norm_passes_gradients_by_a_forward_pass(frozen):
    """PyTorch's backward pass returns a contiguous gradient on GPUs, and only there: neither CPUs nor fake tensors show
    it. So this holds that none of its backward passes runs; tools/check_gpu.py looks at the layout."""
    norm = norm_of(torch.float32).requires_grad_(not frozen)
    x = torch.randn(2, 6, 4, 8, 8).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    y = norm(x)
    with Calls() as calls:
        y.backward(torch.ones_like(y))
    backwards = {name for name, _, _ in calls if "batch_norm" in name and "backward" in name}
    assert backwards == (set() if frozen else {"native_batch_norm_backward"})
    assert x.grad.is_contiguous(memory_format=torch.channels_last_3d)


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


# ---- as four dimensions, on GPUs in bfloat16; here wherever the layout allows ----


@pytest.fixture
def flat():
    with patch.object(batch_norm, "takes_four_dimensions", batch_norm._flattens):
        yield


def assert_as_pytorchs(x: torch.Tensor, tolerance: float) -> torch.Tensor:
    """Asserts that outputs, gradients and statistics in four dimensions are those in five; returns x's gradient."""
    norm = norm_of(torch.promote_types(x.dtype, torch.float32)).requires_grad_(True).train()
    plain = nn.BatchNorm3d(6).to(norm.weight.dtype)
    plain.load_state_dict(norm.state_dict())
    x = x.requires_grad_()
    y, expected = batch_norm.train_in_four_dimensions(norm, x), plain(x)
    dy = torch.randn_like(y)
    found = (y, *torch.autograd.grad(y, (x, norm.weight, norm.bias), dy))
    wanted = (expected, *torch.autograd.grad(expected, (x, plain.weight, plain.bias), dy))
    for value, want in zip(found, wanted, strict=True):
        assert value.dtype == want.dtype
        torch.testing.assert_close(value, want, rtol=tolerance, atol=tolerance)
    for name, value in norm.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-6, atol=1e-6)
    assert norm.num_batches_tracked == 1 and not y._is_view()
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    return found[1]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
@pytest.mark.parametrize("shape", [(2, 6, 3, 5, 4), (1, 6, 1, 5, 4), (2, 6, 3, 1, 1), (2, 6, 1, 1, 4), (2, 6, 1, 1, 1)])
def test_four_dimensions_give_pytorchs_outputs_gradients_and_statistics(dtype, tolerance, shape):
    x = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    assert batch_norm._flattens(x)
    dx = assert_as_pytorchs(x, tolerance)
    assert dx.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("sizes", [(2, 1, 5), (2, 5, 1), (1, 3, 5), (1, 1, 5), (2, 1, 1)])
def test_dimensions_of_one_may_have_any_stride(sizes):
    """As slices of larger clips have."""
    n, t, w = sizes
    numbers = torch.randn(n * t * w * 6, dtype=torch.float64)
    x = numbers.as_strided((n, 6, t, 1, w), (t * w * 6, 1, w * 6, 999, 6))
    assert batch_norm._flattens(x)
    assert_as_pytorchs(x, 1e-12)


def in_channels_last(network: nn.Module) -> nn.Module:
    """Makes convolutions give what those of GPUs do, in any dtype."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(lambda *args: args[2].contiguous(memory_format=torch.channels_last_3d))
    return network


@pytest.mark.parametrize("stages", [(), ("res2", "res3", "res4", "res5")])
def test_a_network_trains_the_same_in_four_dimensions(stages, flat, shallow):
    """With ReLUs in place, as those of the network are, and with recomputation."""
    network = in_channels_last(network_of(activation_checkpointing=stages).double()).train()
    again = copy.deepcopy(network)
    clips = torch.randn(CLIP, dtype=torch.float64)
    with patch.object(batch_norm, "train_in_four_dimensions", wraps=batch_norm.train_in_four_dimensions) as taken:
        ours = gradients(network, clips)
    norms = len([m for m in network.modules() if isinstance(m, VideoBatchNorm3d)])
    assert taken.call_count == (2 * norms - 1 if stages else norms)  # the stem's is not recomputed
    with pytorchs():
        expected = gradients(again, clips)
    for name, gradient in ours.items():
        size = expected[name].abs().max().clamp_min(1e-6)
        assert (gradient - expected[name]).abs().max() <= 1e-9 * size, name
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name], msg=name)
    assert network.bn1.num_batches_tracked == network.layer4[0].bn3.num_batches_tracked == 1


def test_precise_statistics_are_the_same_in_four_dimensions(shallow):
    network, clips = in_channels_last(network_of()), [torch.randn(CLIP) for _ in range(2)]
    expected = precise_statistics(network, clips)
    with patch.object(batch_norm, "takes_four_dimensions", batch_norm._flattens):
        found = precise_statistics(network, clips)
    assert found.keys() == expected.keys() and len(found) == 36
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert network.bn1.num_batches_tracked == 0


def test_bfloat16_in_channels_last_on_a_gpu_takes_four_dimensions():
    with FakeTensorMode():
        x = torch.empty(2, 64, 4, 28, 28, device="cuda", dtype=torch.bfloat16)
        assert not batch_norm.takes_four_dimensions(x)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        assert batch_norm.takes_four_dimensions(x)
        for other in (x.float(), x.half(), x.cpu(), x[:, :, :, ::2], x[:, :, 0], x[:1, :, :1, :1, :1], x[:0]):
            assert not batch_norm.takes_four_dimensions(other)
        flat = batch_norm._flat(x)
        assert storage_id(flat) == storage_id(x) and flat.is_contiguous(memory_format=torch.channels_last)
        assert not torch.compile(lambda: batch_norm.takes_four_dimensions(x), backend="eager", fullgraph=True)()


@pytest.mark.parametrize("shape", [(2, 64, 4, 28, 28), (2, 64, 4 * 28, 28)])
def test_only_bfloat16_is_not_left_to_cudnn_by_pytorch(shape):
    """Where this fails, an upgrade of torch has changed what takes_four_dimensions is for."""
    if torch.version.cuda is None:
        pytest.skip("this torch knows no CUDA")
    chosen = {}
    with FakeTensorMode():
        of_channels = [torch.empty(64, device="cuda") for _ in range(4)]
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = torch.empty(shape, device="cuda", dtype=dtype)
            chosen[dtype] = torch._C._select_batch_norm_backend(x, *of_channels, True, 1e-5).name
    assert chosen == {torch.float32: "Cudnn", torch.float16: "Cudnn", torch.bfloat16: "Native"}


def test_one_value_in_a_channel_is_refused_as_by_pytorch(flat):
    x = torch.randn(1, 6, 1, 1, 1).contiguous(memory_format=torch.channels_last_3d)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        VideoBatchNorm3d(6).train()(x)


def test_frozen_norms_evaluation_and_synchronised_norms_stay_out_of_four_dimensions(flat):
    x = torch.randn(2, 6, 3, 5, 5).contiguous(memory_format=torch.channels_last_3d)
    with patch.object(batch_norm, "train_in_four_dimensions", side_effect=AssertionError):
        norm_of(torch.float32)(x.requires_grad_()).sum().backward()
        VideoBatchNorm3d(6).eval()(x)
        assert type(nn.SyncBatchNorm.convert_sync_batchnorm(VideoBatchNorm3d(6))) is nn.SyncBatchNorm
        with pytest.raises(AssertionError):
            VideoBatchNorm3d(6).train()(x)
