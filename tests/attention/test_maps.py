import math

import pytest
import torch

from nlvideo.attention.maps import (
    AVERAGE,
    Attention,
    attention_maps,
    block_attention,
    deepest,
    dense_map,
    visit_attention,
)
from nlvideo.models import pairwise
from nlvideo.models.global_context import GlobalContextBlock, SimplifiedNonLocalBlock
from nlvideo.models.non_local import EXTENTS, MODES, NonLocalBlock
from nlvideo.models.resnet import VideoResNet

N, C, T, H, W = 2, 6, 4, 5, 6
CLIP = (8, 40, 48)
DOUBLE = torch.float64


def randomized(block):
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return block.to(DOUBLE).eval()


def attention_of(block, x) -> Attention:
    with torch.no_grad():
        return block_attention(block, x, block(x), "res4.1", CLIP)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("options", [{}, {"pool": "after"}, {"subsample": False}, {"group_frames": 2}])
def test_weights_times_values_are_the_blocks_output(mode, extent, options):
    block = randomized(NonLocalBlock(C, mode=mode, extent=extent, **options))
    x = torch.randn(N, C, T, H, W, dtype=DOUBLE)
    found = attention_of(block, x)
    assert found.kind == mode and found.weights.shape == (N, T * H * W, math.prod(found.key_grid))
    with torch.no_grad():
        g = block._keys_and_values(x)[1].flatten(2)
        y = pairwise.apply_map(found.weights, g).unflatten(2, (T, H, W))
        torch.testing.assert_close(block.bn(block.out(y)), found.change)
        torch.testing.assert_close(x + found.change, block(x))

    # a query attends to its group, its frame or its position, and to nothing else
    group = options.get("group_frames", T)
    rows = found.weights.view(N, T, H, W, *found.key_grid)
    seen = torch.zeros(rows.shape[1:], dtype=torch.bool)
    for t in range(T):
        first = t // group * group
        for h in range(H):
            for w in range(W):
                if extent == "time":
                    seen[t, h, w, first : first + group, h, w] = True
                else:
                    seen[t, h, w, slice(t, t + 1) if extent == "space" else slice(first, first + group)] = True
    assert (seen.flatten(0, 2).flatten(1).sum(1) == found.num_seen).all()
    assert not rows[:, ~seen].any()
    if mode in ("gaussian", "embedded_gaussian"):
        assert rows[:, seen].all()
        torch.testing.assert_close(found.weights.sum(2), torch.ones(N, T * H * W, dtype=DOUBLE))


@pytest.mark.parametrize(
    "block, kind",
    [
        (SimplifiedNonLocalBlock(C), "simplified_non_local"),
        (GlobalContextBlock(C, ratio=2), "global_context"),
        (GlobalContextBlock(C, ratio=2, fusion="mul"), "global_context"),
        (GlobalContextBlock(C, ratio=2, pooling="average"), AVERAGE),
    ],
)
def test_blocks_with_one_map(block, kind):
    block, x = randomized(block), torch.randn(N, C, T, H, W, dtype=DOUBLE)
    found = attention_of(block, x)
    assert found.kind == kind and found.one_map and found.weights.shape == (N, 1, T * H * W)
    assert found.key_grid == found.query_grid == (T, H, W) and found.num_seen == T * H * W
    context = pairwise.apply_map(found.weights, x.flatten(2)).squeeze(2)  # (N, C)
    with torch.no_grad():
        if kind == "simplified_non_local":
            change = block.value(context)[:, :, None, None, None].expand_as(x)
        else:
            change = block.expand(block.norm(block.squeeze(context)).relu())[:, :, None, None, None]
            change = x * change.sigmoid() - x if block.fusion == "mul" else change.expand_as(x)
    torch.testing.assert_close(found.change, change)


def small_network(inside: bool = False, **options) -> VideoResNet:
    places = ["res4.1", "res3.1"]  # not in the order of the network
    makers = {place: lambda channels: NonLocalBlock(channels, **options) for place in places}
    network = VideoResNet("i3d", 50, "pyslowfast", 3, width=4, blocks=makers, inside=inside)
    for name, p in network.named_parameters():
        if "bn" in name and name.endswith("weight"):
            torch.nn.init.uniform_(p, 0.5, 1)
    return network


