"""The pairwise operations of the non-local block, as plain functions.

y_i = 1/C(x) * sum_j f(x_i, x_j) g(x_j)                                   (non-local paper, Eq. 1)

B batch, N query positions, M key positions, D channels of theta and phi, E channels of g.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def embedded_gaussian(theta: Tensor, phi: Tensor, g: Tensor, scale: float = 1.0) -> Tensor:
    """Returns y (B, E, N) with f = exp(scale * theta_i . phi_j), normalised by the sum over j (Eq. 2 and 3).

    The gaussian mode is the same operation with theta = phi = x. `scale` is 1 in the paper and
    D ** -0.5 in the authors' code.

    Args:
        theta: (B, D, N).
        phi: (B, D, M).
        g: (B, E, M).
        scale: factor on the logits before the softmax.
    """
    # The fused kernels of scaled_dot_product_attention do not keep the N x M matrix for the backward pass.
    query, key, value = (t.transpose(1, 2).unsqueeze(1).contiguous() for t in (theta, phi, g))  # (B, 1, N or M, D or E)
    y = F.scaled_dot_product_attention(query, key, value, scale=scale)  # (B, 1, N, E)
    return y.squeeze(1).transpose(1, 2)


def dot_product(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """Returns y (B, E, N) with f = theta_i . phi_j, normalised by the number of keys M (Eq. 4).

    Without a softmax the products re-associate, theta (phi^T g) / M, so the N x M matrix is never made.

    Args:
        theta: (B, D, N).
        phi: (B, D, M).
        g: (B, E, M).
    """
    summary = torch.einsum("bem,bdm->bed", g, phi / phi.shape[2])
    return torch.einsum("bed,bdn->ben", summary, theta)


def concatenation(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """Returns y (B, E, N) with f = ReLU(a_i + b_j), normalised by the number of keys M (Eq. 5).

    w_f^T [theta(x_i), phi(x_j)] is a sum of one number per query and one per key, a_i + b_j, so the
    concatenated pairs are never made.

    Args:
        a: (B, N), the query's half of w_f applied to theta.
        b: (B, M), the key's half of w_f applied to phi.
        g: (B, E, M).
    """
    f = F.relu(a.unsqueeze(2) + b.unsqueeze(1))  # (B, N, M)
    return torch.einsum("bnm,bem->ben", f, g / g.shape[2])
