"""The pairwise operations of the non-local block, as plain functions.

y_i = 1/C(x) * sum_j f(x_i, x_j) g(x_j)                                   (non-local paper, Eq. 1)

B batch, N query positions, M key positions, D channels of theta and phi, E channels of g.

Each operation comes twice: exact without the N x M matrix of all f, for training and evaluation, and as that matrix
(`..._map`), which `apply_map` multiplies with g: the reference, the way to look at what is attended, and the form for
exporters that lack an operator.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.backends import cuda

CHUNK_BYTES = 32 * 2**20  # of one chunk of the matrix where no fused kernel serves


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
    query, key, value = (t.transpose(1, 2).unsqueeze(1).contiguous() for t in (theta, phi, g))  # (B, 1, N or M, D or E)
    if _fused_attention_takes(query, key, value):
        y = F.scaled_dot_product_attention(query, key, value, scale=scale)  # (B, 1, N, E)
    else:
        y = _ChunkedAttention.apply(query, key, value, scale)
    return y.squeeze(1).transpose(1, 2)


def dot_product(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """Returns y (B, E, N) with f = theta_i . phi_j, normalised by the number of keys M (Eq. 4).

    Without a softmax the products re-associate, theta (phi^T g) / M, so the N x M matrix is never made.

    Args:
        theta: (B, D, N).
        phi: (B, D, M).
        g: (B, E, M).
    """
    return torch.bmm(torch.bmm(g, phi.transpose(1, 2)) / phi.shape[2], theta)


def concatenation(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """Returns y (B, E, N) with f = ReLU(a_i + b_j), normalised by the number of keys M (Eq. 5).

    w_f^T [theta(x_i), phi(x_j)] is a sum of one number per query and one per key. The j with b_j > -a_i are the first
    ones when the keys are sorted by falling b, so y_i follows from prefix sums of g and b g at one place, found by
    binary search: O((N + M) (log M + E)) instead of N M E.

    Args:
        a: (B, N), the query's half of w_f applied to theta.
        b: (B, M), the key's half of w_f applied to phi.
        g: (B, E, M).
    """
    return _Concatenation.apply(a, b, g.transpose(1, 2)).transpose(1, 2)


def embedded_gaussian_map(theta: Tensor, phi: Tensor, scale: float = 1.0) -> Tensor:
    """Returns the weights (B, N, M) of embedded_gaussian; each row sums to 1."""
    return (scale * torch.bmm(theta.transpose(1, 2), phi)).softmax(2)


def dot_product_map(theta: Tensor, phi: Tensor) -> Tensor:
    """Returns the weights (B, N, M) of dot_product, with 1/M."""
    return torch.bmm(theta.transpose(1, 2), phi) / phi.shape[2]


def concatenation_map(a: Tensor, b: Tensor) -> Tensor:
    """Returns the weights (B, N, M) of concatenation, with 1/M."""
    return F.relu(a.unsqueeze(2) + b.unsqueeze(1)) / b.shape[1]


def apply_map(weights: Tensor, g: Tensor) -> Tensor:
    """Returns y (B, E, N) for weights (B, N, M) and g (B, E, M)."""
    return torch.bmm(g, weights.transpose(1, 2))


def _fused_attention_takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether scaled_dot_product_attention has a kernel for these that does not keep the matrix."""
    if query.device.type == "meta":  # shapes and costs are asked for: what a fused kernel would compute and keep
        return False
    if query.shape[-1] != value.shape[-1]:  # gaussian: C channels of x, C / 2 of g
        return False
    if query.device.type == "cuda":
        params = cuda.SDPAParams(query, key, value, None, 0.0, False, False)
        return cuda.can_use_flash_attention(params) or cuda.can_use_efficient_attention(params)
    return True


