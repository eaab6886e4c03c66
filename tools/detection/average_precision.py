"""COCO's average precision by pycocotools, and on R resamples of V images; K categories, T thresholds of overlap."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.coco_data import CocoSet
from nlvideo.runtime.errors import UserError

BOX = {"box": "bbox"}  # {name of a metric: what pycocotools calls it}
KINDS = {"masks": BOX | {"mask": "segm"}, "keypoints": BOX | {"keypoint": "keypoints"}, "boxes": BOX}
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # in the order of COCOeval.stats
SIGMA = 0.05  # of each keypoint, as a share of its object's size, where they are not COCO's 17


def evaluate(coco: CocoSet, rows: Mapping[int, Mapping[str, Any]], kind: str, ids: Sequence[int] = ()) -> COCOeval:
    """Returns the accumulated evaluation of {index of an image: {"detections": in COCO's format for results}}.

    Only categories of these ids count, if there are any. Objects without a mask are none for the kind "segm".
    """
    left = {"bbox"} - {kind}  # pycocotools would take the areas of masks and keypoints from it
    every = [one for index in sorted(rows) for one in rows[index]["detections"]]
    detections = [{key: value for key, value in one.items() if key not in left} for one in every]
    objects = [dict(one) for one in coco.api.dataset["annotations"] if kind != "segm" or one.get("segmentation")]
    truth, found = COCO(), COCO()
    truth.dataset, found.dataset = (coco.api.dataset | {"annotations": part} for part in (objects, []))
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found.createIndex()
        result = COCOeval(truth, truth.loadRes(detections) if detections else found, kind)
        if kind == "keypoints" and len(coco.keypoints) != len(result.params.kpt_oks_sigmas):
            result.params.kpt_oks_sigmas = np.full(len(coco.keypoints), SIGMA)
        result.params.catIds = list(ids) or result.params.catIds
        result.evaluate()
        result.accumulate()
        result.summarize()
    return result


def metrics_of(result: COCOeval) -> dict[str, float | None]:
    """Returns {one of NAMES: fraction, None where no object counts}; keypoints have no small objects."""
    names = [name for name in NAMES if name != "ap_small" or result.params.iouType != "keypoints"]
    return {name: None if value < 0 else float(value) for name, value in zip(names, result.stats, strict=False)}


class Matches(NamedTuple):
    """The detections of a category, best first, as COCOeval matched them among objects of all sizes."""

    category: int  # its id
    images: np.ndarray  # (D,), of each detection
    right: np.ndarray  # (T, D) bool
    counted: np.ndarray  # (T, D) bool: neither matched with a crowd nor out of range
    objects: np.ndarray  # (V,)


def matches_of(result: COCOeval) -> list[Matches]:
    """Returns the matches of each category that has objects; raises UserError if none has."""
    params, number, found = result.params, len(result.params.imgIds), []
    for k, category in enumerate(params.catIds):
        first = k * len(params.areaRng) * number  # the first range of areas holds all
        rows = [(i, row) for i, row in enumerate(result.evalImgs[first : first + number]) if row]
        objects = np.bincount([i for i, row in rows for ignored in row["gtIgnore"] if not ignored], minlength=number)
        if objects.any():
            scores = [row["dtScores"][: params.maxDets[-1]] for _, row in rows]
            order = np.argsort(-np.concatenate(scores), kind="mergesort")
            images = np.repeat([i for i, _ in rows], [*map(len, scores)])[order]
            right, ignored = (
                np.concatenate([row[key][:, : params.maxDets[-1]] for _, row in rows], 1)[:, order].astype(bool)
                for key in ("dtMatches", "dtIgnore")
            )
            found.append(Matches(category, images, right, ~ignored, objects))
    if not found:
        raise UserError(f"The annotations have no object for {params.iouType} that counts.")
    return found


def average_precision(matches: Sequence[Matches], weights: np.ndarray) -> np.ndarray:
    """Returns AP (R, K) of samples that have each image as often as weights (R, V) say; COCOeval's with ones.

    It is NaN for categories without objects in a sample.
    """
    recalls, values = np.linspace(0, 1, 101), np.full((len(weights), len(matches)), np.nan)
    for k, category in enumerate(matches):
        for r, weight in enumerate(weights):
            if (objects := category.objects @ weight) > 0:
                drawn = weight[category.images] * category.counted
                right, wrong = ((drawn * which).cumsum(1) for which in (category.right, ~category.right))
                precision = right / np.maximum(right + wrong, np.spacing(1))
                precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
                precision = np.pad(precision, ((0, 0), (0, 1)))  # none beyond the highest recall
                places = [np.searchsorted(recall, recalls, "left") for recall in right / objects]
                values[r, k] = np.take_along_axis(precision, np.array(places), 1).mean()
    return values
