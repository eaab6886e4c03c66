"""Statistics of attention maps, each against a loop over all pairs."""

import math

import pytest
import torch

from nlvideo.attention import map_statistics as statistics
from nlvideo.attention.maps import AVERAGE, Attention, block_attention
from nlvideo.models.global_context import GlobalContextBlock, SimplifiedNonLocalBlock
from nlvideo.models.non_local import NonLocalBlock

C, T = 6, 4
CLIP = (8, 40, 48)
DOUBLE = torch.float64


def randomized(block):
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return block.to(DOUBLE).eval()


def attention_of(block, x) -> Attention:
    with torch.no_grad():
        return block_attention(block, x, block(x), "res4.1", CLIP)


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
    assert statistics.mean_cosine_distance(vectors) == pytest.approx(wanted, rel=1e-12)
    assert statistics.mean_cosine_distance(vectors.float()) == pytest.approx(wanted, rel=1e-5)
    assert statistics.mean_cosine_distance(torch.ones(9, 4)) == pytest.approx(0, abs=1e-7)
    assert statistics.mean_cosine_distance(torch.zeros(9, 4)) == 0.5


@pytest.mark.parametrize("chunk", [1, 3 * 180, 2**21])
def test_jensen_shannon_divergence_over_all_pairs(chunk, monkeypatch):
    monkeypatch.setattr(statistics, "JSD_CHUNK", chunk)
    rows = torch.randn(20, 9, dtype=DOUBLE).mul(3).softmax(1)
    rows[:5, :4] = 0
    rows /= rows.sum(1, keepdim=True)
    assert statistics.mean_jsd(rows) == pytest.approx(over_pairs(divergence, rows), rel=1e-9)
    assert statistics.mean_jsd(torch.eye(4)) == pytest.approx(0.75 * math.log(2))
    assert statistics.mean_jsd(rows[:1]) == 0


def test_divergence_of_many_rows_is_estimated_from_a_sample(monkeypatch):
    monkeypatch.setattr(statistics, "MAX_JSD_ROWS", 40)
    rows = torch.randn(400, 9, dtype=DOUBLE).softmax(1)
    some = statistics.mean_jsd(rows)
    assert some == statistics.mean_jsd(rows)
    assert some == pytest.approx(over_pairs(divergence, rows[::10]), rel=0.2) and some != statistics.mean_jsd(rows[:40])


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
        found.weights[:, 0] = 0  # concatenation can have such rows
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
    numbers = statistics.attention_statistics(found)
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


def test_even_attention():
    """Of an average over the clip: entropy 1, equal shares, and a mean |i - j| of 2.5 over 4 map frames of 2 frames."""
    found = attention_of(
        randomized(GlobalContextBlock(C, ratio=2, pooling="average")), torch.randn(1, C, T, 1, 1).double()
    )
    numbers = statistics.attention_statistics(found)
    assert (numbers.entropy, numbers.own_frame, numbers.time) == pytest.approx((1, 0.25, 2.5))
    assert numbers.space == 0


def test_the_entropy_of_one_key_is_undefined_and_ignored_by_the_mean():
    found = attention_of(randomized(NonLocalBlock(C, extent="time")), torch.randn(1, C, 1, 2, 2).double())
    numbers = statistics.attention_statistics(found)
    assert math.isnan(numbers.entropy) and (numbers.own_frame, numbers.time, numbers.space) == (1, 0, 0)
    other = numbers._replace(entropy=0.5, space=3.0)
    assert statistics.mean_statistics([numbers, other])[4:7] == (1.5, 0, 0.5)
