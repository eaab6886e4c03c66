"""Moving shapes on a still, textured background. A video has one class, or any number of actions, each at its own time.

Three shapes move. Their positions, sizes and orientations have the same distribution in every class and at every time:
positions wrap around at the borders, sizes grow from the smallest to the largest and start over, and every shape starts
at a random phase. A single frame therefore says nothing about the class, and each class is the time reversal of
another.

In the set of actions, each shape performs at most one action and stands still otherwise.
"""

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nlvideo.data.synthetic.video_spec import FRAME_RATE, VideoSpec

MOTIONS = (
    "moves_right",
    "moves_left",
    "moves_down",
    "moves_up",
    "turns_clockwise",
    "turns_counterclockwise",
    "grows",
    "shrinks",
)
NUM_SHAPES = 3
SIZES = (9.0, 24.0)  # smallest and largest radius in pixels of a 96-pixel-high frame


class Action(NamedTuple):
    """What a shape does from frame `start` to frame `end`."""

    label: int
    start: int
    end: int


def write_motions(root: Path, split: str, count: int, num_frames: int, height: int, seed: int) -> Iterator[VideoSpec]:
    """Writes a list of videos of one class each and yields what is to be drawn for them."""
    (root / "classes.txt").write_text("\n".join(MOTIONS) + "\n")
    rows = [(f"{split}/{i:05d}.mp4", i % len(MOTIONS)) for i in range(count)]
    (root / split).mkdir(exist_ok=True)
    (root / f"{split}.csv").write_text("".join(f"{name} {label}\n" for name, label in rows))
    for i, (name, label) in enumerate(rows):
        shapes = [Action(label, 0, num_frames)] * NUM_SHAPES
        yield VideoSpec(name, [seed, split == "val", i], partial(render, shapes, num_frames, height))


def write_actions(root: Path, split: str, count: int, num_frames: int, height: int, seed: int) -> Iterator[VideoSpec]:
    """Writes a list of videos with up to three actions each and yields what is to be drawn for them."""
    (root / "classes.txt").write_text("".join(f"c{i:03} {name}\n" for i, name in enumerate(MOTIONS)))
    (root / "videos").mkdir(exist_ok=True)
    rows = []
    for i in range(count):
        rng = np.random.default_rng([seed, split == "val", i, 1])
        labels = rng.permutation(len(MOTIONS))[: 0 if i % 10 == 9 else rng.integers(1, NUM_SHAPES, endpoint=True)]
        starts = rng.integers(num_frames // 2, size=len(labels))
        ends = starts + rng.integers(num_frames // 4, num_frames // 2, endpoint=True, size=len(labels))
        actions = [Action(*map(int, action)) for action in zip(labels, starts, ends, strict=True)]
        rows.append((f"{split}{i:05d}", actions))
    with open(root / f"{split}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "actions", "length"])
        for name, actions in rows:
            texts = [f"c{a.label:03} {a.start / FRAME_RATE:.2f} {a.end / FRAME_RATE:.2f}" for a in actions]
            writer.writerow([name, ";".join(texts), f"{num_frames / FRAME_RATE:.2f}"])
    for i, (name, actions) in enumerate(rows):
        shapes = actions + [None] * (NUM_SHAPES - len(actions))
        yield VideoSpec(f"videos/{name}.mp4", [seed, split == "val", i], partial(render, shapes, num_frames, height))


def render(actions: Sequence[Action | None], num_frames: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a clip (num_frames, height, width, 3) uint8 with one shape per action; for None it stands still."""
    width = height * 4 // 3 // 2 * 2
    unit = height / 96
    background = _texture(rng, height, width)
    smallest, largest = SIZES[0] * unit, SIZES[1] * unit
    time = np.arange(num_frames)
    frames = np.repeat(background[None], num_frames, 0)
    for action in actions:
        corners = int(rng.integers(3, 5))
        shade = rng.permutation(np.array([rng.integers(0, 256), rng.integers(180, 256), 255]))
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        angle, phase = rng.uniform(0, 2 * np.pi), rng.uniform()
        speed, spin, growth = rng.uniform(1.5, 2.5) * unit, rng.uniform(0.08, 0.14), rng.uniform(0.03, 0.05)
        motion = "" if action is None else MOTIONS[action.label]
        moved = time if action is None else np.clip(time - action.start, 0, action.end - action.start)
        dy = speed * {"moves_down": 1, "moves_up": -1}.get(motion, 0)
        dx = speed * {"moves_right": 1, "moves_left": -1}.get(motion, 0)
        turn = spin * {"turns_clockwise": 1, "turns_counterclockwise": -1}.get(motion, 0)
        grow = growth * {"grows": 1, "shrinks": -1}.get(motion, 0)
        radius = smallest + (largest - smallest) * ((phase + grow * moved) % 1)
        for t in time:
            y_t, x_t, angle_t = y + dy * moved[t], x + dx * moved[t], angle + turn * moved[t]
            _draw(frames[t], y_t, x_t, radius[t], angle_t, corners, shade)
    return frames


def _draw(frame: np.ndarray, y: float, x: float, radius: float, angle: float, corners: int, shade: np.ndarray) -> None:
    """Paints a kite with three or four corners, wrapping around at the borders. Angles turn clockwise on the screen."""
    reach = int(np.ceil(radius)) + 1
    rows, columns = (np.arange(np.floor(c) - reach, np.floor(c) + reach + 1) for c in (y, x))
    v, u = (rows - y)[:, None], (columns - x)[None, :]
    along, across = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    # A long tip in front and a short or flat tail: no rotation but a full turn maps the shape to itself.
    tail = 0.35 if corners == 3 else 0.7
    half_width = np.where(along > -0.35 * radius, 0.6 * (radius - along) / 1.35, 0.6 * (along + tail * radius) / 0.35)
    inside = np.minimum(half_width - np.abs(across), along + tail * radius)
    mask = np.clip(inside + 0.5, 0, 1)[..., None]  # soft edge, one pixel wide
    where = np.ix_(rows.astype(int) % frame.shape[0], columns.astype(int) % frame.shape[1])
    frame[where] = (frame[where] * (1 - mask) + shade * mask).astype(np.uint8)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns smooth coloured noise (height, width, 3) uint8: a coarse grid of colours, interpolated."""
    grid = rng.integers(30, 130, (6, 8, 3)).astype(float)
    ys, xs = np.linspace(0, 4.999, height), np.linspace(0, 6.999, width)
    y0, x0 = ys.astype(int), xs.astype(int)
    fy, fx = (ys - y0)[:, None, None], (xs - x0)[None, :, None]
    top = grid[y0][:, x0] * (1 - fx) + grid[y0][:, x0 + 1] * fx
    bottom = grid[y0 + 1][:, x0] * (1 - fx) + grid[y0 + 1][:, x0 + 1] * fx
    return (top * (1 - fy) + bottom * fy).astype(np.uint8)
