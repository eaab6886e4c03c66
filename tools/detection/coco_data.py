"""Pictures and objects (O an image, of K keypoints) in COCO's format: read, checked, and drawn for each step."""

import contextlib
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image
from PIL.Image import Transpose
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset

from nlvideo.runtime.errors import UserError, UserFileNotFoundError

PARTS = {"masks": "instances", "boxes": "instances", "keypoints": "person_keypoints"}  # of COCO's files' names
LEAST_SIDE = 0.01  # pixels: torchvision refuses boxes without area, which smaller ones become in float32
# What undoes each orientation of EXIF. Pillow's exif_transpose also writes all other tags anew, and fails at odd ones.
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB")  # modes that become RGB right


def coco_places(root: Path, split: str, task: str) -> tuple[Path, Path]:
    """Returns the annotation file and the folder of pictures in COCO as it is distributed; split: "train" or "val"."""
    return root / "annotations" / f"{PARTS[task]}_{split}2017.json", root / f"{split}2017"


class CocoSet:
    """One annotation file, as pycocotools sees it in `api`, and the folder of its pictures.

    Class k of the network is the k-th category by its id, counted from 1. What cannot be used raises UserError.
    """

    def __init__(self, annotations: Path, folder: Path, task: str):
        self.annotations, self.folder, self.task, self.api = annotations, folder, task, COCO()
        try:
            self.api.dataset = content = _read_annotations(annotations)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{annotations} is not in COCO's format: {type(error).__name__} {error}.") from None
        self.sha256 = hashlib.sha256(annotations.read_bytes()).hexdigest()
        with contextlib.redirect_stdout(io.StringIO()):
            self.api.createIndex()
        self.images: list[dict[str, Any]] = content["images"]
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_ids = [category["id"] for category in categories]
        self.names = [str(category.get("name", category["id"])) for category in categories]
        self.keypoints = [str(name) for name in next((c["keypoints"] for c in categories if c.get("keypoints")), [])]
        if task == "keypoints" and not self.keypoints:
            raise UserError(f"--task keypoints: no category of {annotations} has keypoints, a list of their names.")
        odd = [one for one in content["annotations"] if len(one["keypoints"]) != 3 * len(self.keypoints)]
        self.other_keypoints = sum(bool(one["keypoints"]) for one in odd)
        for one in odd:  # which then count as unlabelled, in training and in COCOeval
            one |= {"keypoints": [0] * (3 * len(self.keypoints)), "num_keypoints": 0}
        held = {file.relative_to(folder) for file in folder.rglob("*")}  # one look is faster than 118,000
        missing = [image["file_name"] for image in self.images if Path(image["file_name"]) not in held]
        missing = [name for name in missing if not (folder / name).is_file()]  # rglob follows no links
        if missing:
            count = f"{len(missing)} of the {len(self.images)} pictures of {annotations}"
            raise UserFileNotFoundError(f"{count} are not in {folder}, such as {', '.join(missing[:3])}.")

    def bytes_of(self, index: int) -> int:
        """Returns the size of a picture's file."""
        return (self.folder / self.images[index]["file_name"]).stat().st_size

    def objects_of(self, index: int) -> list[dict[str, Any]]:
        return self.api.imgToAnns.get(self.images[index]["id"], [])


