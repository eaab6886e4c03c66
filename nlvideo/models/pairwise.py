"""The pairwise operations of the non-local block, as plain functions.

y_i = 1/C(x) * sum_j f(x_i, x_j) g(x_j)                                   (non-local paper, Eq. 1)

B batch, N query positions, M key positions, D channels of theta and phi, E channels of g.

Each operation comes in two forms: exact without the N x M matrix of all pairs, for training and evaluation; and that
matrix (`..._map`), which `apply_map` multiplies by g: the reference, what attention pictures show, and the fallback for
exporters that lack an operator.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.backends import cuda

# One chunk of the matrix, where no fused kernel applies: on CPUs it stays in the cache; on GPUs it fills the chip, and
# is all of res4's matrices for 400 clips of 32 frames. Work on a chunk takes 2.5 times its bytes. A matrix of one chunk
# is kept for the backward pass on GPUs: on an H100, 8 clips then take 55 to 84 % of the time of computing it twice.
CHUNK_BYTES, CUDA_CHUNK_BYTES = 8 * 2**20, 256 * 2**20
EFFICIENT_MAX_WIDTH = 256  # above it, the backward pass of the memory-efficient kernel fills a quarter of the chip
BMM_WIDENS = hasattr(torch.ops.aten.bmm, "dtype")  # torch.bmm has out_dtype, from torch 2.8 on


def embedded_gaussian(theta: Tensor, phi: Tensor, g: Tensor, scale: float = 1.0) -> Tensor:
    """Returns y (B, E, N) with f = exp(scale * theta_i . phi_j), normalised by the sum over j (Eq. 2 and 3).

    The gaussian mode is the same operation with theta = phi = x. The paper has scale 1, the authors' code D ** -0.5.

    Args:
        theta: (B, D, N).
        phi: (B, D, M).
        g: (B, E, M).
        scale: factor on the logits before the softmax.
    """
    # Under autocast x and its pooled form may have another dtype than g, a convolution's output.
    query, key, value = (t.to(g.dtype).transpose(1, 2).unsqueeze(1) for t in (theta, phi, g))
    key, value = key.contiguous(), value.contiguous()
    if _fused_attention_takes(query, key, value):
        y = F.scaled_dot_product_attention(query.contiguous(), key, value, scale=scale)  # (B, 1, N, E)
    elif _is_one_chunk_on_a_gpu(query, key):
        y = _KeptAttention.apply(query, key, value, scale)
    else:
        y = _ChunkedAttention.apply(query, key, value, scale)
    return y.squeeze(1).transpose(1, 2)


def dot_product(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """Returns y (B, E, N) with f = theta_i . phi_j, normalised by the number of keys M (Eq. 4).

    There is no softmax, so the product is associative: theta (phi^T g) / M never forms the N x M matrix.

    Args:
        theta: (B, D, N).
        phi: (B, D, M).
        g: (B, E, M).
    """
    keys = phi.shape[2]
    if g.dtype != torch.float16:
        return torch.bmm(torch.bmm(g, phi.transpose(1, 2)) / keys, theta)
    # A sum over thousands of keys may overflow float16, and phi / M may fall below it. Powers of two are exact.
    part = 2.0 ** -(keys.bit_length() // 2)  # M * part ** 2 is between 1/2 and 2
    return torch.bmm(torch.bmm(g * part, phi.transpose(1, 2) * part) / (keys * part**2), theta)


def concatenation(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """Returns y (B, E, N) with f = ReLU(a_i + b_j), normalised by the number of keys M (Eq. 5).

    w_f^T [theta(x_i), phi(x_j)] is a sum of one number per query and one per key. With the keys in descending order of
    b, those with b_j > -a_i come first, so y_i follows from prefix sums of g and of b g at one index, found by binary
    search: O((N + M) (log M + E)) instead of O(N M E).

    Args:
        a: (B, N), theta times the query half of w_f.
        b: (B, M), phi times the key half of w_f.
        g: (B, E, M).
    """
    return _Concatenation.apply(a, b, g)


def embedded_gaussian_map(theta: Tensor, phi: Tensor, scale: float = 1.0) -> Tensor:
    """Returns the weights (B, N, M) of embedded_gaussian; rows sum to 1."""
    return (scale * torch.bmm(theta.transpose(1, 2), phi)).softmax(2)


def dot_product_map(theta: Tensor, phi: Tensor) -> Tensor:
    """Returns the weights (B, N, M) of dot_product, f / M."""
    return torch.bmm(theta.transpose(1, 2), phi) / phi.shape[2]


def concatenation_map(a: Tensor, b: Tensor) -> Tensor:
    """Returns the weights (B, N, M) of concatenation, f / M."""
    return F.relu(a.unsqueeze(2) + b.unsqueeze(1)) / b.shape[1]


def apply_map(weights: Tensor, g: Tensor) -> Tensor:
    """Returns y (B, E, N) for weights (B, N, M) and g (B, E, M)."""
    return torch.bmm(g, weights.transpose(1, 2))


def _fused_attention_takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Returns whether scaled_dot_product_attention has a kernel for these that does not store the matrix."""
    if query.device.type == "meta":  # _ChunkedAttention counts and saves what a fused kernel would
        return False
    if query.shape[-1] != value.shape[-1]:  # gaussian: C channels of x, C / 2 of g
        return False
    if query.device.type != "cuda":
        return True
    params = cuda.SDPAParams(query, key, value, None, 0.0, False, False)
    if cuda.can_use_flash_attention(params):
        return True
    return query.shape[-1] <= EFFICIENT_MAX_WIDTH and cuda.can_use_efficient_attention(params)


