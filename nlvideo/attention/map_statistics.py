"""How much the maps of context blocks depend on the query, and how far they reach (GCNet, Cao et al. 2019, Sec. 3.1).

V vectors, D their length, R = Q queries or 1 row for all of them, K keys, T frames, H height, W width.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nlvideo.attention.maps import SOFTMAX, Attention

MAX_JSD_ROWS = 512  # positions drawn for the divergence, which has no closed form over all pairs
JSD_SEED = 0
JSD_CHUNK = 2**21  # numbers computed together


class Statistics(NamedTuple):
    """Numbers of one block, means over clips; NaN where one is not defined."""

    input: float  # cosine distance, 0 to 1, of x_i and x_j over all pairs of positions
    output: float  # of z_i - x_i and z_j - x_j
    attention: float  # of rows i and j of the map; rows that see different keys, as in group_frames, have cosine 0
    jsd: float  # Jensen-Shannon divergence of rows, 0 to log 2; softmax kinds only
    space: float  # mean distance attended, pixels of the network's input
    time: float  # the same in frames of the clip
    entropy: float  # 0: each query attends to one key, 1: evenly to all that it sees
    own_frame: float  # share of the weight on the query's own frame of the map


def statistics(found: Attention) -> Statistics:
    """Returns the numbers of one block, means over the clips of its map."""
    rows = []
    for n in range(len(found.weights)):
        weights, shares = found.weights[n], attended_shares(found.weights[n])
        rows.append(
            Statistics(
                mean_cosine_distance(found.x[n].flatten(1).T),
                mean_cosine_distance(found.change[n].flatten(1).T),
                mean_cosine_distance(weights),
                mean_jsd(weights) if found.kind in SOFTMAX else math.nan,
                *mean_distances(shares, found),
                mean_entropy(shares, found.num_seen),
                own_frame_share(shares, found),
            )
        )
    return mean_statistics(rows)


def mean_statistics(rows: list[Statistics]) -> Statistics:
    """Returns the mean of each number over those that are defined."""
    return Statistics(*torch.tensor(rows, dtype=torch.float64).nanmean(0).tolist())


def mean_cosine_distance(vectors: Tensor) -> float:
    """Returns the mean of (1 - cos(v_i, v_j)) / 2 over all pairs of vectors (V, D), i = j included (GCNet, Sec. 3.1).

    The mean over pairs of the products of unit vectors is the square of their mean. A vector of zeros has cosine 0 to
    all, also to itself.
    """
    norm = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
    scale = torch.where(norm > 0, 1 / norm, 0).to(vectors.dtype)
    mean = (scale @ vectors).double() / len(vectors)
    return max(1 - mean.square().sum().item(), 0.0) / 2


def mean_jsd(weights: Tensor) -> float:
    """Returns the mean Jensen-Shannon divergence, natural logarithm, over all pairs of rows (R, K) that sum to 1.

    GCNet, Sec. 3.1: 1/2 sum_k [v_ik log(2 v_ik / (v_ik + v_jk)) + v_jk log(2 v_jk / (v_ik + v_jk))], i = j included.
    Of more than MAX_JSD_ROWS rows so many are drawn, the same in every call.
    """
    if len(weights) > MAX_JSD_ROWS:
        drawn = torch.randperm(len(weights), generator=torch.Generator().manual_seed(JSD_SEED))[:MAX_JSD_ROWS]
        weights = weights[drawn.to(weights.device)]
    entropies, size = _entropies(weights), max(1, JSD_CHUNK // weights.numel())
    total = torch.zeros((), dtype=torch.float64, device=weights.device)
    for first in range(0, len(weights), size):  # these rows with themselves and, both ways round, all later ones
        middle = (weights[first : first + size, None] + weights[first:]) / 2
        apart = _entropies(middle) - (entropies[first : first + size, None] + entropies[first:]) / 2
        total += 2 * apart.sum() - apart[:, :size].sum()
    return max(total.item(), 0.0) / len(weights) ** 2


def attended_shares(weights: Tensor) -> Tensor:
    """Returns |w| / sum |w| for each row of weights (R, K); NaN for rows of zeros, which the means leave out."""
    shares = weights.abs()
    return shares.div_(shares.sum(1, keepdim=True))


def mean_distances(shares: Tensor, found: Attention) -> tuple[float, float]:
    """Returns how far away what is attended to lies from the query: in space, in pixels of the network's input, and
    in time, in frames of the clip.

    Both are expectations under shares (R, K), means over queries, between the centres of what query and key stand for.
    """
    (t, h, w), (query_times, query_ys, query_xs) = found.key_grid, found.query_centres()
    times, ys, xs = found.key_centres()
    shares = shares.view(-1, t, h * w)
    dy = query_ys[:, None, None, None] - ys[:, None]  # (H, 1, H', 1)
    dx = query_xs[:, None, None] - xs  # (W, 1, W'), which joins them to (H, W, H', W')
    pixels = (dy.square() + dx.square()).sqrt().reshape(-1, h * w).to(shares)  # (H*W, H'*W')
    frames = (query_times[:, None] - times).abs().to(shares)  # (T, T)
    by_place, by_time = shares.sum(1), shares.sum(2)
    if len(shares) > 1:
        by_place, by_time = by_place.view(t, -1, h * w), by_time.view(t, -1, t).transpose(0, 1)
    return ((by_place * pixels).sum(-1).nanmean().item(), (by_time * frames).sum(-1).nanmean().item())


def mean_entropy(shares: Tensor, num_seen: int) -> float:
    """Returns the entropy of shares (R, K) over log(num_seen), the largest that it can be; mean over rows.

    Of a single key there is none: NaN.
    """
    if num_seen == 1:
        return math.nan
    return (_entropies(shares).nanmean() / math.log(num_seen)).item()


def own_frame_share(shares: Tensor, found: Attention) -> float:
    """Returns the part of shares (R, K) that falls on the query's own frame of the map, mean over queries."""
    t = found.key_grid[0]
    by_time = shares.view(len(shares), t, -1).sum(2)
    if len(shares) == 1:
        return by_time.mean().item()  # each frame is the own one of as many queries
    return by_time.view(t, -1, t).diagonal(dim1=0, dim2=2).nanmean().item()


def _entropies(rows: Tensor) -> Tensor:
    """Returns -sum p log p of rows (..., K), with 0 log 0 = 0; many times faster than torch.special.entr on CPUs."""
    return -rows.clamp(min=torch.finfo(rows.dtype).tiny).log_().mul_(rows).sum(-1)