@pytest.mark.parametrize("inside", [False, True])
def test_maps_of_a_network_leave_it_unchanged(inside):
    network, clips = small_network(inside), torch.randn(1, 3, 8, 64, 64)
    order = []
    logits = visit_attention(network, clips, lambda found: order.append(found.place))
    found = attention_maps(network, clips)
    assert network.training and not any(m._forward_hooks for m in network.modules())
    assert order == ["res3.1", "res4.1"] and [f.place for f in found] == ["res4.1", "res3.1"]
    assert deepest(network.places) == "res4.1" and deepest(["res4.9", "res4.10", "res3.3"]) == "res4.10"
    assert found[0].query_grid == (4, 4, 4) and found[0].key_grid == (4, 2, 2)
    assert found[1].query_grid == (4, 8, 8) and found[1].key_grid == (4, 4, 4)
    network.eval()
    torch.testing.assert_close(logits, network(clips))
    for seen, name in zip(found, ("layer3.1", "layer2.1"), strict=True):
        block = network.get_submodule(f"{name}.context" if inside else f"{name}_nl")
        with torch.no_grad():
            torch.testing.assert_close(block(seen.x) - seen.x, seen.change)
            assert torch.equal(dense_map(block, seen.x), seen.weights)
        assert seen.change.abs().max() > 1e-3


def test_hooks_are_removed_when_the_forward_pass_fails():
    network = small_network(group_frames=3)
    with pytest.raises(ValueError, match="group_frames=3"):
        attention_maps(network, torch.randn(1, 3, 8, 64, 64))
    assert network.training and not any(m._forward_hooks for m in network.modules())


def test_positions_and_pixels():
    found = attention_of(randomized(NonLocalBlock(C)), torch.randn(1, C, 4, 5, 6, dtype=DOUBLE))
    times, ys, xs = found.key_centres()  # positions of 2 frames and 8 pixels, keys of 16; none in the fifth row
    assert times.tolist() == [0.5, 2.5, 4.5, 6.5] and ys.tolist() == [7.5, 23.5] and xs.tolist() == [7.5, 23.5, 39.5]
    assert found.query_centres()[1].tolist() == [3.5, 11.5, 19.5, 27.5, 35.5]
    assert found.query_at(0, 0, 0) == found.query_at(1, 7, 7) == 0
    assert found.query_at(7, 47, 39) == 4 * 5 * 6 - 1 and found.query_at(3, 8, 17) == 30 + 2 * 6 + 1
    weights = torch.zeros(found.key_grid)
    weights[2, 1, 2], weights[0, 0, 1] = -0.5, 0.25
    first, second = found.strongest(weights, 5)
    assert first == (5, 40, 24, -0.5) and second == (1, 24, 8, 0.25)
    assert found.query_at(first.frame, first.x, first.y) == 2 * 30 + 3 * 6 + 5
    assert found.most_attended()[:3] == found.strongest(found.weights[0].mean(0).view(4, 2, 3), 1)[0][:3]


def test_queries_attend_to_a_planted_key():
    """theta is constant and phi the first channel, so all queries attend to where that channel is large."""
    block = NonLocalBlock(C, inner_channels=2).to(DOUBLE).eval()
    with torch.no_grad():
        for p in (block.theta.weight, block.phi.weight, block.phi.bias):
            p.zero_()
        block.theta.bias.copy_(torch.tensor([1.0, 0.0]))
        block.phi.weight[0, 0] = 1
    x = torch.randn(1, C, T, H, W, dtype=DOUBLE) * 0.1
    x[0, 0, 2, 1, 4] = 9
    found = attention_of(block, x)
    for query in (0, 57, 119):
        (target,) = found.strongest(found.row(query), 1)
        assert target[:3] == (5, 40, 8) and target.weight > 0.9  # frames 4 and 5, x 32 to 47, y 0 to 15
    assert found.most_attended()[:3] == (5, 40, 8)