def _read_annotations(path: Path) -> dict[str, Any]:
    """Returns the content of an annotation file, with what COCOeval needs and other writers leave out filled in.

    Objects are numbered from 1: COCOeval takes a match with object 0 for none. Polygons of less than three points,
    which pycocotools takes for boxes, are dropped. A file of something else raises UserError.
    """
    if not path.is_file():
        raise UserFileNotFoundError(f"The annotations {path} do not exist.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON, which COCO's annotations are: {error}.") from None
    parts = [content.get(part) for part in ("images", "categories")] if isinstance(content, dict) else [None]
    if not all(isinstance(part, list) for part in parts):
        held = ", ".join(content) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(f"{path} is not in COCO's format of images, categories and annotations: it has {held}.")
    objects = content.get("annotations")
    if not objects:
        raise UserError(f"{path} has no annotations, as COCO's files for its test server.")
    odd = [one for one in objects if "category_id" not in one or not _is_box(one.get("bbox"))]
    if odd:
        count = f"{len(odd)} of {len(objects)} annotations have no category_id or no bbox of 4 numbers"
        raise UserError(f"{path}: {count}, such as {odd[0]!s:.300}; captions and panoptic segments are no objects.")
    for image in content["images"]:
        sides = {key: image.get(key) for key in ("width", "height")}
        if not (isinstance(image.get("file_name"), str) and all(_is_finite(side) for side in sides.values())):
            raise UserError(f"{path}: an image has no file_name, or no width and height: {image!s:.300}.")
        image |= {key: int(side) for key, side in sides.items()}
    for part, key in (("categories", "category_id"), ("images", "image_id")):
        ids = Counter(one["id"] for one in content[part])
        if twice := [one for one, count in ids.items() if count > 1]:
            raise UserError(f"{path}: {len(twice)} ids of {part} are given twice, such as {twice[0]}.")
        if wrong := [one[key] for one in objects if one[key] not in ids]:
            raise UserError(f"{path}: {len(wrong)} annotations have a {key} that is not in {part}, such as {wrong[0]}.")
    for i, one in enumerate(objects, 1):
        segmentation, points = one.get("segmentation"), one.get("keypoints") or []
        if isinstance(segmentation, list):
            one["segmentation"] = [polygon for polygon in segmentation if len(polygon) >= 6]
        area = one["bbox"][2] * one["bbox"][3] if one.get("area") is None else one["area"]
        one |= {"id": i, "iscrowd": one.get("iscrowd") or 0, "area": area}
        one |= {"keypoints": points, "num_keypoints": sum(visible > 0 for visible in points[2::3])}
    return content


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < float("inf")


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))


class BrokenPicture(Exception):
    """A picture cannot be decoded or is not the annotated one."""


def read_picture(coco: CocoSet, index: int) -> Tensor:
    """Returns a picture (3, H, W) uint8 RGB, turned as its EXIF data say unless only the unturned one has its size."""
    listed = coco.images[index]
    name, size = listed["file_name"], (listed["width"], listed["height"])
    try:
        with Image.open(coco.folder / name) as stored:
            turn = TURNS.get(stored.getexif().get(ExifTags.Base.Orientation))
            turned = stored if turn is None else stored.transpose(turn)
            picture = turned if turned.size == size else stored
            pixels = np.array(picture.convert("RGB"))
    except Exception as error:  # Pillow raises whatever a damaged file makes its parsers raise
        raise BrokenPicture(f"{name}: {error}") from None
    if picture.mode not in EIGHT_BIT:
        raise BrokenPicture(f"{name}: pixels of more than 8 bits (mode {picture.mode})")
    if picture.size != size:
        found, wanted = ("x".join(map(str, shape)) for shape in (picture.size, size))
        raise BrokenPicture(f"{name}: it has {found} pixels, its annotations are for {wanted}")
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


class Sample(NamedTuple):
    """An image to train on."""

    picture: Tensor  # (3, H, W) uint8
    target: dict[str, Tensor]  # boxes (O, 4) x0 y0 x1 y1, labels (O,) from 1; masks (O, H, W) or keypoints (O, K, 3)
    seed: int  # of what is drawn for this image inside the network
    broken: str | None  # why the picture could not be read; it is black then, without objects


# What tells the side in a keypoint's name: left_eye, Right Eye, L_Eye, eye-r; eyeL, forelegR1; LShoulder, rWrist.
SIDES = r"(?i:left|right|(?<![a-z])[lr](?![a-z]))|(?<=[a-z])[LR](?![a-z])|(?<![A-Za-z])[LRlr](?=[A-Z])"
OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}


def mirrored_keypoints(keypoints: Sequence[str]) -> list[int]:
    """Returns for each keypoint which one stands in its place in a mirrored picture: that of the other side or it."""
    names = [name.lower() for name in keypoints]
    others = [re.sub(SIDES, lambda side: OTHER_SIDE[side[0].lower()], name).lower() for name in keypoints]
    return [names.index(other) if other != names[i] and other in names else i for i, other in enumerate(others)]


