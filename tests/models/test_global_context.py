import pytest
import torch
import torch.nn.functional as F

from nlvideo.models.global_context import GlobalContextBlock, SimplifiedNonLocalBlock, attention_map

SHAPES = [(2, 8, 3, 4, 5), (2, 8, 6, 5)]


def randomized(block):
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return block.double()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "block",
    [
        SimplifiedNonLocalBlock(8),
        GlobalContextBlock(8, ratio=2),
        GlobalContextBlock(8, ratio=4, pooling="average"),
        GlobalContextBlock(8, ratio=4, norm=False),
    ],
)
def test_an_additive_block_is_the_identity_when_new(block, shape):
    x = torch.randn(shape)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_multiplying_block_halves_its_input(shape):
    x = torch.randn(shape)
    assert torch.equal(GlobalContextBlock(8, ratio=2, fusion="mul")(x), x / 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_simplified_non_local_equals_the_sum_over_positions(shape):
    block, x = randomized(SimplifiedNonLocalBlock(8)), torch.randn(shape).double()
    for n in range(2):
        positions = x[n].flatten(1).T  # (P, C)
        weights = (positions @ block.key.weight[0] + block.key.bias).softmax(0)
        context = sum(w * v for w, v in zip(weights, positions, strict=True))
        expected = positions + block.value.weight @ context + block.value.bias
        torch.testing.assert_close(block(x)[n].flatten(1).T, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pooling", ["attention", "average"])
@pytest.mark.parametrize("fusion", ["add", "mul"])
@pytest.mark.parametrize("norm", [True, False])
def test_global_context_equals_the_text(shape, pooling, fusion, norm):
    block = randomized(GlobalContextBlock(8, ratio=2, pooling=pooling, fusion=fusion, norm=norm))
    x = torch.randn(shape).double()
    for n in range(2):
        positions = x[n].flatten(1).T
        context = positions.mean(0)
        if pooling == "attention":
            context = (positions @ block.key.weight[0] + block.key.bias).softmax(0) @ positions
        inner = block.squeeze.weight @ context + block.squeeze.bias
        if norm:
            inner = F.layer_norm(inner, (4,), block.norm.weight, block.norm.bias)
        change = block.expand.weight @ inner.relu() + block.expand.bias
        expected = positions + change if fusion == "add" else positions * change.sigmoid()
        torch.testing.assert_close(block(x)[n].flatten(1).T, expected)


def test_the_map_is_one_distribution_over_all_positions():
    block, x = randomized(SimplifiedNonLocalBlock(8)), torch.randn(2, 8, 3, 4, 5).double()
    weights = attention_map(x, block.key)
    assert weights.shape == (2, 60)
    torch.testing.assert_close(weights.sum(1), torch.ones(2).double())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "pooling='max' is unknown. Choose from: attention, average"),
        ({"fusion": "concat"}, "fusion='concat' is unknown. Choose from: add, mul"),
        ({"ratio": 0}, "ratio=0: must be at least 1 and at most the 8 channels"),
        ({"ratio": 16}, "ratio=16"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GlobalContextBlock(8, **options)
