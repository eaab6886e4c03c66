"""Two synthetic sets, one that needs long-range relations and one that needs local motion, and stills to pretrain on.

`long_range` is retrieval. Two discs of different colours and patterns come first, then distractors, then one of the two
discs again, grey and in another place. The class is the colour that it had. All combinations of colours, patterns and
returning disc are equally frequent, so the best possible accuracy of a model is known in advance:

- 25 % if it does not see the beginning and 50 % if it does not see the end; a single frame, or a window of half the
  clip, lacks one of the two.
- 75 % if its score is a sum of one term for the beginning and one for the end, as C2D's average over time is when no
  window contains both. Consider the four videos that have the same two colours and the same two patterns. To be right
  on all of them, the sum would have to prefer the first colour more strongly when the first pattern returns than when
  the second does, and, with the patterns exchanged, less strongly. At most three can be right.

The lists `train_end.csv` and `val_end.csv` ask something else of the same videos: the angle of the stripes of the disc
at the end, which a single frame answers. What differs between networks trained on the one and on the other is due to
the question alone.

`short_range` is local motion. Discs move in one of four directions for four frames, jump to another place and move
again. Each class is the time reversal of another. Frames without their order therefore give 50 %, a single frame 25 %.

`stills` holds single frames of the discs of long_range, one class per colour and pattern. It is to long_range what
ImageNet is to Kinetics.
"""

from collections.abc import Iterator
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nlvideo.data.synthetic.video_spec import VideoSpec

LONG_RANGE_OPTIONS = ("gap_frames", "distance", "num_distractors")  # settings that no other set has
COLORS = {"red": (230, 40, 40), "green": (40, 200, 60), "blue": (60, 90, 250), "yellow": (240, 220, 40)}
DIRECTIONS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
ANGLES = (0, 90, 45, 135)  # of the stripes that tell one object from another
STRIPE = 5 / 64  # from one stripe to the next, as a share of the height
ANGLE_PAIRS = list(permutations(ANGLES, 2))
NUM_MOVING = 3  # discs of short_range
EVERY = 4  # frames that a motion or a distractor lasts
GREYS = (150, 220)


def write_long_range(
    root: Path, split: str, count: int, num_frames: int, height: int, seed: int, **options: Any
) -> Iterator[VideoSpec]:
    """Writes a list of videos, the classes in turn, and yields what has to be drawn.

    Args:
        options: LONG_RANGE_OPTIONS, see draw_long_range.
    """
    draw = partial(draw_long_range, num_frames=num_frames, height=height, **options)
    asked = list(questions(count))
    _write_list(root, split, list(COLORS), [list(COLORS).index(question.colors[0]) for question in asked])
    ends = [ANGLES.index(question.angles[0]) for question in asked]
    _write_list(root, split, [f"{angle} degrees" for angle in ANGLES], ends, suffix="_end")
    for i, question in enumerate(asked):
        yield VideoSpec(f"{split}/{i:05d}.mp4", [seed, split == "val", i], partial(draw, question))


def write_short_range(
    root: Path, split: str, count: int, num_frames: int, height: int, seed: int
) -> Iterator[VideoSpec]:
    """Writes a list of videos, the classes in turn, and yields what has to be drawn."""
    _write_list(root, split, list(DIRECTIONS), [i % len(DIRECTIONS) for i in range(count)])
    for i in range(count):
        direction = list(DIRECTIONS)[i % len(DIRECTIONS)]
        draw = partial(draw_short_range, direction, num_frames=num_frames, height=height)
        yield VideoSpec(f"{split}/{i:05d}.mp4", [seed, split == "val", i], draw)


def write_stills(root: Path, split: str, count: int, num_frames: int, height: int, seed: int) -> Iterator[VideoSpec]:
    """Writes a list of videos of `num_frames` equal frames, the classes in turn, and yields what has to be drawn."""
    kinds = [(color, angle) for color in [*COLORS, "grey"] for angle in ANGLES]
    _write_list(root, split, [f"{color} {angle}" for color, angle in kinds], [i % len(kinds) for i in range(count)])
    for i in range(count):
        draw = partial(draw_still, *kinds[i % len(kinds)], num_frames=num_frames, height=height)
        yield VideoSpec(f"{split}/{i:05d}.mp4", [seed, split == "val", i], draw)


def _write_list(root: Path, split: str, classes: list[str], targets: list[int], suffix: str = "") -> None:
    (root / f"classes{suffix}.txt").write_text("\n".join(classes) + "\n")
    lines = (f"{split}/{i:05d}.mp4 {target}\n" for i, target in enumerate(targets))
    (root / f"{split}{suffix}.csv").write_text("".join(lines))


class Question(NamedTuple):
    """A video of long_range: two discs, each a colour and the angle of its stripes; the first comes back."""

    colors: tuple[str, str]
    angles: tuple[int, int]


