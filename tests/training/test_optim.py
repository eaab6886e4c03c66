import pytest
import torch
from conftest import composed
from torch import nn

from nlvideo.models.non_local import NonLocalBlock
from nlvideo.models.resnet import VideoResNet
from nlvideo.training.optim import lr_at, param_groups


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.01), (149_999, 0.01), (150_000, 1e-3), (299_999, 1e-3), (300_000, 1e-4), (399_999, 1e-4)],
)
def test_the_papers_steps(step, expected):
    lr = lr_at(step, lr=0.01, max_steps=400_000, schedule="steps", milestones=[150_000, 300_000])
    assert lr == pytest.approx(expected)


def test_cosine_falls_from_lr_to_zero():
    lrs = [lr_at(step, lr=2.0, max_steps=10, schedule="cosine") for step in range(11)]
    assert lrs[0] == 2.0 and lrs[5] == pytest.approx(1.0) and lrs[10] == pytest.approx(0)
    assert lrs == sorted(lrs, reverse=True)


def test_warmup_rises_to_the_schedule():
    lrs = [lr_at(step, lr=1.0, max_steps=100, schedule="steps", warmup_steps=4) for step in range(6)]
    assert lrs == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_norm_parameters_do_not_decay_and_all_others_do():
    network = VideoResNet("i3d", 50, "paper", 5, width=8, blocks={"res4.4": NonLocalBlock})
    decayed, free = param_groups(network, 1e-4)
    assert decayed["weight_decay"] == 1e-4 and free["weight_decay"] == 0
    names = {id(p): name for name, p in network.named_parameters()}
    free_names = {names[id(p)] for p in free["params"]}
    decayed_names = {names[id(p)] for p in decayed["params"]}
    assert not free_names & decayed_names
    assert free_names | decayed_names == set(names.values())
    assert {"bn1.weight", "layer1.0.bn3.bias", "layer3.4_nl.bn.weight", "layer1.0.downsample.1.weight"} <= free_names
    assert {"fc.bias", "layer3.4_nl.theta.bias", "layer3.4_nl.out.weight", "conv1.weight"} <= decayed_names


def test_frozen_parameters_are_left_out():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network[1].requires_grad_(False)
    decayed, free = param_groups(network, 0.1)
    assert len(decayed["params"]) == 2 and free["params"] == []
    torch.optim.SGD(param_groups(network, 0.1), 0.1)


def test_the_recipes_of_paper_and_released_code():
    """Sec. 4.1, 5.1 and 5.2, and the released configs; the batch size scales lr linearly."""
    for recipe, batch, steps, expected in (
        ("kinetics", 64, 400_000, {0: 0.01, 149_999: 0.01, 150_000: 0.001, 300_000: 1e-4, 399_999: 1e-4}),
        ("kinetics_300k", 64, 300_000, {0: 0.01, 150_000: 0.001, 249_999: 0.001, 250_000: 1e-4}),
        ("kinetics_4gpu_600k", 32, 600_000, {0: 0.005, 299_999: 0.005, 300_000: 5e-4, 500_000: 5e-5}),
        ("kinetics_4gpu_300k", 32, 300_000, {0: 0.005, 150_000: 5e-4, 250_000: 5e-5}),
        ("long_clip", 16, 400_000, {0: 0.0025, 150_000: 2.5e-4, 300_000: 2.5e-5}),
        ("charades", 8, 200_000, {0: 0.00125, 74_999: 0.00125, 75_000: 1.25e-4, 150_000: 1.25e-5}),
    ):
        optim = composed(f"optim={recipe}", "data.root=x").optim
        assert (optim.batch_size, optim.max_steps, optim.momentum, optim.weight_decay) == (batch, steps, 0.9, 1e-4)
        lr = optim.lr * optim.batch_size / optim.lr_batch_size
        for step, value in expected.items():
            got = lr_at(step, lr=lr, max_steps=steps, schedule=optim.schedule, milestones=optim.milestones)
            assert got == pytest.approx(value), (recipe, step)