class TrainingImages(Dataset):
    """The images of a CocoSet that have objects to learn from; an item is a function of (seed, epoch, image)."""

    def __init__(self, coco: CocoSet, seed: int):
        self.coco, self.seed, self.left_out = coco, seed, Counter[str]()
        self.objects = {i: self._usable(i) for i in range(len(coco.images))}
        self.indices = [i for i, objects in self.objects.items() if objects]
        self.left_out["images without objects to learn from"] += len(coco.images) - len(self.indices)
        self.left_out["lists of keypoints of another length"] += coco.other_keypoints if coco.task == "keypoints" else 0
        self.mirrored = mirrored_keypoints(coco.keypoints)
        used = f"{len(self.indices)} images with {sum(map(len, self.objects.values()))} objects"
        if coco.task == "keypoints":
            pairs = sum(k != i for i, k in enumerate(self.mirrored)) // 2
            used += f" of {len(coco.keypoints)} keypoints, {pairs} pairs of which change sides in mirrored pictures"
        self.summary = ", ".join([used, *(f"{count} {what}" for what, count in self.left_out.items() if count)])
        if not self.indices:
            raise UserError(f"{coco.annotations} has no object with {coco.task} to learn from: {self.summary}.")

    def _usable(self, index: int) -> list[dict[str, Any]]:
        image, kept = self.coco.images[index], []
        for one in self.coco.objects_of(index):
            box, mask = _corners(one["bbox"], image), one.get("segmentation")
            sized = not isinstance(mask, dict) or _fills(mask, [image["height"], image["width"]])
            if one["iscrowd"]:
                self.left_out["crowds"] += 1
            elif (box[2:] - box[:2]).min() < LEAST_SIDE:
                self.left_out["objects without area in their picture"] += 1
            elif self.coco.task == "masks" and not (mask and sized):
                self.left_out["objects without a mask of their picture's size"] += 1
            else:
                kept.append(one)
        return kept if self.coco.task != "keypoints" or any(one["num_keypoints"] for one in kept) else []

    def __getitem__(self, draw: tuple[int, int]) -> Sample:
        """Returns the sample of (index of an image, epoch)."""
        index, epoch = draw
        mirror, seed = np.random.SeedSequence([self.seed, epoch, index]).generate_state(2).tolist()
        try:
            picture = read_picture(self.coco, index)
        except BrokenPicture as error:
            black = torch.zeros(3, 64, 64, dtype=torch.uint8)
            return Sample(black, self._target([], {"width": 64, "height": 64}), seed, str(error))
        target = self._target(self.objects[index], self.coco.images[index])
        return Sample(*(self._mirror(picture, target) if mirror % 2 else (picture, target)), seed, None)

    def _target(self, objects: Sequence[dict[str, Any]], image: Mapping[str, Any]) -> dict[str, Tensor]:
        labels = [self.coco.category_ids.index(one["category_id"]) + 1 for one in objects]
        boxes = np.array([_corners(one["bbox"], image) for one in objects], np.float32).reshape(-1, 4)
        target = {"boxes": torch.from_numpy(boxes), "labels": torch.tensor(labels, dtype=torch.int64)}
        if self.coco.task == "masks":
            masks = np.array([self.coco.api.annToMask(one) for one in objects], np.uint8)
            return target | {"masks": torch.from_numpy(masks.reshape(-1, image["height"], image["width"]))}
        if self.coco.task == "boxes":
            return target
        points = np.array([one["keypoints"] for one in objects], np.float32)
        return target | {"keypoints": torch.from_numpy(points.reshape(-1, len(self.coco.keypoints), 3))}

    def _mirror(self, picture: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        width, (x0, y0, x1, y1) = picture.shape[2], target["boxes"].unbind(1)
        mirrored = target | {"boxes": torch.stack([width - x1, y0, width - x0, y1], 1)}
        if "masks" in target:
            mirrored["masks"] = target["masks"].flip(2)
        elif "keypoints" in target:
            x, y, visible = target["keypoints"][:, self.mirrored].unbind(2)
            mirrored["keypoints"] = torch.stack([(width - 1 - x) * (visible > 0), y, visible], 2)
        return picture.flip(2), mirrored


def _fills(mask: Mapping[str, Any], size: list[int]) -> bool:
    """Returns whether run lengths are of a picture (height, width); compressed ones are a string."""
    counts = mask.get("counts")
    return mask.get("size") == size and (isinstance(counts, str) or sum(counts or ()) == size[0] * size[1])


def _corners(box: Sequence[float], image: Mapping[str, Any]) -> np.ndarray:
    x, y, width, height = box
    return np.clip(np.array([x, y, x + width, y + height], np.float64), 0, [image["width"], image["height"]] * 2)


def micro_batches(images: TrainingImages, size: int) -> Iterator[list[tuple[int, int]]]:
    """Yields micro-batches without end, each of wide or of tall pictures only, so that padding is rare.

    Each epoch draws every image once; one that finds no partner of its shape waits for the next epoch's.
    """
    waiting: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for epoch in count():
        for index in np.random.default_rng([images.seed, epoch]).permutation(images.indices).tolist():
            listed = images.coco.images[index]
            group = waiting[listed["width"] >= listed["height"]]
            group.append((index, epoch))
            if len(group) == size:
                yield group.copy()
                group.clear()
