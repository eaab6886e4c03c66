"""The non-local block (Non-local Neural Networks, Wang et al. 2018, Sec. 3).

N batch, C channels, T frames, H height, W width, D inner channels, P = T*H*W positions.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from nlvideo.models import pairwise
from nlvideo.models.batch_norm import VideoBatchNorm3d
from nlvideo.runtime.errors import UserError

MODES = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")
EXTENTS = ("spacetime", "space", "time")
POOLS = ("after", "before")
INITS = ("paper", "released")


class NonLocalBlock(nn.Module):
    """z = W_z y + x (Eq. 6); a new block is the identity (Sec. 3.3).

    Args:
        channels: C of the input and output, (N, C, T, H, W).
        mode: pairwise function, one of MODES (Sec. 3.2).
        extent: positions that a query attends to: all ("spacetime"), those of its own frame ("space"), or the same
            position in every frame ("time") (Table 2d).
        inner_channels: D of theta, phi and g; C / 2 by default (Sec. 3.3).
        subsample: 2x2 max-pool keys and values in space. Ignored for extent "time", where each frame has one key.
        pool: pool "before" the 1x1x1 convolutions of keys and values, as in the authors' code (nonlocal_helper.py) and
            in the multiply-adds of Table 2e, or "after" them, as in the text of Sec. 3.3. The same weights give
            different functions.
        scale: multiply the softmax logits by D ** -0.5, as in the authors' code; embedded_gaussian only.
        bias: theta, phi, g and W_z have biases, as in the authors' code (NO_BIAS: 0); Eq. 6 has none.
        norm: batch norm with zero gain after W_z (Sec. 4.1). False: no norm and W_z starts at zero, for backbones with
            frozen batch norm.
        init: weights of theta, phi, g and W_z: "paper" is He et al. (Sec. 4.1), "released" is N(0, 0.01), as in the
            authors' code.
        group_frames: attend within groups of this many consecutive frames, as the authors' code does in res3 of long
            clips (add_nonlocal_group). None: all frames.

    Raises:
        UserError: an unknown choice, or options that exclude each other.
    """

    def __init__(
        self,
        channels: int,
        *,
        mode: str = "embedded_gaussian",
        extent: str = "spacetime",
        inner_channels: int | None = None,
        subsample: bool = True,
        pool: str = "before",
        scale: bool = False,
        bias: bool = True,
        norm: bool = True,
        init: str = "paper",
        group_frames: int | None = None,
    ):
        super().__init__()
        for name, value, allowed in (
            ("mode", mode, MODES),
            ("extent", extent, EXTENTS),
            ("pool", pool, POOLS),
            ("init", init, INITS),
        ):
            if value not in allowed:
                raise UserError(f"{name}={value!r} is not a non-local {name}. Choose from: {', '.join(allowed)}.")
        if scale and mode != "embedded_gaussian":
            raise UserError(f"scale=True applies to mode 'embedded_gaussian' only, not to {mode!r}.")
        if group_frames is not None and group_frames < 1:
            raise UserError(f"group_frames={group_frames}: must be at least 1.")
        self.group_frames = group_frames
        self.plain = False  # True: compute with the matrix of all pairs, for exporters and as the reference
        inner = inner_channels or channels // 2
        self.mode, self.extent, self.pool, self.scale = mode, extent, pool, scale
        self.subsample = subsample and extent != "time"
        self.logit_scale = inner**-0.5 if scale else 1.0
        if mode != "gaussian":
            self.theta = nn.Conv3d(channels, inner, 1, bias=bias)
            self.phi = nn.Conv3d(channels, inner, 1, bias=bias)
        if mode == "concatenation":
            self.w_f = nn.Conv3d(2 * inner, 1, 1, bias=False)  # w_f of Eq. 5: first half theta's, second phi's
        self.g = nn.Conv3d(channels, inner, 1, bias=bias)
        self.out = nn.Conv3d(inner, channels, 1, bias=bias)
        self.bn = VideoBatchNorm3d(channels) if norm else None
        self._init_weights(init)

    def _init_weights(self, init: str) -> None:
        for conv in self.children():
            if isinstance(conv, nn.Conv3d):
                if init == "paper":
                    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                else:
                    nn.init.normal_(conv.weight, std=0.01)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
        nn.init.zeros_(self.last_weight)  # the identity, so that a new block can be inserted into a trained network

    @property
    def last_weight(self) -> Tensor:
        """The weight that scales what the block adds to its input: zero in a new block."""
        return self.out.weight if self.bn is None else self.bn.weight

    def forward(self, x: Tensor) -> Tensor:
        """Returns z of x's shape, (N, C, T, H, W) or, for images, (N, C, H, W).

        Raises:
            UserError: a feature map too small to subsample, or whose frames group_frames does not divide.
        """
        if x.ndim == 4:
            return self.forward(x.unsqueeze(2)).squeeze(2)
        if self.group_frames is not None and self.group_frames != x.shape[2]:
            return self._forward_in_groups(x, self.group_frames)
        operands, g = self._operands(x)
        if self.plain:
            y = pairwise.apply_map(self._map(*operands), g)
        elif self.mode == "dot_product":
            y = pairwise.dot_product(*operands, g)
        elif self.mode == "concatenation":
            y = pairwise.concatenation(*operands, g)
        else:
            y = pairwise.embedded_gaussian(*operands, g, self.logit_scale)
        return self._added(x, y)

    def with_map(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns z of x (N, C, T, H, W) as if the attention weights were others.

        Args:
            change: takes the weights (N, parts, queries, keys) and returns others of that shape. All queries of a part
                see all its keys: parts are frames for extent "space", places for "time", groups of group_frames.
        """
        groups = 1 if self.group_frames is None else x.shape[2] // self.group_frames
        parts = x.unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1)
        operands, g = self._operands(parts)
        weights = change(self._map(*operands).unflatten(0, (len(x), -1))).flatten(0, 1)
        z = self._added(parts, pairwise.apply_map(weights, g))
        return z.unflatten(0, (len(x), groups)).transpose(1, 2).flatten(2, 3)

    def attention_map(self, x: Tensor) -> Tensor:
        """Returns the attention weights (B, queries, keys) of x (N, C, T, H, W), group_frames not applied.

        B is N for extent "spacetime", N*T for "space", N*H*W for "time". Rows of a softmax sum to 1; the other modes
        have f / M.
        """
        return self._map(*self._operands(x)[0])

    def _map(self, first: Tensor, second: Tensor) -> Tensor:
        if self.mode == "dot_product":
            return pairwise.dot_product_map(first, second)
        if self.mode == "concatenation":
            return pairwise.concatenation_map(first, second)
        return pairwise.embedded_gaussian_map(first, second, self.logit_scale)

    def _operands(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Returns the arguments of f and g, all folded: ((theta, phi), g), for gaussian ((x, x), g), for concatenation
        ((a, b), g) with a and b as in pairwise.concatenation."""
        phi, g = self._keys_and_values(x)
        if self.mode == "gaussian":
            first, second = x, phi
        else:
            first, second = self.theta(x), phi
        if self.mode == "concatenation":
            w_theta, w_phi = self.w_f.weight.chunk(2, dim=1)
            a, b = F.conv3d(first, w_theta), F.conv3d(second, w_phi)
            return (self._fold(a).squeeze(1), self._fold(b).squeeze(1)), self._fold(g)
        return (self._fold(first), self._fold(second)), self._fold(g)

    def _forward_in_groups(self, x: Tensor, frames: int) -> Tensor:
        n, _, t, _, _ = x.shape
        if t % frames:
            raise UserError(f"group_frames={frames} does not divide the {t} frames of the feature map.")
        groups = x.unflatten(2, (t // frames, frames)).transpose(1, 2).flatten(0, 1)
        return self.forward(groups).unflatten(0, (n, t // frames)).transpose(1, 2).flatten(2, 3)

    def _keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns phi and g, (N, D, T, H', W'); phi is x itself in gaussian mode."""
        if self.subsample and min(x.shape[3:]) < 2:
            size = f"{x.shape[3]}x{x.shape[4]}"
            raise UserError(f"A {size} feature map is too small for 2x2 pooling; set subsample=False.")
        if self.pool == "before":
            pooled = self._pool(x)
            return (pooled if self.mode == "gaussian" else self.phi(pooled)), self.g(pooled)
        return self._pool(x if self.mode == "gaussian" else self.phi(x)), self._pool(self.g(x))

    def _pool(self, x: Tensor) -> Tensor:
        return F.max_pool3d(x, (1, 2, 2)) if self.subsample else x

    def _fold(self, x: Tensor) -> Tensor:
        """Returns (B, D, positions): positions that attend to each other share one entry of the batch."""
        if self.extent == "space":
            return x.transpose(1, 2).flatten(3).flatten(0, 1)  # (N*T, D, H*W)
        if self.extent == "time":
            return x.permute(0, 3, 4, 1, 2).flatten(0, 2)  # (N*H*W, D, T)
        return x.flatten(2)  # (N, D, T*H*W)

    def _added(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns x + W_z y for y (B, D, positions), which is folded."""
        z = self.out(self._unfold(y, x))
        return x + (z if self.bn is None else self.bn(z))

    def _unfold(self, y: Tensor, x: Tensor) -> Tensor:
        """Returns y (B, D, positions) as (N, D, T, H, W), the inverse of _fold for x."""
        n, _, t, h, w = x.shape
        if self.extent == "space":
            return y.unflatten(0, (n, t)).unflatten(3, (h, w)).transpose(1, 2)
        if self.extent == "time":
            return y.unflatten(0, (n, h, w)).permute(0, 3, 4, 1, 2)
        return y.unflatten(2, (t, h, w))

    def extra_repr(self) -> str:
        return f"mode={self.mode}, extent={self.extent}, subsample={self.subsample}, pool={self.pool}"