class _ChunkedAttention(torch.autograd.Function):
    """Attention in chunks of queries; the backward pass recomputes each chunk of the matrix."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        # query (B, 1, N, D), key (B, 1, M, D), value (B, 1, M, E)
        y = query.new_empty(*query.shape[:3], value.shape[3])
        norm = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        logit_key = _logit_key(key)
        for rows in _chunks(query, key):
            logits = _logits(query[:, :, rows], logit_key, scale)  # (B, 1, n, M)
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
        logit_key = _logit_key(key)
        for rows in _chunks(query, key):
            q, d = query[:, :, rows], dy[:, :, rows]
            logits = _logits(q, logit_key, ctx.scale)  # (B, 1, n, M)
            weights = logits.sub_(norm[:, :, rows, None]).exp_()
            dvalue += weights.to(d.dtype).mT @ d
            dlogits = (d @ value.mT).to(norm.dtype).sub_(delta[:, :, rows]).mul_(weights).mul_(ctx.scale).to(q.dtype)
            dquery[:, :, rows] = dlogits @ key
            dkey += dlogits.mT @ q
        return dquery, dkey.to(key.dtype), dvalue.to(value.dtype), None


class _KeptAttention(torch.autograd.Function):
    """Attention whose weights are kept for the backward pass, in the values' type: few kernels, for small matrices."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        # query (B, 1, N, D), key (B, 1, M, D), value (B, 1, M, E)
        weights = _logits(query, _logit_key(key), scale).softmax(3).to(value.dtype)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale = scale
        return weights @ value

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        query, key, value, weights = ctx.saved_tensors
        dweights = _logits(dy, _logit_key(value), 1.0)  # dy value^T: products of 16 bits into float32 as well
        dlogits = dweights.sub_((dweights * weights).sum(3, keepdim=True)).mul_(weights)
        dlogits = (dlogits if ctx.scale == 1 else dlogits.mul_(ctx.scale)).to(query.dtype)
        return dlogits @ key, dlogits.mT @ query, weights.mT @ dy, None


def _logit_key(key: Tensor) -> Tensor:
    """Returns the key (B, 1, M, D) that _logits takes: float32 or wider, except for what GPUs multiply in 16 bits."""
    return key if _multiplies_16_bits_to_32(key) else key.to(torch.promote_types(key.dtype, torch.float32))


