import pytest
import torch
from torch import nn

from nlvideo.training.precise_bn import precise_statistics, using


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, 1), nn.BatchNorm3d(2))


@pytest.mark.parametrize("mode", [True, False])
def test_the_statistics_are_those_of_all_batches_and_the_networks_own_stay(mode):
    net = network().train(mode)
    batches = [torch.randn(5, 3, 2, 4, 4) * scale + scale for scale in (1.0, 2.0, 4.0)]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    statistics = precise_statistics(net, batches)
    assert net.training is mode
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert statistics.keys() == {f"{i}.running_{what}" for i in (1, 4) for what in ("mean", "var")}

    # What enters the first norm over all batches together: the variance between batches counts.
    inputs = torch.cat([net[0](batch) for batch in batches]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(statistics["1.running_mean"], inputs.mean(1))
    torch.testing.assert_close(statistics["1.running_var"], inputs.var(1, correction=0))
    # The second sees batches that the first has normalised by their own statistics.
    inside = torch.cat([net[:4].train()(batch) for batch in batches]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(statistics["4.running_mean"], inside.mean(1))
    torch.testing.assert_close(statistics["4.running_var"], inside.var(1, correction=0))


def test_other_statistics_are_used_and_taken_back():
    net = network().eval()
    x = torch.randn(2, 3, 2, 4, 4)
    own = net(x)
    statistics = precise_statistics(net, [torch.randn(5, 3, 2, 4, 4)])
    with using(net, statistics):
        assert not torch.allclose(net(x), own)
        assert torch.equal(net[1].running_mean, statistics["1.running_mean"])
    assert torch.equal(net(x), own)
