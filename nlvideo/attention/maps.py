"""What the context blocks of a network attend to, and where in the clip the positions of a map lie.

N clips, C channels, T frames, H height, W width of a block's input, Q = T*H*W queries, K keys, P positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nlvideo.models.global_context import GlobalContextBlock, SimplifiedNonLocalBlock, attention_map
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.models.resnet import VideoResNet, context_names
from nlvideo.runtime.errors import UserError

SIGNED = ("dot_product",)  # kinds whose weights can be negative
SOFTMAX = ("gaussian", "embedded_gaussian", "simplified_non_local", "global_context")  # rows sum to 1
AVERAGE = "average_pooling"  # a GlobalContextBlock without a map of its own


class Target(NamedTuple):
    """A key that is attended to: the centre of what it stands for, and its weight."""

    frame: int  # of the clip
    x: int  # pixels of the network's input
    y: int
    weight: float


@dataclass(frozen=True)
class Attention:
    """The map of one context block.

    Positions are counted through (T, H, W), the last fastest, and tile the clip evenly: where 32 frames have become
    4, the first stands for frames 0 to 7. What a position has looked at is larger than that.

    Attributes:
        place: the residual block, as "res4.1".
        kind: the mode of a non-local block, "simplified_non_local", "global_context" or AVERAGE.
        x: (N, C, T, H, W), what goes into the block.
        change: (N, C, T, H, W), what the block makes of it less x.
        weights: (N, Q, K), which multiply the block's own values g (or x, where there are none); 0 for the keys
            that a query does not see. (N, 1, K) where one row serves all queries.
        key_grid: (T, H', W') of the keys.
        key_size: positions of x along each side of a frame that one key stands for: 2 with subsampling.
        num_seen: keys that each query sees, at most K.
        clip_size: frames, height and width of the network's input.
    """

    place: str
    kind: str
    x: Tensor
    change: Tensor
    weights: Tensor
    key_grid: tuple[int, int, int]
    key_size: int
    num_seen: int
    clip_size: tuple[int, int, int]

    @property
    def query_grid(self) -> tuple[int, int, int]:
        return tuple(self.x.shape[2:])

    @property
    def one_map(self) -> bool:
        """Whether every query has the same row, by the block's definition."""
        return self.kind in ("simplified_non_local", "global_context", AVERAGE)

    def query_centres(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns where queries lie, (T,) in frames of the clip, (H,) and (W,) in pixels, float64."""
        return _centres(self.query_grid, self.query_grid, self.clip_size, 1)

    def key_centres(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns where keys lie, (T,) in frames of the clip, (H',) and (W',) in pixels, float64."""
        return _centres(self.key_grid, self.query_grid, self.clip_size, self.key_size)

    def map_frame(self, frame: int) -> int:
        """Returns which of the T frames of the map stands for a frame of the clip."""
        return frame * self.query_grid[0] // self.clip_size[0]

    def query_at(self, frame: int, x: int, y: int) -> int:
        """Returns the query, 0 .. Q - 1, that stands for a frame of the clip and a pixel of the network's input."""
        (_, height, width), (_, clip_height, clip_width) = self.query_grid, self.clip_size
        return (self.map_frame(frame) * height + y * height // clip_height) * width + x * width // clip_width

    def row(self, query: int | None, clip: int = 0) -> Tensor:
        """Returns the weights (T, H', W') of one query's keys; None is any, where one row serves all."""
        rows = self.weights[clip]
        return rows[0 if len(rows) == 1 else query].view(self.key_grid)

    def most_attended(self, clip: int = 0) -> Target:
        """Returns the key with the largest weight, its sign apart, in the mean over the queries."""
        return self.strongest(self.weights[clip].abs().mean(0).view(self.key_grid), 1)[0]

    def strongest(self, weights: Tensor, top: int) -> list[Target]:
        """Returns the `top` keys with the largest weights (T, H', W'), their sign apart, the largest first.

        Keys of weight 0 are left out.
        """
        flat = weights.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:top]
        order = order[flat[order] != 0]
        times, rows, columns = self.key_centres()
        t, h, w = torch.unravel_index(order.cpu(), self.key_grid)
        # a centre lies between two frames or pixels: the second of them, inside what the key stands for
        places = torch.stack((times[t], columns[w], rows[h]), 1).add(0.5).floor().long().tolist()
        return [Target(*place, weight) for place, weight in zip(places, flat[order].tolist(), strict=True)]


@torch.no_grad()
def look(network: VideoResNet, clips: Tensor, see: Callable[[Attention], None]) -> Tensor:
    """Returns the logits (N, num_classes) in eval mode, and calls `see` with the map of each context block.

    The blocks come in the order in which they are computed, and no map is kept here: that of res3 for 128 frames of
    224x224 has 12544 x 3136 weights.

    Args:
        network: on any device, float32 or float64.
        clips: (N, 3, T, H, W), normalised, on the network's device and of its type.
        see: what is done with each map.
    """

    def hook(place: str, block: nn.Module, inputs: tuple[Tensor], z: Tensor) -> None:
        see(block_attention(block, inputs[0], z, place, tuple(clips.shape[2:])))

    blocks = {place: network.get_submodule(name) for place, name in _named(network)}
    handles = [block.register_forward_hook(partial(hook, place)) for place, block in blocks.items()]
    training = network.training
    try:
        return network.eval()(clips)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()


def attention_maps(network: VideoResNet, clips: Tensor) -> list[Attention]:
    """Returns the map of each context block in the order of network.places, see `look`; all are held together."""
    found: dict[str, Attention] = {}
    look(network, clips, lambda seen: found.update({seen.place: seen}))
    return [found[place] for place in network.places]


def block_attention(block: nn.Module, x: Tensor, z: Tensor, place: str, clip_size: tuple[int, int, int]) -> Attention:
    """Returns the map of a context block that made z of x, both (N, C, T, H, W), in a network for such clips."""
    n, _, t, h, w = x.shape
    positions, size = t * h * w, 1
    if isinstance(block, NonLocalBlock):
        kind, weights, size = block.mode, dense_map(block, x), 2 if block.subsample else 1
        frames = 1 if block.extent == "space" else _group(block, t)
        seen = frames if block.extent == "time" else frames * (h // size) * (w // size)
    elif isinstance(block, GlobalContextBlock) and block.key is None:
        kind, weights, seen = AVERAGE, x.new_full((n, 1, positions), 1 / positions), positions
    elif isinstance(block, GlobalContextBlock | SimplifiedNonLocalBlock):
        kind = "global_context" if isinstance(block, GlobalContextBlock) else "simplified_non_local"
        weights, seen = attention_map(x, block.key).unsqueeze(1), positions
    else:
        raise TypeError(f"{type(block).__name__} is no context block.")
    return Attention(place, kind, x, z - x, weights, (t, h // size, w // size), size, seen, clip_size)


def dense_map(block: NonLocalBlock, x: Tensor) -> Tensor:
    """Returns the weights (N, Q, K) of every pair, 0 where the extent or group_frames keeps a query from a key.

    Applied to all of the block's g, (N, D, K), they give what the block sums for x (N, C, T, H, W).
    """
    n, _, t, h, w = x.shape
    frames = _group(block, t)
    groups, places = t // frames, h * w
    parts = block.attention_map(x.unflatten(2, (groups, frames)).transpose(1, 2).flatten(0, 1))
    if block.extent == "spacetime" and groups == 1:
        return parts
    if block.extent == "space":  # each frame is a group of its own
        groups, frames = t, 1
    keys = places if block.extent == "time" else parts.shape[2] // frames
    dense = x.new_zeros(n, groups, frames, places, groups, frames, keys)
    parts = parts.view(n, groups, -1, *parts.shape[1:])  # (N, groups, what sees each other in a group, queries, keys)
    for i in range(groups):
        own = dense[:, i, :, :, i]  # (N, frames, places, frames, keys)
        if block.extent == "time":
            own.diagonal(dim1=2, dim2=4).copy_(parts[:, i].permute(0, 2, 3, 1))
        else:
            own.copy_(parts[:, i].view(own.shape))
    return dense.view(n, t * places, t * keys)


def deepest(places: Sequence[str]) -> str:
    """Returns the last of the places, as "res4.1", in the order of the network."""
    return max(places, key=lambda place: (place.split(".")[0], int(place.split(".")[1])))


def _named(network: VideoResNet) -> list[tuple[str, str]]:
    return list(zip(network.places, context_names(network), strict=True))


def _group(block: NonLocalBlock, frames: int) -> int:
    """Returns how many consecutive frames see each other."""
    if block.group_frames is None:
        return frames
    if frames % block.group_frames:
        raise UserError(f"group_frames={block.group_frames} does not divide the {frames} frames of the map.")
    return block.group_frames


def _centres(
    grid: tuple[int, int, int], tiles: tuple[int, int, int], clip_size: tuple[int, int, int], size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the centres of cells of 1 x size x size of the tiles; pixel i reaches from i - 0.5 to i + 0.5."""
    return tuple(
        (torch.arange(count, dtype=torch.float64) + 0.5) * cell * length / tile - 0.5
        for count, tile, length, cell in zip(grid, tiles, clip_size, (1, size, size), strict=True)
    )