def _logits(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Returns scale * query key^T, (B, 1, n, M), in float32 or wider.

    A logit of 1000 in bfloat16 is off by up to 4, a factor of 50 in its weight. Products of 16 bits are exact in
    float32, so GPUs multiply these as they are and add them up in float32.

    Args:
        query: (B, 1, n, D).
        key: (B, 1, M, D), from _logit_key.
    """
    if _multiplies_16_bits_to_32(key):
        logits = torch.bmm(query.squeeze(1), key.squeeze(1).mT, out_dtype=torch.float32).unsqueeze(1)
        return logits if scale == 1 else logits.mul_(scale)
    # Into a tensor of its own, because autocast would round the operands of `@` to 16 bits again.
    out = key.new_empty(*query.shape[:3], key.shape[2])
    return torch.matmul(scale * query.to(key.dtype), key.mT, out=out)


def _multiplies_16_bits_to_32(key: Tensor) -> bool:
    """Returns whether torch.bmm multiplies these into float32, which it does on GPUs."""
    return BMM_WIDENS and key.device.type == "cuda" and key.dtype in (torch.bfloat16, torch.float16)


def _is_one_chunk_on_a_gpu(query: Tensor, key: Tensor) -> bool:
    return query.device.type == "cuda" and 4 * query.shape[0] * query.shape[2] * key.shape[2] <= CUDA_CHUNK_BYTES


def _chunks(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Yields slices of queries whose rows of the matrix take about as many bytes as a chunk may."""
    most = CUDA_CHUNK_BYTES if query.device.type == "cuda" else CHUNK_BYTES
    size = max(1, most // (4 * query.shape[0] * key.shape[2]))
    for first in range(0, query.shape[2], size):
        yield slice(first, first + size)


class _Concatenation(torch.autograd.Function):
    """concatenation: keys in descending order of b, prefix sums, and one row of these per query.

    Sums accumulate in float64 (on CPUs torch's cumsum does so internally), and b is centred first: an offset that a and
    b share with opposite signs would otherwise enter the sums and cost precision.
    """

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, g: Tensor) -> Tensor:
        dtype = torch.promote_types(g.dtype, torch.float32)
        centre = b.double().mean(1, keepdim=True)
        shifted = a.double() + centre  # (B, N)
        falling, order = (b.double() - centre).sort(1, descending=True)  # (B, M)
        count = torch.searchsorted(-falling, shifted)  # (B, N): a_i + b_j > 0 for the first `count` sorted keys
        g_sorted = g.gather(2, order[:, None].expand_as(g)).to(_sum_dtype(g, dtype)).div_(b.shape[1])
        batch, keys = b.shape
        sums = g.new_zeros(2, batch, keys + 1, g.shape[1], dtype=dtype)  # prefix sums of g and of b g over 0..M keys
        sums[0, :, 1:] = g_sorted.cumsum(2).mT
        sums[1, :, 1:] = g_sorted.mul_(falling[:, None].to(g_sorted.dtype)).cumsum(2).mT
        shifted = shifted.to(dtype)
        row = (count + (keys + 1) * torch.arange(batch, device=count.device)[:, None]).flatten()
        rows = torch.stack((row, row + batch * (keys + 1)), 1)
        weights = torch.stack((shifted.flatten(), torch.ones_like(shifted).flatten()), 1)
        y = F.embedding_bag(rows, sums.flatten(0, 2), mode="sum", per_sample_weights=weights).view(*a.shape, -1)
        ctx.save_for_backward(shifted, falling, order, count, sums[0], g)
        ctx.dtypes = a.dtype, b.dtype
        return y.transpose(1, 2).to(g.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        shifted, falling, order, count, sums, g = ctx.saved_tensors
        batch, keys = falling.shape
        dy = dy.transpose(1, 2).to(sums.dtype).contiguous()  # (B, N, E)
        bucket = (count + (keys + 1) * torch.arange(batch, device=count.device)[:, None]).flatten()
        da, of_query, of_count = torch.empty_like(shifted).flatten(), dy.flatten(0, 1), sums.flatten(0, 1)
        for rows in _row_chunks(bucket):
            da[rows] = (of_query[rows] * of_count[bucket[rows]]).sum(1)

        # Queries with count > p contribute to the key at sorted index p: sum dy by count, then suffix sums over counts.
        bucket, members = bucket.sort()
        starts = torch.searchsorted(bucket, torch.arange(batch * (keys + 1), device=count.device))

        def seen(weights: Tensor | None) -> Tensor:
            """Returns sums (B, E, M) of dy (times weights) over the queries that contribute to each sorted key."""
            sums = F.embedding_bag(members, of_query, starts, mode="sum", per_sample_weights=weights)
            sums = sums.view(batch, keys + 1, -1)[:, 1:].mT.contiguous().to(_sum_dtype(g, dy.dtype))  # count 1..M
            before = sums.cumsum(2)
            return sums.add_(before[:, :, -1:]).sub_(before)

        plain = seen(None)
        index = order[:, None].expand_as(g)
        db_sorted = (g.gather(2, index) * plain).sum(1) / keys
        dg_sorted = plain.mul_(falling[:, None].to(plain.dtype)).add_(seen(shifted.flatten()[members])).div_(keys)
        dg = torch.empty_like(g).scatter_(2, index, dg_sorted.to(g.dtype))
        db = torch.empty_like(db_sorted).scatter_(1, order, db_sorted)
        return da.view_as(shifted).to(ctx.dtypes[0]), db.to(ctx.dtypes[1]), dg


def _sum_dtype(values: Tensor, dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if values.device.type == "cuda" else dtype


def _row_chunks(queries: Tensor) -> Iterator[slice]:
    """Yields slices of queries (B * N,); on CPUs few enough to stay in the cache."""
    size = 1024 if queries.device.type == "cpu" else len(queries)
    for first in range(0, len(queries), size):
        yield slice(first, first + size)
