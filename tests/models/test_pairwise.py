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
