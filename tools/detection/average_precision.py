"""COCO's average precision by pycocotools, and its intervals over images.

V images, D detections of a category, T thresholds of overlap, R resamples.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from detection.coco_data import CocoSet, segmentation_of
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

KINDS = {"masks": {"box": "bbox", "mask": "segm"}, "keypoints": {"box": "bbox", "keypoint": "keypoints"}}
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
SIGMA = 0.05  # of each keypoint, as a share of its object's size, where they are not COCO's 17


def evaluate(coco: CocoSet, detections: Sequence[dict[str, Any]], kind: str) -> COCOeval:
    """Returns the accumulated evaluation; kind: of pycocotools. Objects without a mask are no objects for "segm"."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        kept = [one for one in coco.api.dataset["annotations"] if kind != "segm" or segmentation_of(one)]
        truth.dataset = coco.api.dataset | {"annotations": [dict(one, segmentation=segmentation_of(one)) for one in kept]}
        truth.createIndex()
        found.dataset = truth.dataset | {"annotations": []}
        found.createIndex()
        result = COCOeval(truth, truth.loadRes([*detections]) if detections else found, kind)
        if kind == "keypoints" and len(coco.keypoints) != len(result.params.kpt_oks_sigmas):
            result.params.kpt_oks_sigmas = np.full(len(coco.keypoints), SIGMA)
        result.evaluate()
        result.accumulate()
        result.summarize()
    return result


def metrics_of(result: COCOeval) -> dict[str, float | None]:
    """Returns {one of NAMES: fraction, None where no object counts}; keypoints have no small objects."""
    names = [name for name in NAMES if result.params.iouType != "keypoints" or name != "ap_small"]
    return {name: None if value < 0 else float(value) for name, value in zip(names, result.stats, strict=False)}


class Matches(NamedTuple):
    """The detections of a category, best first, as COCOeval matched them among objects of all sizes."""

    images: np.ndarray  # (D,)
    right: np.ndarray  # (T, D) bool
    counted: np.ndarray  # (T, D) bool: neither matched with a crowd nor out of range
    objects: np.ndarray  # (V,)


def matches_of(result: COCOeval) -> list[Matches]:
    """Returns the matches of each category that has objects."""
    number, areas = len(result.params.imgIds), len(result.params.areaRng)
    found = []
    for k in range(len(result.params.catIds)):
        first = k * areas * number  # the first range of areas holds all
        rows = [(i, row) for i, row in enumerate(result.evalImgs[first : first + number]) if row]
        objects = np.bincount([i for i, row in rows for ignored in row["gtIgnore"] if not ignored], minlength=number)
        if not objects.any():
            continue
        most = result.params.maxDets[-1]
        images = np.concatenate([np.full(len(row["dtScores"][:most]), i) for i, row in rows])
        order = np.argsort(-np.concatenate([row["dtScores"][:most] for _, row in rows]), kind="mergesort")
        right, ignored = (
            np.concatenate([np.asarray(row[key])[:, :most] for _, row in rows], 1)[:, order].astype(bool)
            for key in ("dtMatches", "dtIgnore")
        )
        found.append(Matches(images[order].astype(int), right, ~ignored, objects))
    return found


def average_precision(matches: Sequence[Matches], weights: np.ndarray) -> np.ndarray:
    """Returns AP (R,) of samples that have each image as often as weights (R, V) say; COCOeval's with ones.

    Categories without objects in a sample are left out of its mean.
    """
    recalls, values = np.linspace(0, 1, 101), np.full((len(weights), len(matches)), np.nan)
    for k, category in enumerate(matches):
        for r, weight in enumerate(weights):
            if (objects := category.objects @ weight) > 0:
                drawn = weight[category.images]
                right = (drawn * (category.right & category.counted)).cumsum(1)
                wrong = (drawn * (~category.right & category.counted)).cumsum(1)
                precision = right / np.maximum(right + wrong, np.spacing(1))
                precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
                precision = np.pad(precision, ((0, 0), (0, 1)))  # none beyond the highest recall
                places = [np.searchsorted(recall, recalls, "left") for recall in right / objects]
                values[r, k] = np.take_along_axis(precision, np.array(places), 1).mean()
    return np.nanmean(values, 1)
