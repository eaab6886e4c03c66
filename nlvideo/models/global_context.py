"""The successors of the non-local block (GCNet, Cao et al. 2019): one attention map shared by all queries.

N batch, C channels, P positions: T*H*W of a clip or H*W of an image. Both blocks take (N, C, *positions).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nlvideo.runtime.errors import UserError

POOLINGS = ("attention", "average")
FUSIONS = ("add", "mul")


class SimplifiedNonLocalBlock(nn.Module):
    """z = x + W_v sum_j softmax_j(W_k x_j) x_j (GCNet, Sec. 3.2); a new block is the identity.

    The attention map does not depend on the query, so W_v is applied once, to the pooled features.

    Args:
        channels: C of the input and output.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.key = nn.Linear(channels, 1)
        self.value = nn.Linear(channels, channels)
        nn.init.kaiming_normal_(self.key.weight, nonlinearity="relu")
        nn.init.zeros_(self.key.bias)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    @property
    def last_weight(self) -> Tensor:
        """The weight that scales what the block adds to its input: zero in a new block."""
        return self.value.weight

    def forward(self, x: Tensor) -> Tensor:
        """Returns z of x's shape (N, C, *positions)."""
        return self._added(x, attention_pool(x, self.key))

    def with_map(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns z of x as if the attention weights were others: `change` takes and returns (N, 1, 1, P)."""
        return self._added(x, pool_with(x, change(attention_map(x, self.key)[:, None, None])[:, 0, 0]))

    def _added(self, x: Tensor, context: Tensor) -> Tensor:
        return x + _spread(self.value(context), x)


class GlobalContextBlock(nn.Module):
    """z = x + W_v2 ReLU(LN(W_v1 c)), c = sum_j softmax_j(W_k x_j) x_j (GCNet, Sec. 3.3; mmcv's context_block.py).

    A new block with fusion "add" is the identity. With "mul", z = x * sigmoid(W_v2 ReLU(LN(W_v1 c))), it halves its
    input, because W_v2 starts at zero; use it in networks that train with it from scratch.

    Squeeze-and-excitation (Hu et al. 2018) is pooling="average", fusion="mul", norm=False.

    Args:
        channels: C of the input and output.
        ratio: W_v1 has channels / ratio outputs (4 and 16 in GCNet).
        pooling: "attention", or "average" over all positions.
        fusion: "add" or "mul".
        norm: apply layer norm after W_v1.

    Raises:
        UserError: an unknown choice, or a ratio larger than channels.
    """

    def __init__(
        self, channels: int, *, ratio: int = 16, pooling: str = "attention", fusion: str = "add", norm: bool = True
    ):
        super().__init__()
        for name, value, allowed in (("pooling", pooling, POOLINGS), ("fusion", fusion, FUSIONS)):
            if value not in allowed:
                raise UserError(f"{name}={value!r} is unknown. Choose from: {', '.join(allowed)}.")
        if not 1 <= ratio <= channels:
            raise UserError(f"ratio={ratio}: must be at least 1 and at most the {channels} channels.")
        self.fusion = fusion
        self.key = nn.Linear(channels, 1) if pooling == "attention" else None
        inner = channels // ratio
        self.squeeze = nn.Linear(channels, inner)  # W_v1
        self.norm = nn.LayerNorm(inner) if norm else nn.Identity()
        self.expand = nn.Linear(inner, channels)  # W_v2
        if self.key is not None:
            nn.init.kaiming_normal_(self.key.weight, nonlinearity="relu")
            nn.init.zeros_(self.key.bias)
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    @property
    def last_weight(self) -> Tensor:
        """The weight that scales what the block adds to its input: zero in a new block."""
        return self.expand.weight

    def forward(self, x: Tensor) -> Tensor:
        """Returns z of x's shape (N, C, *positions)."""
        return self._fused(x, x.flatten(2).mean(2) if self.key is None else attention_pool(x, self.key))

    def with_map(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns z of x as if the attention weights were others: `change` takes and returns (N, 1, 1, P).

        Those of pooling "average" are 1 / P.
        """
        shape = len(x), x[0, 0].numel()
        weights = x.new_full(shape, 1 / shape[1]) if self.key is None else attention_map(x, self.key)
        return self._fused(x, pool_with(x, change(weights[:, None, None])[:, 0, 0]))

    def _fused(self, x: Tensor, context: Tensor) -> Tensor:
        """Returns z for a context (N, C)."""
        change = _spread(self.expand(self.norm(self.squeeze(context)).relu()), x)
        return x + change if self.fusion == "add" else x * change.sigmoid()


def attention_map(x: Tensor, key: nn.Linear) -> Tensor:
    """Returns softmax_j(W_k x_j) as (N, P) for x (N, C, *positions)."""
    return key(x.flatten(2).transpose(1, 2)).squeeze(2).softmax(1)


def attention_pool(x: Tensor, key: nn.Linear) -> Tensor:
    """Returns sum_j softmax_j(W_k x_j) x_j as (N, C)."""
    return pool_with(x, attention_map(x, key))


def pool_with(x: Tensor, weights: Tensor) -> Tensor:
    """Returns sum_j weights_j x_j as (N, C) for weights (N, P)."""
    return torch.einsum("ncp,np->nc", x.flatten(2), weights.to(x.dtype))


def _spread(context: Tensor, x: Tensor) -> Tensor:
    """Returns context (N, C) as (N, C, 1, ...), which broadcasts over the positions of x."""
    return context.view(*context.shape, *([1] * (x.ndim - 2)))