def questions(count: int) -> Iterator[Question]:
    """Yields questions so that every combination is as frequent and the classes, the first colours, take turns."""
    others = {asked: [color for color in COLORS if color != asked] for asked in COLORS}
    for i in range(count):
        rest, first = divmod(i, len(COLORS))
        rest, other = divmod(rest, len(COLORS) - 1)
        asked = list(COLORS)[first]
        yield Question((asked, others[asked][other]), ANGLE_PAIRS[rest % len(ANGLE_PAIRS)])


def draw_long_range(
    question: Question,
    rng: np.random.Generator,
    num_frames: int,
    height: int,
    gap_frames: int,
    distance: float,
    num_distractors: int,
) -> np.ndarray:
    """Returns a clip (num_frames, height, height, 3) uint8: the beginning, `gap_frames` of distractors, the end.

    Args:
        distance: between where the disc was and where it comes back, at least, as a share of the height.
        num_distractors: discs without stripes in any of the colours, which stand elsewhere every few frames of the gap.
    """
    shown = (num_frames - gap_frames) // 2
    radii = rng.uniform(0.17, 0.21, 2) * height
    while True:
        places = [rng.uniform(r, height - r, 2) for r in (*radii, radii[0])]
        apart = [np.hypot(*(places[0] - other)) for other in places[1:]]
        if apart[0] > radii.sum() and apart[1] > distance * height:
            break
    background = _background(rng, height)
    first, last = background.copy(), background.copy()
    for color, angle, radius, place in zip(question.colors, question.angles, radii, places, strict=False):
        _paint_disc(first, place, radius, np.array(COLORS[color], float), angle)
    _paint_disc(last, places[2], radii[0], np.full(3, rng.uniform(*GREYS)), question.angles[0])
    frames = np.empty((num_frames, *background.shape))
    frames[:shown], frames[num_frames - shown :] = first, last
    for start in range(shown, num_frames - shown, EVERY):
        between = background.copy()
        for _ in range(num_distractors):
            paint = np.array(COLORS[list(COLORS)[rng.integers(len(COLORS))]], float)
            _paint_disc(between, rng.uniform(0, height, 2), rng.uniform(0.1, 0.15) * height, paint)
        frames[start : min(start + EVERY, num_frames - shown)] = between
    return _with_noise(frames, rng)


def draw_short_range(direction: str, rng: np.random.Generator, num_frames: int, height: int) -> np.ndarray:
    """Returns a clip (num_frames, height, height, 3) uint8 of discs that move in one direction, a few frames each."""
    background = _background(rng, height)
    frames = np.empty((num_frames, *background.shape))
    step = np.array(DIRECTIONS[direction]) * height
    # When the first motion began is drawn, so that no network can tell the order by how its windows lie over them.
    for start in range(-int(rng.integers(EVERY)), num_frames, EVERY):
        frames[max(start, 0) : start + EVERY] = background
        for _ in range(NUM_MOVING):
            place, radius, color = rng.uniform(0, height, 2), rng.uniform(0.1, 0.15) * height, rng.uniform(100, 255, 3)
            speed = rng.uniform(0.04, 0.06)
            for t in range(max(start, 0), min(start + EVERY, num_frames)):
                _paint_disc(frames[t], place + step * speed * (t - start - (EVERY - 1) / 2), radius, color)
    return _with_noise(frames, rng)


def draw_still(color: str, angle: int, rng: np.random.Generator, num_frames: int, height: int) -> np.ndarray:
    """Returns frames (num_frames, height, height, 3) uint8, all the same, of one disc with stripes."""
    frame, radius = _background(rng, height), rng.uniform(0.15, 0.25) * height
    place = rng.uniform(radius, height - radius, 2)
    paint = np.full(3, rng.uniform(*GREYS)) if color == "grey" else np.array(COLORS[color], float)
    _paint_disc(frame, place, radius, paint, angle)
    return np.repeat(_with_noise(frame, rng)[None], num_frames, 0)


def _background(rng: np.random.Generator, height: int) -> np.ndarray:
    """Returns (height, height, 3) floats: dim squares of colour."""
    cells = -(-height // 4)
    return np.kron(rng.uniform(20, 90, (4, 4, 3)), np.ones((cells, cells, 1)))[:height, :height]


def _paint_disc(
    frame: np.ndarray, place: np.ndarray, radius: float, color: np.ndarray, angle: int | None = None
) -> None:
    """Paints a disc with soft edges, with stripes at an angle in degrees if there is one."""
    v, u = np.arange(frame.shape[0])[:, None] - place[0], np.arange(frame.shape[1])[None] - place[1]
    mask = np.clip(radius - np.hypot(u, v) + 0.5, 0, 1)[..., None]
    shade = 1.0
    if angle is not None:
        across = u * np.cos(np.deg2rad(angle)) + v * np.sin(np.deg2rad(angle))
        shade = 0.5 + 0.5 * np.clip(3 * np.sin(2 * np.pi * across / (STRIPE * frame.shape[0])), -1, 1)[..., None]
    frame[:] = frame * (1 - mask) + color * shade * mask


def _with_noise(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(frames + rng.normal(0, 3, frames.shape), 0, 255).astype(np.uint8)
