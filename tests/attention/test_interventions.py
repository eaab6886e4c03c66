"""Replaced attention weights: blocks with their own weights are unchanged, and each intervention is what it says."""

import pytest
import torch

from nlvideo.attention.interventions import (
    INTERVENTIONS,
    MEAN_OVER_QUERIES,
    MEAN_OVER_VIDEOS,
    REMOVED,
    SHUFFLED,
    TRAINED,
    UNIFORM,
    MeanMap,
    change_of,
    collected_maps,
    replaced_maps,
)
from nlvideo.models.global_context import GlobalContextBlock, SimplifiedNonLocalBlock
from nlvideo.models.non_local import EXTENTS, MODES, NonLocalBlock
from nlvideo.models.resnet import VideoResNet, context_names

N, C, T, H, W = 3, 6, 4, 4, 6
DOUBLE = torch.float64
OTHERS = [
    lambda: SimplifiedNonLocalBlock(C),
    lambda: GlobalContextBlock(C, ratio=2),
    lambda: GlobalContextBlock(C, ratio=2, fusion="mul"),
    lambda: GlobalContextBlock(C, ratio=2, pooling="average"),
]


def randomized(block):
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return block.to(DOUBLE).eval()


def changed(weights, intervention, mean=None):
    return change_of(intervention, mean or MeanMap(), torch.Generator().manual_seed(0))(weights)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("options", [{}, {"pool": "after"}, {"subsample": False}, {"group_frames": 2}])
def test_a_block_with_its_own_weights_is_unchanged(mode, extent, options):
    block = randomized(NonLocalBlock(C, mode=mode, extent=extent, **options))
    x, seen = torch.randn(N, C, T, H, W, dtype=DOUBLE), []
    with torch.no_grad():
        z = block.with_map(x, lambda weights: seen.append(weights.shape) or weights)
        torch.testing.assert_close(z, block(x))
        assert (block.with_map(x, lambda weights: 0 * weights) - z).abs().max() > 0.01
    groups = T // options.get("group_frames", T)
    parts = {"spacetime": groups, "space": T, "time": groups * H * W}[extent]
    assert seen[0][:2] == (N, parts) and parts * seen[0][2] == T * H * W


@pytest.mark.parametrize("make", OTHERS)
def test_the_same_of_blocks_with_one_map(make):
    block, x, seen = randomized(make()), torch.randn(N, C, T, H, W, dtype=DOUBLE), []
    with torch.no_grad():
        z = block.with_map(x, lambda weights: seen.append(weights) or weights)
        torch.testing.assert_close(z, block(x))
        shifted = block.with_map(x, lambda weights: weights.roll(1, -1))
    assert seen[0].shape == (N, 1, 1, T * H * W)
    average = isinstance(block, GlobalContextBlock) and block.key is None
    assert torch.allclose(shifted, z) == average  # equal weights are the same wherever they are moved


def test_what_each_intervention_makes_of_the_weights():
    weights = torch.rand(N, 2, 5, 7, generator=torch.Generator().manual_seed(1), dtype=DOUBLE).softmax(-1)
    of_queries = changed(weights, MEAN_OVER_QUERIES)
    torch.testing.assert_close(of_queries[1, 1, 3], weights[1, 1].mean(0))
    torch.testing.assert_close(changed(weights, UNIFORM), torch.full_like(weights, 1 / 7))
    moved = changed(weights, SHUFFLED)
    torch.testing.assert_close(moved.sort(-1).values, weights.sort(-1).values)
    orders = (moved[..., None, :] == weights[..., :, None]).double().argmax(-2)
    assert len({tuple(order) for order in orders.flatten(0, 2).tolist()}) > 25  # of the 30 rows
    assert torch.equal(moved, changed(weights, SHUFFLED))
    mean = MeanMap()
    for part in weights.split(2):
        mean.add(part)
    torch.testing.assert_close(changed(weights, MEAN_OVER_VIDEOS, mean)[2], weights.mean(0))
    assert change_of(REMOVED, mean, torch.Generator()) is None


def test_uniform_weights_of_a_mode_without_softmax_keep_the_sum_of_the_row():
    weights = torch.randn(N, 1, 5, 7, dtype=DOUBLE)
    torch.testing.assert_close(changed(weights, UNIFORM).sum(-1), weights.sum(-1))


def network_of(inside: bool = False) -> VideoResNet:
    torch.manual_seed(0)
    makers = {place: lambda channels: NonLocalBlock(channels) for place in ("res4.1", "res3.1")}
    network = VideoResNet("c2d", 50, "all_frames", 3, width=4, blocks=makers, inside=inside)
    for name, p in network.named_parameters():
        if "bn" in name and name.endswith("weight"):  # where it starts at zero, blocks inside would have no effect
            torch.nn.init.uniform_(p, 0.5, 1)
    return network.to(DOUBLE).eval()


@pytest.mark.parametrize("inside", [False, True])
def test_only_the_named_blocks_of_a_network_change_and_only_while_they_are_replaced(inside):
    network, clips = network_of(inside), torch.randn(2, 3, 4, 48, 48, dtype=DOUBLE)
    means = {place: MeanMap() for place in network.places}
    with torch.no_grad():
        before = network(clips)
        with collected_maps(network, means):
            torch.testing.assert_close(network(clips), before)
        found = {}
        for chosen in (network.places[:1], network.places[1:], network.places):
            for kind in INTERVENTIONS:
                if kind != TRAINED:
                    changes = {p: change_of(kind, means[p], torch.Generator().manual_seed(0)) for p in chosen}
                    with replaced_maps(network, changes):
                        found[kind, tuple(chosen)] = network(clips)
        assert torch.equal(network(clips), before)
        without = network_of(inside)
        for name in context_names(without):
            torch.nn.init.zeros_(without.get_submodule(name).last_weight)
            torch.nn.init.zeros_(without.get_submodule(name).bn.bias)
        torch.testing.assert_close(found[REMOVED, tuple(network.places)], without(clips))
    assert all(mean.count == 2 for mean in means.values())
    assert len({tuple(z.flatten().tolist()) for z in found.values()}) == len(found) == 15
