import math

import pytest
import torch

from nlvideo.models import pairwise

B, D, E, N, M = 2, 4, 3, 10, 6


def random_inputs(dtype=torch.float64):
    return torch.randn(B, D, N, dtype=dtype), torch.randn(B, D, M, dtype=dtype), torch.randn(B, E, M, dtype=dtype)


def slow(theta, phi, g, f, normalize):
    """y_i = 1/C sum_j f(i, j) g_j, position by position."""
    y = torch.zeros(theta.shape[0], g.shape[1], theta.shape[2], dtype=g.dtype)
    for b in range(theta.shape[0]):
        for i in range(theta.shape[2]):
            weights = [f(theta[b, :, i], phi[b, :, j]) for j in range(phi.shape[2])]
            c = normalize(weights)
            for j, weight in enumerate(weights):
                y[b, :, i] += weight / c * g[b, :, j]
    return y


def test_embedded_gaussian_equals_the_sum_over_positions():
    theta, phi, g = random_inputs()
    expected = slow(theta, phi, g, lambda t, p: math.exp(0.7 * (t @ p)), sum)
    torch.testing.assert_close(pairwise.embedded_gaussian(theta, phi, g, scale=0.7), expected, rtol=1e-10, atol=1e-12)


def test_dot_product_equals_the_sum_over_positions():
    theta, phi, g = random_inputs()
    expected = slow(theta, phi, g, lambda t, p: t @ p, len)
    torch.testing.assert_close(pairwise.dot_product(theta, phi, g), expected, rtol=1e-10, atol=1e-12)


def test_concatenation_equals_the_sum_over_positions():
    a, b, g = torch.randn(B, N).double(), torch.randn(B, M).double(), torch.randn(B, E, M).double()
    expected = slow(a[:, None], b[:, None], g, lambda t, p: max(t.item() + p.item(), 0.0), len)
    torch.testing.assert_close(pairwise.concatenation(a, b, g), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("operation", [pairwise.embedded_gaussian, pairwise.dot_product])
def test_gradients(operation):
    inputs = [t.requires_grad_() for t in random_inputs()]
    torch.autograd.gradcheck(operation, inputs)


def test_concatenation_gradients():
    inputs = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((B, N), (B, M), (B, E, M))]
    torch.autograd.gradcheck(pairwise.concatenation, inputs)


# ---- against the matrix form, on inputs that are hard ----


def softmax_inputs(kind, dtype):
    theta, phi, g = (torch.randn(B, size, n, dtype=dtype) for size, n in ((D, 60), (D, 21), (E, 21)))
    if kind == "large logits":
        theta = theta * 30
    elif kind == "tied":
        theta, phi = theta.round(), phi.round()
    elif kind == "equal keys":
        phi = phi[:, :, :1].expand_as(phi).contiguous()
    elif kind == "as wide as g":
        g = torch.randn(B, D, 21, dtype=dtype)
    return theta, phi, g


def concatenation_inputs(kind, dtype):
    a, b, g = torch.randn(B, 60, dtype=dtype), torch.randn(B, 21, dtype=dtype), torch.randn(B, E, 21, dtype=dtype)
    if kind == "all negative":
        a = a - 100
    elif kind == "all positive":
        a = a + 100
    elif kind == "equal b":
        b = torch.full_like(b, 0.3)
    elif kind == "tied":
        a, b = a.round(), b.round()  # many sums are exactly zero
    elif kind == "offset 1000":
        a, b = a + 1000, b - 1000
    elif kind == "offset -1000":
        a, b = a - 1000, b + 1000
    elif kind == "large":
        a, b = a * 1000, b * 1000
    return a, b, g


def assert_agree(fast, plain, inputs, tolerance, least=0.0):
    """Asserts that outputs and gradients are within tolerance * max of the matrix form's, computed in float64.

    `least` is the lower bound of that max, for inputs where everything cancels.
    """
    ours = [t.clone().requires_grad_() for t in inputs]
    exact = [t.double().requires_grad_() for t in inputs]
    y, expected = fast(*ours), plain(*exact)
    assert y.dtype == inputs[0].dtype and y.shape == expected.shape
    dy = torch.randn_like(expected)
    gradients = torch.autograd.grad(y, ours, dy.to(y.dtype))
    expected_gradients = torch.autograd.grad(expected, exact, dy)
    for name, value, want in zip(
        ("y", "d first", "d second", "d g"), (y, *gradients), (expected, *expected_gradients), strict=True
    ):
        error, size = (value.double() - want).abs().max(), want.abs().max()
        assert error <= tolerance * max(size, least), f"{name}: {error / size:.1e}"


TOLERANCES = [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.04)]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("kind", ["random", "as wide as g", "tied", "equal keys"])
@pytest.mark.parametrize("chunk_bytes", [2**25, 4 * B * 21 * 7])  # one chunk, and chunks of seven queries
def test_embedded_gaussian_agrees_with_its_matrix(kind, dtype, tolerance, chunk_bytes, monkeypatch):
    monkeypatch.setattr(pairwise, "CHUNK_BYTES", chunk_bytes)
    plain = lambda t, p, g: pairwise.apply_map(pairwise.embedded_gaussian_map(t, p, 0.5), g)  # noqa: E731
    fast = lambda t, p, g: pairwise.embedded_gaussian(t, p, g, 0.5)  # noqa: E731
    assert_agree(fast, plain, softmax_inputs(kind, dtype), tolerance, least=1.0 if kind == "equal keys" else 0.0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_large_logits_do_not_overflow(dtype, tolerance):
    """Rounding logits of several hundred to float32 changes weights by 1e-5 and gradients by 1e-4 on its own."""
    plain = lambda t, p, g: pairwise.apply_map(pairwise.embedded_gaussian_map(t, p), g)  # noqa: E731
    assert_agree(pairwise.embedded_gaussian, plain, softmax_inputs("large logits", dtype), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.015)])
