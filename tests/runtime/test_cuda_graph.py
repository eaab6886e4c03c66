"""Recorded training passes, with PyTorch's recording stood in for: there is no GPU."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nlvideo.runtime.cuda_graph import WARM_UP_PASSES, record_passes
from nlvideo.runtime.precision import autocast

CPU = torch.device("cpu")


def record_without_a_gpu(module: nn.Module, clips: tuple[Tensor], num_warmup_iters: int) -> nn.Module:
    """Does what torch.cuda.make_graphed_callables does to a module's parameters and buffers."""
    assert module.training and not torch.is_autocast_enabled("cpu")
    for _ in range(num_warmup_iters):
        module(*clips).sum().backward()
    module.zero_grad()
    return module


def build(monkeypatch) -> tuple[nn.Module, Callable[[], nn.Module]]:
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record_without_a_gpu)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    contexts = []

    def context() -> torch.autocast:
        contexts.append(autocast(CPU, torch.bfloat16, cached=False))
        return contexts[-1]

    return network, lambda: record_passes(network, torch.rand(2, 3, 4, 5, 5), context)


def test_the_passes_of_the_warm_up_do_not_count(monkeypatch):
    network, record = build(monkeypatch)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    module = record()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    module(torch.rand(2, 3, 4, 5, 5))
    assert network[1].num_batches_tracked == 1  # the module's statistics are the network's
    assert WARM_UP_PASSES >= 3  # PyTorch's advice: workspaces of convolutions and of DistributedDataParallel


def test_the_recorded_pass_has_autocast_of_its_own_without_a_cache(monkeypatch):
    network, record = build(monkeypatch)
    seen = []
    network[0].register_forward_hook(lambda *_: seen.append((torch.is_autocast_enabled("cpu"), cached())))
    cached = torch.is_autocast_cache_enabled
    y = record()(torch.rand(2, 3, 4, 5, 5))
    assert y.dtype == torch.bfloat16 and set(seen) == {(True, False)}


def test_the_network_itself_stays_usable(monkeypatch):
    network, record = build(monkeypatch)
    module = record()
    assert [id(p) for p in module.parameters()] == [id(p) for p in network.parameters()]
    module.train()
    network.eval()
    assert network(torch.rand(1, 3, 4, 5, 5)).dtype == torch.float32