class _ChunkedAttention(torch.autograd.Function):
    """Attention over chunks of queries; the backward pass computes each chunk of the matrix again."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        # query (B, 1, N, D), key (B, 1, M, D), value (B, 1, M, E)
        y = query.new_empty(*query.shape[:3], value.shape[3])
        norm = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for rows in _chunks(query, key):
            logits = (scale * query[:, :, rows] @ key.mT).to(norm.dtype)  # (B, 1, n, M)
            norm[:, :, rows] = logits.logsumexp(3)
            weights = logits.sub_(norm[:, :, rows, None]).exp_()
            y[:, :, rows] = weights.to(value.dtype) @ value
        ctx.save_for_backward(query, key, value, y, norm)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        query, key, value, y, norm = ctx.saved_tensors
        dquery = torch.empty_like(query)
        dkey, dvalue = torch.zeros_like(key, dtype=norm.dtype), torch.zeros_like(value, dtype=norm.dtype)
        delta = (dy.to(norm.dtype) * y).sum(3, keepdim=True)  # (B, 1, N, 1)
        for rows in _chunks(query, key):
            q, d = query[:, :, rows], dy[:, :, rows]
            weights = (ctx.scale * q @ key.mT).to(norm.dtype).sub_(norm[:, :, rows, None]).exp_()  # (B, 1, n, M)
            dvalue += weights.to(d.dtype).mT @ d
            dlogits = (d @ value.mT).to(norm.dtype).sub_(delta[:, :, rows]).mul_(weights).mul_(ctx.scale).to(q.dtype)
            dquery[:, :, rows] = dlogits @ key
            dkey += dlogits.mT @ q
        return dquery, dkey.to(key.dtype), dvalue.to(value.dtype), None


def _chunks(query: Tensor, key: Tensor):
    """Yields slices of queries, each of whose part of the matrix takes about CHUNK_BYTES."""
    size = max(1, CHUNK_BYTES // (4 * query.shape[0] * key.shape[2]))
    for first in range(0, query.shape[2], size):
        yield slice(first, first + size)


class _Concatenation(torch.autograd.Function):
    """concatenation with g as (B, M, E), giving (B, N, E): rows are what is sorted, summed and picked.

    The gradient for g is the same operation with queries and keys exchanged.
    """

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, g: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, g)
        y, _ = _relu_sums(a, b, g)
        return y.div_(b.shape[1]).to(g.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        a, b, g = ctx.saved_tensors
        dy = dy / b.shape[1]
        da = db = dg = None
        if ctx.needs_input_grad[0]:
            _, g_sums = _relu_sums(a, b, g, weighted=False)
            da = torch.einsum("bne,bne->bn", dy.to(g_sums.dtype), g_sums).to(a.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            dg, dy_sums = _relu_sums(b, a, dy)
            db = torch.einsum("bme,bme->bm", g.to(dy_sums.dtype), dy_sums).to(b.dtype)
            dg = dg.to(g.dtype)
        return da, db, dg


def _relu_sums(a: Tensor, b: Tensor, g: Tensor, weighted: bool = True) -> tuple[Tensor | None, Tensor]:
    """Returns sum_j ReLU(a_i + b_j) g_j and sum_{j: a_i + b_j > 0} g_j, both (B, N, E), at least float32.

    Sums run in float64. b is centred first: an offset that a and b share with opposite signs would otherwise be
    multiplied into the sums and eat their digits.
    """
    dtype = torch.promote_types(g.dtype, torch.float32)
    a, b = a.double(), b.double()
    centre = b.mean(1, keepdim=True)
    a, b = a + centre, b - centre
    falling, order = b.sort(1, descending=True)
    count = torch.searchsorted(-falling, a, right=False)  # (B, N): how many of the sorted keys have -b_j < a_i
    rows = torch.arange(b.shape[0], device=b.device)[:, None]

    def picked(values: Tensor) -> Tensor:
        """Sums of the first `count` sorted rows of values (B, M, E)."""
        sums = F.pad(values.cumsum(1, dtype=torch.float64).to(dtype), (0, 0, 1, 0))
        return sums[rows, count]

    g = g[rows, order]
    plain = picked(g)
    if not weighted:
        return None, plain
    return picked(falling[..., None] * g).addcmul_(a[..., None].to(dtype), plain), plain
