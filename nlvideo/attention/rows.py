"""Which maps of a network are drawn, and for which queries.

T frames, H height, W width of the clip; T' x H' x W' keys of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from nlvideo.attention.maps import AVERAGE, Attention, Target, deepest
from nlvideo.runtime.errors import UserError


@dataclass(frozen=True)
class Row:
    """One map over the frames of a clip.

    Attributes:
        label: what stands left of it.
        found: the block that it comes from.
        weights: (T', H', W') of one query, or of all.
        scale: the weight, its sign apart, that is drawn in full colour.
        query: (frame, x, y) of the clip; None where all queries share the map.
        targets: drawn as ends of arrows, or as circles where there is no query.
    """

    label: str
    found: Attention
    weights: Tensor
    scale: float
    query: tuple[int, int, int] | None
    targets: Sequence[Target] = ()


def chosen_rows(
    found: Sequence[Attention], queries: Sequence[str] | None, block: str | None, top: int
) -> tuple[list[Row], str, str]:
    """Returns the maps to be drawn, and in words what they are and how they are drawn.

    Raises:
        UserError: no such block, a query outside the clip, or one for blocks without; blocks without a map.
    """
    places = [seen.place for seen in found]
    if block is not None and block not in places:
        raise UserError(f"--block {block}: the network has no block there. Choose from: {', '.join(places)}.")
    if found[0].kind == AVERAGE:
        raise UserError("The blocks average over all positions (block.pooling=average): they have no map to show.")
    last = next(seen for seen in found if seen.place == deepest(places))
    chosen = [seen for seen in found if block in (None, seen.place)]
    strongest = f"its strongest keys, at most {top}. Each row has its own scale."
    if found[0].one_map:
        if queries:
            raise UserError(f"--query {queries[0]}: {found[0].kind} has one map for all queries; leave --query out.")
        rows = [_row(seen, None, top) for seen in chosen]
        return rows, f"{found[0].kind}: one map for all queries.", f"Circles: {strongest}"
    points = [_query(text, last.clip_size) for text in queries or ()]
    if len(points) > 1:
        (one,) = [seen for seen in found if seen.place == (block or last.place)]
        rows = [_row(one, point, 0) for point in points]
        scale = max(row.scale for row in rows)
        rows = [replace(row, label="query\n" + _words(row.query).replace(", x", "\nx"), scale=scale) for row in rows]
        return rows, f"{one.place} {one.kind}: what each query (cross) attends to.", "All rows have one scale."
    why = ""
    if not points:
        points, why = [last.most_attended()[:3]], f", where {last.place} looks most in the mean over its queries"
    rows = [_row(seen, points[0], top) for seen in chosen]
    return rows, f"Query: {_words(points[0])}{why}.", f"Arrows: {strongest}"


def _row(found: Attention, query: tuple[int, int, int] | None, top: int) -> Row:
    weights = found.row(None if query is None else found.query_at(*query)).cpu()
    label = f"{found.place}\n{found.kind.replace('_', chr(10))}"
    return Row(label, found, weights, weights.abs().max().item(), query, found.strongest(weights, top))


def _query(text: str, clip_size: tuple[int, int, int]) -> tuple[int, int, int]:
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


def _words(query: tuple[int, int, int]) -> str:
    return "frame {}, x {}, y {}".format(*query)
