"""Writes a small data set in COCO's layout in which the class of an object depends on a distant one.

    python tools/write_shapes.py shapes                          # train2017, val2017 and annotations
    python tools/write_shapes.py shapes_alone --without-lamps    # the same without what tells the class

Each picture has one to three discs, squares and triangles at one side, and three lamps, all red or all green, at the
other: in the validation set at the far end, in the training set anywhere. The class of the former is "red-lit" or
"green-lit". Within 80 pixels of a lamp, from centre to centre, they have its colour; beyond, as in all of the
validation set, they are grey, and the lamps alone tell. Objects have boxes, masks and four keypoints.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from nlvideo.runtime.errors import UserFileExistsError, reporting_errors
from nlvideo.runtime.progress import progress_bar

SIZE, CELL, REACH = 160, 8, 80  # pixels: of a picture, of the background's squares, of the lamps' light
FORMS = {"disc": (24, 0), "square": (4, 0.125), "triangle": (3, 0.75), "lamp": (4, 0)}  # corners, turn of the first
ROWS = np.array([0, 53, 106])
LAMPS = {"red": (230, 40, 40), "green": (40, 200, 60)}
CATEGORIES = [f"{lamp}{kind}" for kind in (" lamp", "-lit") for lamp in LAMPS]
# Which corner is each keypoint: the one least far along this direction, which is never quite that of a square's side
KEYPOINTS = {"left": (1, 0.1), "top": (0.1, 1), "right": (-1, 0.1), "bottom": (0.1, -1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="is created")
    parser.add_argument("--train", type=int, default=2000, metavar="IMAGES")
    parser.add_argument("--val", type=int, default=400, metavar="IMAGES")
    parser.add_argument("--without-lamps", action="store_true", help="the control: nothing tells the class")
    given = parser.parse_args()
    with reporting_errors():
        if given.folder.exists():
            raise UserFileExistsError(f"{given.folder} exists already; nothing is overwritten.")
        (given.folder / "annotations").mkdir(parents=True)
        for seed, (split, number) in enumerate({"train2017": given.train, "val2017": given.val}.items()):
            write_split(given.folder, split, number, seed, lamps=not given.without_lamps)


def write_split(folder: Path, split: str, number: int, seed: int, *, lamps: bool) -> None:
    (folder / split).mkdir()
    nearest = 91 if split == "train2017" else 26
    kinds = [{"id": k, "name": name, "keypoints": [*KEYPOINTS]} for k, name in enumerate(CATEGORIES, 1)]
    images, objects = list[dict[str, Any]](), list[dict[str, Any]]()
    for i in progress_bar(range(number), desc=split, unit="image"):
        picture, found = draw_picture(np.random.default_rng([seed, i]), nearest, lamps=lamps)
        picture.save(folder / split / f"{i:06}.png")
        images.append({"id": i + 1, "file_name": f"{i:06}.png", "width": SIZE, "height": SIZE})
        objects += [{"id": k, "image_id": i + 1, **one} for k, one in enumerate(found, len(objects) + 1)]
    content = json.dumps({"images": images, "annotations": objects, "categories": kinds})
    for part in ("instances", "person_keypoints"):
        (folder / "annotations" / f"{part}_{split}.json").write_text(content)


def draw_picture(rng: np.random.Generator, nearest: int, *, lamps: bool) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Returns a picture and its objects in COCO's format; lamps are left of column `nearest`, or all is mirrored."""
    cells = rng.integers(70, 110, (SIZE // CELL, SIZE // CELL, 3), np.uint8)
    picture, lamp, mirrored = Image.fromarray(cells).resize((SIZE, SIZE)), int(rng.integers(2)), rng.integers(2)
    rows = rng.permutation(3)[: rng.integers(1, 4)]
    light, lamp_x, lamp_ys = np.array([*LAMPS.values()][lamp]), rng.integers(20, nearest), rng.integers(20, 34) + ROWS
    things: list[tuple] = [(lamp, "lamp", light, 18, lamp_x, lamp_y) for lamp_y in lamp_ys]
    for row in rows:
        form, grey = [*FORMS][rng.integers(3)], np.full(3, rng.integers(150, 250))
        x, y = SIZE - rng.integers(24, 45), 27 + ROWS[row] + rng.integers(-4, 5)
        lit = lamps and np.hypot(x - lamp_x, y - lamp_ys).min() < REACH
        things.append((2 + lamp, form, light if lit else grey, rng.integers(12, 22), x, y))
    objects = []
    for category, form, colour, radius, x, y in things[0 if lamps else 3 :]:
        sides, turned = FORMS[form]
        angles = 2 * np.pi * (np.arange(sides) / sides + turned)
        xs, ys = (x + radius * np.cos(angles)).round(2), (y + radius * np.sin(angles)).round(2)
        corners = np.stack([SIZE - xs if mirrored else xs, ys], 1)
        ImageDraw.Draw(picture).polygon([*map(tuple, corners)], fill=tuple(map(int, colour)))
        (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
        ends = [[*corners[np.argmin(corners @ way)], 2] for way in KEYPOINTS.values()]
        area = abs(xs @ np.roll(ys, 1) - ys @ np.roll(xs, 1)) / 2
        one = {"category_id": category + 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": area, "iscrowd": 0}
        objects.append({**one, "segmentation": [corners.flatten().tolist()], "keypoints": sum(ends, [])})
    return picture, objects


if __name__ == "__main__":
    main()