def test_logits_of_a_thousand_are_not_rounded_to_16_bits(dtype, tolerance):
    """Rounded, they were off by up to 4 and gradients by 89 % in bfloat16, by 8 % in float16. Under autocast, too."""
    torch.manual_seed(0)
    theta, phi, g = torch.randn(B, 48, 300) * 6.5, torch.randn(B, 48, 80) * 6.5, torch.randn(B, 24, 80)
    inputs = [t.to(dtype) for t in (theta, phi, g)]
    plain = lambda t, p, g: pairwise.apply_map(pairwise.embedded_gaussian_map(t, p), g)  # noqa: E731
    assert_agree(pairwise.embedded_gaussian, plain, inputs, tolerance)
    with torch.autocast("cpu", dtype):
        again = pairwise.embedded_gaussian(*inputs)
    assert torch.equal(again, pairwise.embedded_gaussian(*inputs))


@pytest.mark.parametrize("keys", [1, 2, 3, 3136, 4096])
@pytest.mark.parametrize("size", [0.3, 12.0])
def test_dot_product_in_float16_does_not_overflow(keys, size):
    """3136 products of 12 * 12 are seven times the largest float16."""
    inputs = [(size * torch.rand(B, n, m)).half() for n, m in ((D, 60), (D, keys), (E, keys))]
    plain = lambda t, p, g: pairwise.apply_map(pairwise.dot_product_map(t, p), g)  # noqa: E731
    y = pairwise.dot_product(*inputs)
    expected = plain(*(t.double() for t in inputs))
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.double(), expected, rtol=4e-3, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("kind", ["random", "large logits", "equal keys"])
def test_dot_product_agrees_with_its_matrix(kind, dtype, tolerance):
    plain = lambda t, p, g: pairwise.apply_map(pairwise.dot_product_map(t, p), g)  # noqa: E731
    assert_agree(pairwise.dot_product, plain, softmax_inputs(kind, dtype), tolerance)


KINDS = ["random", "all negative", "all positive", "equal b", "tied", "offset 1000", "offset -1000", "large"]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("kind", KINDS)
def test_concatenation_agrees_with_its_matrix(kind, dtype, tolerance):
    plain = lambda a, b, g: pairwise.apply_map(pairwise.concatenation_map(a, b), g)  # noqa: E731
    assert_agree(pairwise.concatenation, plain, concatenation_inputs(kind, dtype), tolerance)


@pytest.mark.parametrize("kind", ["random", "all negative", "all positive", "offset 1000"])
def test_concatenation_gradients_by_differences(kind):
    inputs = [t.requires_grad_() for t in concatenation_inputs(kind, torch.float64)]
    torch.autograd.gradcheck(pairwise.concatenation, [t[..., :9].contiguous() for t in inputs], eps=1e-7)


def test_chunked_attention_gradients_by_differences(monkeypatch):
    monkeypatch.setattr(pairwise, "CHUNK_BYTES", 4 * B * M * 3)
    torch.autograd.gradcheck(pairwise.embedded_gaussian, [t.requires_grad_() for t in random_inputs()])


def test_kept_attention_gradients_by_differences(monkeypatch):
    monkeypatch.setattr(pairwise, "_fused_attention_takes", lambda *_: False)
    monkeypatch.setattr(pairwise, "_is_one_chunk_on_a_gpu", lambda *_: True)
    inputs = [t.requires_grad_() for t in random_inputs()]
    torch.autograd.gradcheck(lambda *x: pairwise.embedded_gaussian(*x, 0.7), inputs)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
def test_kept_attention_gives_what_chunks_give(dtype, tolerance, monkeypatch):
    monkeypatch.setattr(pairwise, "_fused_attention_takes", lambda *_: False)
    inputs, results = softmax_inputs("random", dtype), []
    for kept in (True, False):
        monkeypatch.setattr(pairwise, "_is_one_chunk_on_a_gpu", lambda *_, kept=kept: kept)
        ours = [t.clone().requires_grad_() for t in inputs]
        y = pairwise.embedded_gaussian(*ours, 0.5)
        results.append((y, *torch.autograd.grad(y, ours, torch.ones_like(y))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_rows_of_a_softmax_map_sum_to_one():
    theta, phi, _ = random_inputs()
    torch.testing.assert_close(pairwise.embedded_gaussian_map(theta, phi).sum(2), torch.ones(B, N).double())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
def test_one_chunk_gives_what_many_give(dtype, tolerance, monkeypatch):
    inputs = softmax_inputs("random", dtype)
    results = []
    for chunk_bytes in (2**40, 4 * B * 21 * 7):
        monkeypatch.setattr(pairwise, "CHUNK_BYTES", chunk_bytes)
        ours = [t.clone().requires_grad_() for t in inputs]
        y = pairwise.embedded_gaussian(*ours, 0.5)
        results.append((y, *torch.autograd.grad(y, ours, torch.ones_like(y))))
    for one, many in zip(*results, strict=True):
        torch.testing.assert_close(one, many, rtol=tolerance, atol=tolerance)
