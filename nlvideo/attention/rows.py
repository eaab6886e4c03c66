"""Chooses which attention maps to draw, and for which queries.

T' x H' x W' keys of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from nlvideo.attention.maps import AVERAGE, Attention, Target, deepest
from nlvideo.runtime.errors import UserError

Query = tuple[int, int, int]  # frame, x and y in the clip


@dataclass(frozen=True)
class MapRow:
    """One row of the picture: an attention map over the frames of a clip.

    Attributes:
        label: text to the left of the row.
        attention: of the block that the map comes from.
        weights: (T', H', W') of one query, or of all queries.
        scale: absolute weight drawn in full colour.
        query: None where all queries share the map.
        targets: keys to mark: heads of arrows from the query, or circles without one.
    """

    label: str
    attention: Attention
    weights: Tensor
    scale: float
    query: Query | None
    targets: Sequence[Target] = ()


class ChosenRows(NamedTuple):
    """What to draw.

    Attributes:
        rows: from top to bottom.
        subject: sentence about what they show.
        legend: sentence about how they are drawn.
    """

    rows: list[MapRow]
    subject: str
    legend: str


def chosen_rows(
    attentions: Sequence[Attention], queries: Sequence[str] | None, block: str | None, top: int
) -> ChosenRows:
    """Returns the maps to draw: a row for each block, or for each of several queries of one block.

    Args:
        attentions: of all blocks of a network.
        queries: "FRAME,X,Y"; without any, the position most attended to by the deepest block.
        block: draw this block only, such as "res4.1".
        top: number of strongest keys to mark.

    Raises:
        UserError: an unknown block, a query outside the clip, a query for blocks whose queries share one map, or blocks
            without a map.
    """
    places = [attention.place for attention in attentions]
    if block is not None and block not in places:
        raise UserError(f"--block {block}: the network has no block there. Choose from: {', '.join(places)}.")
    if attentions[0].kind == AVERAGE:
        raise UserError("The blocks average over all positions (block.pooling=average): they have no attention map.")
    chosen = [attention for attention in attentions if block in (None, attention.place)]
    last = next(attention for attention in attentions if attention.place == deepest(places))
    if attentions[0].one_map:
        return _shared_maps(chosen, queries, top)
    points = [_parse_query(text, last.clip_size) for text in queries or ()]
    if len(points) > 1:
        (one,) = (attention for attention in attentions if attention.place == (block or last.place))
        return _maps_of_queries(one, points)
    legend = f"Arrows: {_marked_keys(top)}"
    if points:
        return ChosenRows(
            [_row(attention, points[0], top) for attention in chosen], f"Query: {_words(points[0])}.", legend
        )
    frame, x, y, _ = last.most_attended()
    point = (frame, x, y)
    subject = f"Query: {_words(point)}, the position with the largest mean attention in {last.place}."
    return ChosenRows([_row(attention, point, top) for attention in chosen], subject, legend)


def _shared_maps(chosen: Sequence[Attention], queries: Sequence[str] | None, top: int) -> ChosenRows:
    kind = chosen[0].kind
    if queries:
        raise UserError(f"--query {queries[0]}: {kind} has one map for all queries; leave --query out.")
    rows = [_row(attention, None, top) for attention in chosen]
    return ChosenRows(rows, f"{kind}: one map for all queries.", f"Circles: {_marked_keys(top)}")


def _maps_of_queries(attention: Attention, points: Sequence[Query]) -> ChosenRows:
    """Returns rows with one scale, so that their colours can be compared."""
    rows = [_row(attention, point, 0) for point in points]
    scale = max(row.scale for row in rows)
    labels = ["query\n" + _words(point).replace(", x", "\nx") for point in points]
    rows = [replace(row, label=label, scale=scale) for row, label in zip(rows, labels, strict=True)]
    subject = f"{attention.place} {attention.kind}: what each query (cross) attends to."
    return ChosenRows(rows, subject, "All rows share one scale.")


def _marked_keys(top: int) -> str:
    return f"its strongest keys, at most {top}. Each row has its own scale."


def _row(attention: Attention, query: Query | None, top: int) -> MapRow:
    weights = attention.row(None if query is None else attention.query_at(*query)).cpu()
    label = f"{attention.place}\n{attention.kind.replace('_', chr(10))}"
    return MapRow(label, attention, weights, weights.abs().max().item(), query, attention.strongest(weights, top))


def _parse_query(text: str, clip_size: tuple[int, int, int]) -> Query:
    parts = text.split(",")
    frames, height, width = clip_size
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise UserError(f"--query {text}: give FRAME,X,Y as three whole numbers, such as 5,40,31.")
    frame, x, y = map(int, parts)
    if not (frame < frames and x < width and y < height):
        raise UserError(
            f"--query {text}: outside the clip, which has frames 0 to {frames - 1}, x 0 to {width - 1} and "
            f"y 0 to {height - 1}."
        )
    return frame, x, y


def _words(query: Query) -> str:
    return "frame {}, x {}, y {}".format(*query)
