"""Data in COCO's format: what is learned from, what is refused in one line, and what a step draws."""

import json
import struct
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from nlvideo.runtime.errors import UserError


@pytest.fixture
def read(tools):
    """Returns a function that opens a set."""

    def open_set(options, task="masks"):
        _, annotations, _, images = options
        return tools.coco_data.CocoSet(annotations, images, task)

    return open_set


def sides(box):
    return [float(x) for x in box]


def test_a_target_is_what_the_annotations_say(tools, read, changed):
    coco = read(changed(lambda content: None))
    images = tools.coco_data.TrainingImages(coco, 1)
    assert images.summary.startswith("8 images with ") and images.summary.count(",") == 0
    assert coco.names == ["red lamp", "green lamp", "red-lit", "green-lit"]
    for index in range(8):
        target = images._target(images.objects[index], coco.images[index])
        for i, one in enumerate(coco.objects_of(index)):
            x, y, width, height = one["bbox"]
            assert sides(target["boxes"][i]) == pytest.approx([x, y, x + width, y + height], abs=1e-3)
            assert target["labels"][i] == one["category_id"]
            assert target["masks"][i].sum().item() == pytest.approx(one["area"], rel=0.08)
            rows, columns = target["masks"][i].nonzero().unbind(1)
            assert [columns.min() - x, rows.min() - y] == pytest.approx([0, 0], abs=1.5)


def test_what_teaches_nothing_is_left_out_and_counted(tools, read, changed):
    def change(content):
        objects = content["annotations"]
        crowd, flat, outside, polygon, *_ = objects
        crowd["iscrowd"] = 1
        flat["bbox"][2] = 0
        outside["bbox"][0] = 500
        polygon["segmentation"] = [polygon["segmentation"][0][:4]]
        content["annotations"] = [one for one in objects if one["image_id"] != 8]

    images = tools.coco_data.TrainingImages(read(changed(change)), 1)
    for part in (
        "1 crowds",
        "2 objects without area in their picture",
        "1 objects without a mask of",
        "1 images without",
    ):
        assert part in images.summary
    assert 7 not in images.indices


def test_what_becomes_empty_in_float32_or_does_not_fill_its_picture_teaches_nothing(tools, read, changed):
    def change(content):
        first, second, third, *_ = content["annotations"]
        first["bbox"][2] = 1e-6
        second["segmentation"] = {"size": [160, 160], "counts": [160, 160]}
        third |= {"area": None, "iscrowd": None}

    coco = read(changed(change))
    images = tools.coco_data.TrainingImages(coco, 1)
    assert "1 objects without area in their picture, 1 objects without a mask of" in images.summary
    third = coco.api.dataset["annotations"][2]
    assert third["iscrowd"] == 0 and third["area"] == third["bbox"][2] * third["bbox"][3]


def test_pictures_behind_a_link_are_found(tools, shapes, tmp_path, changed):
    def change(content):
        for image in content["images"]:
            image["file_name"] = f"linked/{image['file_name']}"

    (tmp_path / "linked").symlink_to(shapes / "train2017")
    coco = tools.coco_data.CocoSet(changed(change)[1], tmp_path, "masks")
    assert tools.coco_data.read_picture(coco, 0).shape == (3, 160, 160)


@pytest.mark.parametrize(
    "names, mirrored",
    [
        (["nose", "left_eye", "right_eye"], [0, 2, 1]),
        (["Nose", "L_Eye", "R_Eye", "Left Ear", "Right Ear", "tail-l", "tail-r"], [0, 2, 1, 4, 3, 6, 5]),
        (["eyeL", "eyeR", "forelegL1", "forelegL2", "forelegR1", "forelegR2"], [1, 0, 4, 5, 2, 3]),
        (["LShoulder", "RShoulder", "lWrist", "rWrist"], [1, 0, 3, 2]),
        (["tail", "collar", "left_paw", "rump"], [0, 1, 2, 3]),  # no letter within a word, and no right paw
    ],
)
def test_which_keypoints_change_sides(tools, read, changed, names, mirrored):
    def change(content):
        for category in content["categories"]:
            category["keypoints"] = names
        for one in content["annotations"]:
            one["keypoints"] = [5, 5, 2] * len(names)

    images = tools.coco_data.TrainingImages(read(changed(change), "keypoints"), 1)
    assert images.mirrored == mirrored
    assert f" of {len(names)} keypoints, {sum(i != k for i, k in enumerate(mirrored)) // 2} pairs" in images.summary


def test_masks_and_keypoints_of_other_sizes_teach_nothing(tools, read, changed):
    def change(content):
        first, second, *_ = content["annotations"]
        first["segmentation"] = {"size": [10, 10], "counts": [100]}
        first["keypoints"] = first["keypoints"] * 2
        del second["keypoints"]
        second["segmentation"] = {"size": [160, 160], "counts": [160, 160, 160 * 158]}  # the second column

    options = changed(change)
    images = tools.coco_data.TrainingImages(read(options), 1)
    assert "1 objects without a mask of their picture's size" in images.summary
    assert images._target(images.objects[0], images.coco.images[0])["masks"][0].nonzero()[:, 1].unique().tolist() == [1]
    images = tools.coco_data.TrainingImages(read(options, "keypoints"), 1)
    assert "1 lists of keypoints of another length" in images.summary
    assert not images._target(images.objects[0], images.coco.images[0])["keypoints"][:2].any()


