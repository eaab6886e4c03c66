"""How much attention maps depend on the query, and how far they reach (GCNet, Cao et al. 2019, Sec. 3.1).

V vectors of length D; R rows, one per query or one for all of them; K keys, T frames, H height, W width.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nlvideo.attention.maps import SOFTMAX, Attention

MAX_JSD_ROWS = 512  # sampled for the divergence, which has no closed form over all pairs
JSD_SEED = 0
JSD_CHUNK = 2**21  # elements computed at a time


class MapStatistics(NamedTuple):
    """Statistics of one block's map, means over clips; NaN where undefined."""

    input: float  # cosine distance, 0 to 1, of x_i and x_j over all pairs of positions
    output: float  # the same of z_i - x_i and z_j - x_j
    attention: float  # the same of rows i and j of the map; rows over different keys (group_frames) have cosine 0
    jsd: float  # Jensen-Shannon divergence of rows, 0 to log 2; softmax kinds only
    space: float  # mean distance from query to key, in pixels of the network's input
    time: float  # the same in frames of the clip
    entropy: float  # 0: each query attends to a single key; 1: evenly to all its keys
    own_frame: float  # share of the weight on the query's own frame of the map


def attention_statistics(attention: Attention) -> MapStatistics:
    """Returns the statistics of one block, means over the clips of its map."""
    of_clips = []
    for n in range(len(attention.weights)):
        weights, shares = attention.weights[n], attended_shares(attention.weights[n])
        space, time = mean_distances(shares, attention)
        of_clips.append(
            MapStatistics(
                input=mean_cosine_distance(attention.x[n].flatten(1).T),
                output=mean_cosine_distance(attention.change[n].flatten(1).T),
                attention=mean_cosine_distance(weights),
                jsd=mean_jsd(weights) if attention.kind in SOFTMAX else math.nan,
                space=space,
                time=time,
                entropy=mean_entropy(shares, attention.num_seen),
                own_frame=own_frame_share(shares, attention),
            )
        )
    return mean_statistics(of_clips)


def mean_statistics(of_clips: list[MapStatistics]) -> MapStatistics:
    """Returns the mean of each number over the clips where it is defined."""
    return MapStatistics(*torch.tensor(of_clips, dtype=torch.float64).nanmean(0).tolist())


def mean_cosine_distance(vectors: Tensor) -> float:
    """Returns the mean of (1 - cos(v_i, v_j)) / 2 over all pairs of vectors (V, D), i = j included (GCNet, Sec. 3.1).

    The mean product of unit vectors over all pairs is the squared norm of their mean. A zero vector has cosine 0 to all
    vectors, itself included.
    """
    norm = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
    scale = torch.where(norm > 0, 1 / norm, 0).to(vectors.dtype)
    mean = (scale @ vectors).double() / len(vectors)
    return max(1 - mean.square().sum().item(), 0.0) / 2


def mean_jsd(weights: Tensor) -> float:
    """Returns the mean Jensen-Shannon divergence in nats over all pairs of rows (R, K), each summing to 1.

    GCNet, Sec. 3.1: 1/2 sum_k [v_ik log(2 v_ik / (v_ik + v_jk)) + v_jk log(2 v_jk / (v_ik + v_jk))], i = j included.
    More than MAX_JSD_ROWS rows are sampled down to that number, always the same ones.
    """
    if len(weights) > MAX_JSD_ROWS:
        drawn = torch.randperm(len(weights), generator=torch.Generator().manual_seed(JSD_SEED))[:MAX_JSD_ROWS]
        weights = weights[drawn.to(weights.device)]
    entropies, size = _entropies(weights), max(1, JSD_CHUNK // weights.numel())
    total = torch.zeros((), dtype=torch.float64, device=weights.device)
    for first in range(0, len(weights), size):  # rows of a chunk with each other, and twice with all later ones
        middle = (weights[first : first + size, None] + weights[first:]) / 2
        apart = _entropies(middle) - (entropies[first : first + size, None] + entropies[first:]) / 2
        total += 2 * apart.sum() - apart[:, :size].sum()
    return max(total.item(), 0.0) / len(weights) ** 2


def attended_shares(weights: Tensor) -> Tensor:
    """Returns |w| / sum |w| for each row of weights (R, K); rows of zeros become NaN, which the means ignore."""
    shares = weights.abs()
    return shares.div_(shares.sum(1, keepdim=True))


def mean_distances(shares: Tensor, attention: Attention) -> tuple[float, float]:
    """Returns the mean distance from query to key, in pixels of the network's input and in frames of the clip.

    Both are expectations under shares (R, K), averaged over queries, between the centres of query and key.
    """
    (t, h, w), (query_times, query_ys, query_xs) = attention.key_grid, attention.query_centres()
    times, ys, xs = attention.key_centres()
    shares = shares.view(-1, t, h * w)
    dy = query_ys[:, None, None, None] - ys[:, None]  # (H, 1, H', 1)
    dx = query_xs[:, None, None] - xs  # (W, 1, W'): together they broadcast to (H, W, H', W')
    pixels = (dy.square() + dx.square()).sqrt().reshape(-1, h * w).to(shares)  # (H*W, H'*W')
    frames = (query_times[:, None] - times).abs().to(shares)  # (T, T)
    by_place, by_time = shares.sum(1), shares.sum(2)
    if len(shares) > 1:
        by_place, by_time = by_place.view(t, -1, h * w), by_time.view(t, -1, t).transpose(0, 1)
    return ((by_place * pixels).sum(-1).nanmean().item(), (by_time * frames).sum(-1).nanmean().item())


def mean_entropy(shares: Tensor, num_seen: int) -> float:
    """Returns the mean entropy of rows of shares (R, K) over its maximum, log(num_seen); NaN for a single key."""
    if num_seen == 1:
        return math.nan
    return (_entropies(shares).nanmean() / math.log(num_seen)).item()


def own_frame_share(shares: Tensor, attention: Attention) -> float:
    """Returns the share of weight on the query's own frame of the map, mean over queries; shares are (R, K)."""
    t = attention.key_grid[0]
    by_time = shares.view(len(shares), t, -1).sum(2)
    if len(shares) == 1:
        return by_time.mean().item()  # every frame has the same number of queries
    return by_time.view(t, -1, t).diagonal(dim1=0, dim2=2).nanmean().item()


def _entropies(rows: Tensor) -> Tensor:
    """Returns -sum p log p over K for rows (..., K), with 0 log 0 = 0; much faster than torch.special.entr on CPUs."""
    return -rows.clamp(min=torch.finfo(rows.dtype).tiny).log_().mul_(rows).sum(-1)
