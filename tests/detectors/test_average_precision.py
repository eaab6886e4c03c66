"""AP: pycocotools' own, also where writers number from 0, and our resamples equal it."""

import json

import numpy as np
import pytest

KIND = {"box": "bbox", "mask": "segm"}


def rows_of(detections):
    return {0: {"detections": [dict(one) for one in detections]}}


@pytest.fixture
def coco(tools, changed):
    """The training images of shapes with a crowd, objects numbered from 0, and no areas."""

    def change(content):
        for i, one in enumerate(content["annotations"]):
            one["id"] = i
            one.pop("iscrowd")
        content["annotations"][2]["iscrowd"] = 1

    _, annotations, _, images = changed(change)
    return tools.coco_data.CocoSet(annotations, images, "masks")


def detections_of(coco, rng, *, missed=0.0, moved=0.0, confused=0.0):
    """Returns the truth as detections, in part missed, moved and given to other categories; scores as they come."""
    found = []
    for one in coco.api.dataset["annotations"]:
        if rng.random() >= missed:
            box = np.array(one["bbox"]) + rng.normal(0, moved, 4)
            category = int(rng.choice(coco.category_ids)) if rng.random() < confused else one["category_id"]
            mask = coco.api.annToRLE(one)
            mask = {"size": mask["size"], "counts": mask["counts"].decode()}
            row = {"image_id": one["image_id"], "category_id": category, "bbox": box.tolist(), "segmentation": mask}
            found.append(row | {"score": float(rng.random())})
    return found


def test_the_truth_itself_has_ap_1(tools, coco):
    detections = detections_of(coco, np.random.default_rng(0))
    for kind in KIND.values():
        values = tools.average_precision.metrics_of(tools.average_precision.evaluate(coco, rows_of(detections), kind))
        assert [values[key] for key in ("ap", "ap50", "ap_medium")] == pytest.approx([1, 1, 1])
        assert values["ap_large"] is None
    assert not tools.average_precision.evaluate(coco, rows_of([]), "bbox").stats[0]


@pytest.mark.parametrize("kind", KIND.values())
def test_ap_of_samples_is_cocoevals_on_copies_of_the_images(tools, coco, kind, tmp_path):
    rng, measures = np.random.default_rng(1), tools.average_precision
    detections = [one for _ in range(3) for one in detections_of(coco, rng, missed=0.3, moved=3, confused=0.2)]
    result = measures.evaluate(coco, rows_of(detections), kind)
    matches = measures.matches_of(result)
    weights = np.vstack([np.ones(8), [3, 0, 1, 2, 0, 0, 1, 1], rng.multinomial(8, np.full(8, 1 / 8))]).astype(float)
    ours = measures.average_precision(matches, weights)
    for weight, values in zip(weights, ours, strict=True):
        drawn = [i for i, count in enumerate(weight) for _ in range(int(count))]
        content = {"images": [], "annotations": [], "categories": coco.api.dataset["categories"]}
        copied = []
        for new, i in enumerate(drawn):
            image = coco.images[i]
            content["images"].append(image | {"id": new})
            content["annotations"] += [one | {"image_id": new} for one in coco.objects_of(i)]
            copied += [one | {"image_id": new} for one in detections if one["image_id"] == image["id"]]
        (tmp_path / "copies.json").write_text(json.dumps(content))
        copies = tools.coco_data.CocoSet(tmp_path / "copies.json", coco.folder, "masks")
        assert np.nanmean(values) == pytest.approx(measures.evaluate(copies, rows_of(copied), kind).stats[0], abs=1e-9)
    assert 0.05 < np.nanmean(ours[0]) < 0.95


def test_keypoints_have_the_sigmas_of_their_number_and_unlabelled_objects_do_not_count(tools, changed):
    def change(content):
        del content["annotations"][0]["keypoints"]
        content["annotations"][1]["keypoints"] *= 2

    _, annotations, _, images = changed(change)
    coco = tools.coco_data.CocoSet(annotations, images, "keypoints")
    found = [
        {key: one[key] for key in ("image_id", "category_id", "keypoints")} | {"score": 0.9}
        for one in coco.api.dataset["annotations"][2:]
    ]
    result = tools.average_precision.evaluate(coco, rows_of(found), "keypoints")
    assert result.params.kpt_oks_sigmas.tolist() == [tools.average_precision.SIGMA] * 4
    values = tools.average_precision.metrics_of(result)
    assert values["ap"] == pytest.approx(1) and [*values] == ["ap", "ap50", "ap75", "ap_medium", "ap_large"]
    matches = tools.average_precision.matches_of(result)
    assert np.nanmean(tools.average_precision.average_precision(matches, np.ones((1, 8)))) == pytest.approx(1)