def test_mirrored_images_have_mirrored_targets(tools, read, changed):
    coco = read(changed(lambda content: None), "keypoints")
    images = tools.coco_data.TrainingImages(coco, 1)
    target = images._target(images.objects[0], coco.images[0])
    target["keypoints"][0, 1] = 0  # is not there
    picture, mirrored = images._mirror(torch.arange(160.0).expand(3, 160, 160), target)
    assert picture[0, 0].tolist() == [*range(159, -1, -1)]
    assert torch.allclose(mirrored["boxes"][:, [0, 2]], 160 - target["boxes"][:, [2, 0]])
    left, top, right = (mirrored["keypoints"][0, i] for i in (0, 1, 2))
    assert left[0] < right[0]  # the names keep their sides
    assert left[0] == 159 - target["keypoints"][0, 2, 0] and top.tolist() == [0, 0, 0]
    masks = tools.coco_data.TrainingImages(read(changed(lambda content: None)), 1)
    whole = masks._target(masks.objects[0], coco.images[0])
    assert torch.equal(masks._mirror(picture, whole)[1]["masks"], whole["masks"].flip(2))


def test_half_of_the_images_are_mirrored_and_each_draw_repeats(tools, read, changed):
    images = tools.coco_data.TrainingImages(read(changed(lambda content: None)), 1)
    samples = {draw: images[draw] for draw in [(i, epoch) for epoch in range(8) for i in range(8)]}
    whole = {i: tools.coco_data.read_picture(images.coco, i) for i in range(8)}
    mirrored = sum(not torch.equal(sample.picture, whole[i]) for (i, _), sample in samples.items())
    assert 20 < mirrored < 44
    assert len({sample.seed for sample in samples.values()}) == 64
    again = images[3, 5]
    assert again.seed == samples[3, 5].seed and torch.equal(again.picture, samples[3, 5].picture)


def test_an_epoch_draws_every_image_once_in_micro_batches_of_one_shape(tools, read, changed):
    def change(content):
        for image in content["images"][:3]:
            image["height"] = 999

    images = tools.coco_data.TrainingImages(read(changed(change)), 1)
    batches = [*islice(tools.coco_data.micro_batches(images, 2), 16)]
    draws = [draw for batch in batches for draw in batch]
    for epoch in range(3):
        assert len({i for i, e in draws if e == epoch}) == sum(e == epoch for _, e in draws) >= 7
    assert {i for i, e in draws if e == 0} | {i for i, e in draws if e == 1} == {*range(8)}
    assert all(len({i < 3 for i, _ in batch}) == 1 for batch in batches)
    assert [*islice(tools.coco_data.micro_batches(images, 2), 5, 9)] == batches[5:9]


# Pictures


@pytest.fixture
def one_picture(tools, tmp_path):
    """Returns a function that saves a picture as name and reads it, listed with this size."""

    def read_one(picture, name, size, **options):
        picture.save(tmp_path / name, **options)
        content = {
            "images": [{"id": 1, "file_name": name, "width": size[0], "height": size[1]}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "segmentation": [[0] * 6]}
            ],
            "categories": [{"id": 1, "name": "thing"}],
        }
        (tmp_path / "one.json").write_text(json.dumps(content))
        coco = tools.coco_data.CocoSet(tmp_path / "one.json", tmp_path, "masks")
        return tools.coco_data.read_picture(coco, 0)

    return read_one


def two_halves(mode="RGB"):
    """Returns a picture of 8 x 4 pixels, black at the left and red at the right."""
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 4:, 0] = 255
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode, name", [("RGB", "a.png"), ("RGBA", "a.png"), ("P", "a.png"), ("RGB", "a.bmp")])
def test_pictures_of_other_modes_become_rgb(one_picture, mode, name):
    found = one_picture(two_halves(mode), name, (8, 4))
    assert found.shape == (3, 4, 8) and found.dtype == torch.uint8
    assert found[0, 0].tolist() == [0] * 4 + [255] * 4 and found[1:].max() == 0


def test_grey_and_cmyk_pictures_are_read(one_picture):
    assert one_picture(two_halves("L"), "a.png", (8, 4))[:, 0, 7].tolist() == [76, 76, 76]
    cmyk = one_picture(two_halves("CMYK"), "a.jpg", (8, 4), quality=100)
    assert cmyk[0, 0, 7] > 230 and cmyk[1, 0, 7] < 60


