"""Writes a small data set in COCO's layout in which the class of an object depends on a distant one.

    python tools/write_shapes.py shapes                          # train2017, val2017 and annotations
    python tools/write_shapes.py shapes_alone --without-lamps    # the same pictures without what tells the class

Each picture has one to three grey discs, squares and triangles in one half, and a lamp, red or green, in the far corner
of the other half. A disc under a red lamp is of another class than one under a green lamp, so is a square, so is a
triangle; nothing near a shape tells. Objects have boxes, masks and four keypoints.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from nlvideo.runtime.errors import UserFileExistsError, reporting_errors
from nlvideo.runtime.progress import progress_bar

SIZE, LAMP = 160, 9  # pixels: of a picture; radius of the lamp
FORMS, LAMPS = ("disc", "square", "triangle"), {"red": (230, 40, 40), "green": (40, 200, 60)}
CATEGORIES = [f"{form} under {lamp}" for form in FORMS for lamp in LAMPS]
POINTS = ["left", "top", "right", "bottom"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="is created")
    parser.add_argument("--train", type=int, default=2000, metavar="IMAGES")
    parser.add_argument("--val", type=int, default=400, metavar="IMAGES")
    parser.add_argument("--without-lamps", action="store_true", help="the control: no network can know the class")
    given = parser.parse_args()
    with reporting_errors():
        if given.folder.exists():
            raise UserFileExistsError(f"{given.folder} exists already; nothing is overwritten.")
        (given.folder / "annotations").mkdir(parents=True)
        for seed, (split, number) in enumerate({"train2017": given.train, "val2017": given.val}.items()):
            write_split(given.folder, split, number, seed, lamps=not given.without_lamps)


def write_split(folder: Path, split: str, number: int, seed: int, *, lamps: bool) -> None:
    (folder / split).mkdir()
    content: dict[str, list] = {"images": [], "annotations": [], "categories": []}
    for k, name in enumerate(CATEGORIES, 1):
        content["categories"].append({"id": k, "name": name, "keypoints": POINTS, "skeleton": []})
    for i in progress_bar(range(number), desc=split, unit="image"):
        rng, name = np.random.default_rng([seed, i]), f"{i:06}.png"
        picture, objects = draw_picture(rng, lamps=lamps)
        picture.save(folder / split / name)
        content["images"].append({"id": i + 1, "file_name": name, "width": SIZE, "height": SIZE})
        first = len(content["annotations"]) + 1
        content["annotations"] += [{"id": first + j, "image_id": i + 1} | one for j, one in enumerate(objects)]
    for part in ("instances", "person_keypoints"):
        (folder / "annotations" / f"{part}_{split}.json").write_text(json.dumps(content))


def draw_picture(rng: np.random.Generator, *, lamps: bool) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Returns a picture and its objects in COCO's format."""
    picture = Image.fromarray(rng.integers(70, 110, (SIZE // 8, SIZE // 8, 3), np.uint8)).resize((SIZE, SIZE))
    canvas, (lamp, at_right) = ImageDraw.Draw(picture), rng.integers(0, 2, 2)
    x, y = rng.integers(LAMP, 2 * LAMP), rng.integers(LAMP, SIZE - LAMP)
    if lamps:
        canvas.circle((SIZE - x if at_right else x, y), LAMP, fill=[*LAMPS.values()][lamp])
    objects = []
    for row in rng.permutation(3)[: rng.integers(1, 4)]:
        form, radius = rng.integers(3), int(rng.integers(12, 22))
        x, y = int(rng.integers(24, 45)), int(27 + 53 * row + rng.integers(-4, 5))
        x = x if at_right else SIZE - x
        corners = outline(form, x, y, radius)
        canvas.polygon([*map(tuple, corners)], fill=(int(rng.integers(150, 250)),) * 3)
        (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
        ends = [corners[np.argmin(corners @ to)] for to in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        objects.append(
            {
                "category_id": int(2 * form + lamp + 1),
                "bbox": [float(v) for v in (x0, y0, x1 - x0, y1 - y0)],
                "segmentation": [corners.flatten().round(2).tolist()],
                "area": float((x1 - x0) * (y1 - y0)),
                "iscrowd": 0,
                "keypoints": [float(v) for end in ends for v in (*end, 2)],
                "num_keypoints": 4,
            }
        )
    return picture, objects


def outline(form: int, x: int, y: int, radius: int) -> np.ndarray:
    """Returns the corners (n, 2) of a disc, a square or a triangle."""
    angles = 2 * np.pi * ((np.arange(n := (24, 4, 3)[form])) / n + (0, 0.125, 0.75)[form])
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)


if __name__ == "__main__":
    main()
