import math

import pytest
import torch

from nlvideo.attention import map_statistics as measures
from nlvideo.attention.maps import (
    AVERAGE,
    Attention,
    attention_maps,
    block_attention,
    deepest,
    dense_map,
    look,
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
def test_weights_times_the_blocks_values_are_its_output(mode, extent, options):
    block = randomized(NonLocalBlock(C, mode=mode, extent=extent, **options))
    x = torch.randn(N, C, T, H, W, dtype=DOUBLE)
    found = attention_of(block, x)
    assert found.kind == mode and found.weights.shape == (N, T * H * W, math.prod(found.key_grid))
    with torch.no_grad():
        g = block._keys_and_values(x)[1].flatten(2)
        y = pairwise.apply_map(found.weights, g).unflatten(2, (T, H, W))
        torch.testing.assert_close(block.bn(block.out(y)), found.change)
        torch.testing.assert_close(x + found.change, block(x))

    # a query sees its group, its frame or its place, and nothing else
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
def test_a_network_shows_its_blocks_and_stays_as_it_was(inside):
    network, clips = small_network(inside), torch.randn(1, 3, 8, 64, 64)
    order = []
    logits = look(network, clips, lambda found: order.append(found.place))
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


def test_hooks_go_also_when_the_network_fails():
    network = small_network(group_frames=3)
    with pytest.raises(ValueError, match="group_frames=3"):
        attention_maps(network, torch.randn(1, 3, 8, 64, 64))
    assert network.training and not any(m._forward_hooks for m in network.modules())


def test_positions_and_pixels():
    found = attention_of(randomized(NonLocalBlock(C)), torch.randn(1, C, 4, 5, 6, dtype=DOUBLE))
    times, ys, xs = found.key_centres()  # 2 frames and 8 pixels a position, 16 pixels a key; the fifth row is left out
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


def test_a_query_attends_to_the_key_that_is_planted():
    """theta is the same everywhere and phi the first channel, so all look where that is large."""
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


# statistics: each against a loop over pairs


def cosine(a, b) -> float:
    norms = a.norm() * b.norm()
    return (a @ b / norms).item() if norms > 0 else 0.0


def over_pairs(distance, vectors) -> float:
    return sum(distance(a, b) for a in vectors for b in vectors) / len(vectors) ** 2


def divergence(a, b) -> float:
    both = (a * torch.log(2 * a / (a + b)), b * torch.log(2 * b / (a + b)))
    return 0.5 * sum(part.nan_to_num().sum().item() for part in both)  # 0 log 0 = 0


def test_cosine_distance_over_all_pairs():
    vectors = torch.randn(30, 7, dtype=DOUBLE) + 1
    vectors[3] = 0
    wanted = over_pairs(lambda a, b: (1 - cosine(a, b)) / 2, vectors)
    assert measures.mean_cosine_distance(vectors) == pytest.approx(wanted, rel=1e-12)
    assert measures.mean_cosine_distance(vectors.float()) == pytest.approx(wanted, rel=1e-5)
    assert measures.mean_cosine_distance(torch.ones(9, 4)) == pytest.approx(0, abs=1e-7)
    assert measures.mean_cosine_distance(torch.zeros(9, 4)) == 0.5


@pytest.mark.parametrize("chunk", [1, 3 * 180, 2**21])
def test_jensen_shannon_divergence_over_all_pairs(chunk, monkeypatch):
    monkeypatch.setattr(measures, "JSD_CHUNK", chunk)
    rows = torch.randn(20, 9, dtype=DOUBLE).mul(3).softmax(1)
    rows[:5, :4] = 0
    rows /= rows.sum(1, keepdim=True)
    assert measures.mean_jsd(rows) == pytest.approx(over_pairs(divergence, rows), rel=1e-9)
    assert measures.mean_jsd(torch.eye(4)) == pytest.approx(0.75 * math.log(2))
    assert measures.mean_jsd(rows[:1]) == 0


def test_divergence_of_many_rows_is_that_of_some(monkeypatch):
    monkeypatch.setattr(measures, "MAX_JSD_ROWS", 40)
    rows = torch.randn(400, 9, dtype=DOUBLE).softmax(1)
    some = measures.mean_jsd(rows)
    assert some == measures.mean_jsd(rows)
    assert some == pytest.approx(over_pairs(divergence, rows[::10]), rel=0.2) and some != measures.mean_jsd(rows[:40])


@pytest.mark.parametrize(
    "block",
    [
        NonLocalBlock(C),
        NonLocalBlock(C, mode="dot_product", subsample=False),
        NonLocalBlock(C, mode="concatenation", group_frames=2),
        NonLocalBlock(C, extent="space"),
        NonLocalBlock(C, extent="time"),
        SimplifiedNonLocalBlock(C),
        GlobalContextBlock(C, ratio=2, pooling="average"),
    ],
    ids=["spacetime", "dot_product", "groups", "space", "time", "simplified", "average"],
)
def test_statistics_equal_loops_over_queries_and_keys(block):
    found = attention_of(randomized(block), torch.randn(2, C, T, 4, 6, dtype=DOUBLE))
    if not found.one_map:
        found.weights[:, 0] = 0  # as concatenation can have it
    (times, ys, xs), (key_times, key_ys, key_xs) = found.query_centres(), found.key_centres()
    means = []
    for rows in found.weights:
        of_queries = []
        for i, (t, h, w) in enumerate((t, h, w) for t in range(T) for h in range(4) for w in range(6)):
            row = rows[0 if len(rows) == 1 else i].view(found.key_grid).abs()
            if not row.any():
                continue
            row /= row.sum()
            away = [0.0] * 4
            for (a, b, c), share in zip(
                torch.cartesian_prod(*map(torch.arange, row.shape)), row.flatten(), strict=True
            ):
                away[0] += share.item() * math.hypot(ys[h] - key_ys[b], xs[w] - key_xs[c])
                away[1] += share.item() * abs(times[t] - key_times[a]).item()
                away[2] += share.item() * (a == t).item()
                away[3] -= share.item() * math.log(share) if share > 0 else 0
            of_queries.append(away)
        means.append(torch.tensor(of_queries, dtype=DOUBLE).mean(0))
    numbers = measures.statistics(found)
    mean = torch.stack(means).mean(0).tolist()
    assert [numbers.space, numbers.time, numbers.own_frame] == pytest.approx(mean[:3], rel=1e-9)
    assert numbers.entropy == pytest.approx(mean[3] / math.log(found.num_seen), rel=1e-9)

    rows = found.weights.expand(-1, T * 4 * 6, -1)
    for value, vectors in (
        (numbers.input, found.x.flatten(2).mT),
        (numbers.output, found.change.flatten(2).mT),
        (numbers.attention, rows),
    ):
        units = torch.nn.functional.normalize(vectors, dim=2)
        assert value == pytest.approx(((1 - units @ units.mT) / 2).mean().item(), abs=1e-9)
    if found.kind in ("dot_product", "concatenation", AVERAGE):
        assert math.isnan(numbers.jsd)
    elif found.one_map:
        assert (numbers.jsd, numbers.attention, numbers.output) == pytest.approx((0, 0, 0), abs=1e-12)


def test_even_attention_is_known():
    """Averaging over a clip: entropy 1, each frame its share, and |i - j| over 4 frames of 2 is 2.5 in the mean."""
    found = attention_of(
        randomized(GlobalContextBlock(C, ratio=2, pooling="average")), torch.randn(1, C, T, 1, 1).double()
    )
    numbers = measures.statistics(found)
    assert (numbers.entropy, numbers.own_frame, numbers.time) == pytest.approx((1, 0.25, 2.5))
    assert numbers.space == 0


def test_one_key_has_no_entropy_and_the_mean_leaves_it_out():
    found = attention_of(randomized(NonLocalBlock(C, extent="time")), torch.randn(1, C, 1, 2, 2).double())
    numbers = measures.statistics(found)
    assert math.isnan(numbers.entropy) and (numbers.own_frame, numbers.time, numbers.space) == (1, 0, 0)
    other = numbers._replace(entropy=0.5, space=3.0)
    assert measures.mean_statistics([numbers, other])[4:7] == (1.5, 0, 0.5)
