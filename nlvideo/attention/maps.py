"""Attention maps of a network's context blocks, and where in the clip their positions lie.

N clips, C channels, T frames, H height, W width of a block's input, Q = T*H*W queries, K keys.
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

AVERAGE = "average_pooling"  # the kind of a GlobalContextBlock without attention
SIGNED = ("dot_product",)  # kinds whose weights can be negative
SOFTMAX = ("gaussian", "embedded_gaussian", "simplified_non_local", "global_context")  # kinds whose rows sum to 1
ONE_MAP = ("simplified_non_local", "global_context", AVERAGE)  # kinds whose map all queries share


class Target(NamedTuple):
    """A key, by the centre of the part of the clip that it covers, and its weight."""

    frame: int  # of the clip
    x: int  # pixels of the network's input
    y: int
    weight: float


@dataclass(frozen=True)
class Attention:
    """The attention map of one context block.

    Positions are flattened from (T, H, W) and tile the clip evenly: of 4 that are left of 32 frames, the first covers
    frames 0 to 7. Its receptive field is larger.

    Attributes:
        place: the residual block, such as "res4.1".
        kind: mode of a non-local block, "simplified_non_local", "global_context" or AVERAGE.
        x: (N, C, T, H, W), input of the block.
        change: (N, C, T, H, W), its output minus x.
        weights: (N, Q, K), weights of the block's values g, or of x in blocks without; 0 for keys that a query does not
            attend to. (N, 1, K) where all queries share one row.
        key_grid: (T, H', W') of the keys.
        key_size: height and width of a key in positions of x: 2 with subsampling, otherwise 1.
        num_seen: keys that each query attends to, at most K.
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
        t, h, w = self.x.shape[2:]
        return t, h, w

    @property
    def one_map(self) -> bool:
        """Whether all queries share one row by the block's definition."""
        return self.kind in ONE_MAP

    def query_centres(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the centres of queries: (T,) in frames of the clip, (H,) and (W,) in pixels, float64."""
        return _centres(self.query_grid, self.query_grid, self.clip_size, 1)

    def key_centres(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the centres of keys: (T,) in frames of the clip, (H',) and (W',) in pixels, float64."""
        return _centres(self.key_grid, self.query_grid, self.clip_size, self.key_size)

    def map_frame(self, frame: int) -> int:
        """Returns which of the T frames of the map covers a frame of the clip."""
        return frame * self.query_grid[0] // self.clip_size[0]

    def query_at(self, frame: int, x: int, y: int) -> int:
        """Returns the query, 0 .. Q - 1, that covers a pixel of the network's input in a frame of the clip."""
        (_, height, width), (_, clip_height, clip_width) = self.query_grid, self.clip_size
        return (self.map_frame(frame) * height + y * height // clip_height) * width + x * width // clip_width

    def row(self, query: int | None, clip: int = 0) -> Tensor:
        """Returns the weights (T, H', W') of one query; `query` may be None where all queries share one row."""
        rows = self.weights[clip]
        return rows[0 if len(rows) == 1 else query].view(self.key_grid)

    def most_attended(self, clip: int = 0) -> Target:
        """Returns the key with the largest mean absolute weight over all queries."""
        return self.strongest(self.weights[clip].abs().mean(0).view(self.key_grid), 1)[0]

    def strongest(self, weights: Tensor, top: int) -> list[Target]:
        """Returns the `top` keys with the largest absolute weights (T, H', W'), largest first; none of weight 0."""
        flat = weights.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:top]
        order = order[flat[order] != 0]
        times, rows, columns = self.key_centres()
        t, h, w = torch.unravel_index(order.cpu(), self.key_grid)
        # A centre between two frames or pixels is rounded up, which stays inside the key.
        places = torch.stack((times[t], columns[w], rows[h]), 1).add(0.5).floor().long().tolist()
        return [Target(t, x, y, weight) for (t, x, y), weight in zip(places, flat[order].tolist(), strict=True)]


@torch.no_grad()
def visit_attention(network: VideoResNet, clips: Tensor, visit: Callable[[Attention], None]) -> Tensor:
    """Returns the logits (N, num_classes) in eval mode, calling `visit` with the map of each context block.

    Blocks come in the order of the forward pass. No map is kept here: that of res3 for 128 frames of 224x224 has
    12544 x 3136 weights.

    Args:
        network: on any device, float32 or float64.
        clips: (N, 3, T, H, W), normalised, with the network's device and dtype.
        visit: called with one map at a time.
    """
    _, _, frames, height, width = clips.shape

    def hook(place: str, block: nn.Module, inputs: tuple[Tensor], z: Tensor) -> None:
        visit(block_attention(block, inputs[0], z, place, (frames, height, width)))

    names = zip(network.places, context_names(network), strict=True)
    handles = [network.get_submodule(name).register_forward_hook(partial(hook, place)) for place, name in names]
    training = network.training
    try:
        return network.eval()(clips)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()


def attention_maps(network: VideoResNet, clips: Tensor) -> list[Attention]:
    """Returns the maps of all context blocks, in the order of network.places; see visit_attention."""
    maps: dict[str, Attention] = {}
    visit_attention(network, clips, lambda attention: maps.update({attention.place: attention}))
    return [maps[place] for place in network.places]


def block_attention(block: nn.Module, x: Tensor, z: Tensor, place: str, clip_size: tuple[int, int, int]) -> Attention:
    """Returns the map of a context block with input x and output z, both (N, C, T, H, W).

    Args:
        block: a NonLocalBlock, SimplifiedNonLocalBlock or GlobalContextBlock.
        x: input of the block.
        z: its output.
        place: the residual block that it follows, such as "res4.1".
        clip_size: frames, height and width of the network's input.
    """
    n, _, t, h, w = x.shape
    positions, size = t * h * w, 1
    if isinstance(block, NonLocalBlock):
        kind, weights, size = block.mode, dense_map(block, x), 2 if block.subsample else 1
        frames = 1 if block.extent == "space" else _group(block, t)
        seen = frames if block.extent == "time" else frames * (h // size) * (w // size)
    elif isinstance(block, GlobalContextBlock) and block.key is None:
        kind, weights, seen = AVERAGE, x.new_full((n, 1, positions), 1 / positions), positions
    elif isinstance(block, GlobalContextBlock | SimplifiedNonLocalBlock) and block.key is not None:
        kind = "global_context" if isinstance(block, GlobalContextBlock) else "simplified_non_local"
        weights, seen = attention_map(x, block.key).unsqueeze(1), positions
    else:
        raise TypeError(f"{type(block).__name__} has no attention map.")
    return Attention(place, kind, x, z - x, weights, (t, h // size, w // size), size, seen, clip_size)


def dense_map(block: NonLocalBlock, x: Tensor) -> Tensor:
    """Returns the weights (N, Q, K) of all pairs for x (N, C, T, H, W), 0 where extent or group_frames exclude a pair.

    With the block's g (N, D, K), pairwise.apply_map(weights, g) is its y.
    """
    n, _, t, h, w = x.shape
    frames = _group(block, t)
    groups, places = t // frames, h * w
    parts = block.attention_map(x.unflatten(2, (groups, frames)).transpose(1, 2).flatten(0, 1))
    if block.extent == "spacetime" and groups == 1:
        return parts
    if block.extent == "space":  # each frame is a group
        groups, frames = t, 1
    keys = places if block.extent == "time" else parts.shape[2] // frames
    dense = x.new_zeros(n, groups, frames, places, groups, frames, keys)
    parts = parts.view(n, groups, -1, *parts.shape[1:])  # (N, groups, maps per group, queries, keys)
    for i in range(groups):
        own = dense[:, i, :, :, i]  # (N, frames, places, frames, keys)
        if block.extent == "time":
            own.diagonal(dim1=2, dim2=4).copy_(parts[:, i].permute(0, 2, 3, 1))
        else:
            own.copy_(parts[:, i].view(own.shape))
    return dense.view(n, t * places, t * keys)


def deepest(places: Sequence[str]) -> str:
    """Returns the place, such as "res4.1", that comes last in the network."""
    return max(places, key=lambda place: (place.split(".")[0], int(place.split(".")[1])))


def _group(block: NonLocalBlock, frames: int) -> int:
    """Returns the number of frames of the groups that attend to each other."""
    if block.group_frames is None:
        return frames
    if frames % block.group_frames:
        raise UserError(f"group_frames={block.group_frames} does not divide the {frames} frames of the feature map.")
    return block.group_frames


def _centres(
    grid: tuple[int, int, int], tiles: tuple[int, int, int], clip_size: tuple[int, int, int], size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the centres of a grid of cells, along time, height and width; pixel i reaches from i - 0.5 to i + 0.5.

    Args:
        grid: number of cells.
        tiles: number of tiles that the clip is divided into.
        clip_size: frames, height and width.
        size: height and width of a cell in tiles.
    """
    times, ys, xs = (
        (torch.arange(count, dtype=torch.float64) + 0.5) * cell * length / tile - 0.5
        for count, tile, length, cell in zip(grid, tiles, clip_size, (1, size, size), strict=True)
    )
    return times, ys, xs