@pytest.mark.parametrize("orientation, size, first", [(6, (4, 8), "bottom"), (3, (8, 4), "left"), (6, (8, 4), "right")])
def test_a_picture_is_turned_as_its_exif_says_unless_that_is_another_size(one_picture, orientation, size, first):
    exif = Image.Exif()
    exif[0x0112] = orientation
    red = one_picture(two_halves(), "a.png", size, exif=exif)[0] > 128
    assert red.shape == size[::-1]
    assert {"bottom": red[-1].all(), "left": red[:, 0].all(), "right": red[:, -1].all()}[first]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone_as_pillow_undoes_it(one_picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 8, 3), np.uint8))
    picture.info["exif"] = exif.tobytes()
    wanted = ImageOps.exif_transpose(picture)
    found = one_picture(picture, "a.png", wanted.size, exif=exif)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.array(wanted))


def test_a_malformed_tag_beside_the_orientation_does_not_break_a_picture(one_picture, tmp_path):
    tag = lambda number, kind, value: struct.pack("<HHII", number, kind, 1, value)  # noqa: E731
    odd = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tag(0xFE, 10, 0) + tag(0x0112, 3, 6) + struct.pack("<I", 0)
    found = one_picture(two_halves(), "a.jpg", (4, 8), exif=odd, quality=100)
    assert found.shape == (3, 8, 4) and (found[0, -1] > 200).all()


@pytest.mark.parametrize(
    "picture, size, part",
    [
        (two_halves(), (16, 4), "8x4 pixels, its annotations are for 16x4"),
        (Image.fromarray(np.full((4, 8), 40000, np.uint16)), (8, 4), "more than 8 bits"),
    ],
)
def test_other_pictures_are_broken(tools, one_picture, picture, size, part):
    with pytest.raises(tools.coco_data.BrokenPicture, match=part):
        one_picture(picture, "a.png", size)


def test_a_broken_picture_is_a_black_sample_with_its_reason(tools, changed, shapes, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for file in (shapes / "train2017").iterdir():
        (images / file.name).write_bytes(file.read_bytes())
    whole = (images / "000002.png").read_bytes()
    (images / "000002.png").write_bytes(whole[: len(whole) // 2])
    coco = tools.coco_data.CocoSet(changed(lambda content: None)[1], images, "masks")
    sample = tools.coco_data.TrainingImages(coco, 1)[2, 0]
    assert sample.broken.startswith("000002.png: ") and sample.picture.max() == 0 and len(sample.target["boxes"]) == 0


# Refused


def without(*keys):
    return lambda content: {key: value for key, value in content.items() if key not in keys}


def first_object(**changes):
    return lambda content: content["annotations"][0].update(changes)


def drop(part, key):
    return lambda content: [one.pop(key, None) for one in content[part]] and None


REFUSED = {
    "no annotations": (without("annotations"), "has no annotations"),
    "an empty list": (lambda content: content | {"annotations": []}, "has no annotations"),
    "results": (lambda content: content["annotations"], "not in COCO's format .* a list"),
    "another format": (without("images", "categories"), "it has annotations"),
    "captions": (drop("annotations", "bbox"), "have no category_id or no bbox"),
    "a category": (
        first_object(category_id=77),
        "1 annotations have a category_id that is not in categories, such as 77",
    ),
    "an image": (first_object(image_id="x"), "image_id that is not in images, such as x"),
    "a box": (first_object(bbox=[1, 2]), "no bbox of 4 numbers"),
    "ids twice": (lambda content: content["images"].append(content["images"][0]), "given twice, such as 1"),
    "no size": (drop("images", "width"), "no file_name, or no width and height: {'id': 1, 'file_name': '000000.png'"),
    "a size in words": (
        lambda content: content["images"][0].update(width="160"),
        "no file_name, or no width and height",
    ),
    "a null box": (first_object(bbox=None), "no bbox of 4 numbers"),
    "a box with a null": (first_object(bbox=[None, 1, 2, 3]), "no bbox of 4 numbers, such as .*None, 1, 2, 3"),
    "a box without an end": (first_object(bbox=[0, 1, float("inf"), 3]), "no bbox of 4 numbers"),
    "no id": (drop("images", "id"), "is not in COCO's format: KeyError 'id'"),
    "no keypoints": (drop("categories", "keypoints"), "no category of .* has keypoints, a list of"),
    "pictures": (lambda content: content["images"][3].update(file_name="lost.png"), "1 of the 8 pictures .* lost.png"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_annotations_are_refused_in_one_line(read, changed, name):
    change, part = REFUSED[name]
    with pytest.raises(UserError, match=part) as error:
        read(changed(lambda content: change(content)), "keypoints" if name == "no keypoints" else "masks")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text, part", [("<xml/>", "is not JSON"), ("[" * 10**5, "is not JSON"), (None, "not exist")])
def test_other_files_are_refused(tools, tmp_path, text, part):
    if text:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=part):
        tools.coco_data.CocoSet(tmp_path / "a.json", tmp_path, "masks")


def test_annotations_without_anything_to_learn_are_refused(tools, read, changed):
    coco = read(changed(drop("annotations", "segmentation")))
    with pytest.raises(UserError, match="no object with masks to learn from: .* objects without a mask of"):
        tools.coco_data.TrainingImages(coco, 1)
    hidden = read(changed(drop("annotations", "keypoints")), "keypoints")
    with pytest.raises(UserError, match="no object with keypoints"):
        tools.coco_data.TrainingImages(hidden, 1)
