"""Evaluates a detector by COCO's rules: AP of boxes and of masks or keypoints, with intervals, and pictures.

    python tools/evaluate_detector.py outputs/shapes_nl1 --pictures 4
    python tools/evaluate_detector.py outputs/shapes_nl1 --baseline outputs/shapes_none/evaluation  # paired difference
    torchrun --nproc_per_node=8 tools/evaluate_detector.py DIR --coco COCO

It writes result.json, detections.jsonl (one file for each rank, from which a killed evaluation continues) and pictures
into DIR/evaluation. Intervals: 95 %, percentiles over resamples of the images. AP is COCOeval's; broken pictures have
no detections and are counted.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import nlvideo.runtime.threads  # noqa: F401, before torch is loaded

# isort: split
import numpy as np
import torch
from detection import average_precision, networks
from detection.coco_data import BrokenPicture, CocoSet, coco_places, read_picture
from detection.pictures import draw_detections
from pycocotools import mask as rle
from rich.console import Console
from rich.table import Table
from torch import Tensor
from train_detector import network_settings

from nlvideo.evaluation.intervals import LEVEL, RESAMPLES, bootstrap
from nlvideo.runtime import distributed
from nlvideo.runtime.errors import UserError, UserFileNotFoundError, reporting_errors
from nlvideo.runtime.files import make_folder, write_text
from nlvideo.runtime.progress import progress_bar
from nlvideo.weights.checkpoint_file import NEWEST_FILE, load_checkpoint

RESULT_FILE, DETECTIONS = "result.json", "detections*.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, or a checkpoint")
    parser.add_argument("--coco", metavar="DIR", help="with val2017/ and annotations/ (default: the run's)")
    parser.add_argument("--images", metavar="DIR", help="of pictures, instead of --coco")
    parser.add_argument("--annotations", metavar="FILE", help="in COCO's format, instead of --coco")
    parser.add_argument("--output", type=Path, metavar="DIR", help="(default: evaluation, beside the checkpoint)")
    parser.add_argument("--baseline", type=Path, metavar="DIR", help="evaluation of another run on the same images")
    parser.add_argument("--pictures", type=int, default=0, metavar="N", help="draw the first N images")
    parser.add_argument("--query", type=float, nargs=2, metavar=("X", "Y"), help="whose attention is drawn, in pixels")
    with reporting_errors():
        evaluate(parser.parse_args())


def evaluate(given: argparse.Namespace) -> None:
    """Detects what is not detected yet, and writes and prints the results."""
    world = distributed.init_world()
    path = given.run / NEWEST_FILE if given.run.is_dir() else given.run
    checkpoint = distributed.together(load_checkpoint, path)
    config = checkpoint["config"]
    if not {"task", "backbone"} <= config.keys():
        raise UserError(f"{path} is not a detector's checkpoint.")
    if given.annotations is None or given.images is None:
        if not (root := given.coco or config["coco"]):
            raise UserError("Give --coco, or --images and --annotations: the run had no --coco.")
        given.annotations, given.images = map(str, coco_places(Path(root), "val", config["task"]))
    coco = distributed.together(CocoSet, Path(given.annotations), Path(given.images), config["task"])
    if (coco.names, coco.keypoints) != (checkpoint["classes"], checkpoint["keypoints"]):
        raise UserError(f"{given.annotations} has other categories or keypoints than {path} was trained for.")
    network = networks.build_detector(network_settings(config, coco)).eval().to(world.device)
    network.load_state_dict(checkpoint["model"])
    folder = given.output or path.parent / "evaluation"
    identity = {"checkpoint_sha256": checkpoint["sha256"], "annotations_sha256": coco.sha256, "task": config["task"]}
    distributed.on_main(make_folder, folder, f"--output {folder}")
    rows = distributed.on_main(kept_detections, folder, identity)
    left = [i for i in range(len(coco.images)) if i not in rows][world.rank :: world.size]
    with open(folder / f"detections{world.rank}.jsonl", "a") as file:
        file.write(json.dumps(identity) + "\n")
        for index in progress_bar(left, desc="detecting", unit="image", disable=not world.is_main):
            file.write(json.dumps({"index": index, **detected(network, coco, index)}) + "\n")
    distributed.wait_for_all()
    if world.is_main:
        rows = kept_detections(folder, identity)
        finish(given, folder, coco, rows, identity | {"checkpoint": str(path), "step": checkpoint["step"]})
        for index in range(min(given.pictures, len(coco.images))):
            picture = read_picture(coco, index)
            draw_detections(folder / f"picture{index}.png", network, picture, coco.names, given.query)
    distributed.leave_together()


def kept_detections(folder: Path, identity: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Returns {index of an image: what was detected in it}; a line that a kill cut is dropped.

    Raises:
        UserError: they are of another checkpoint or of other images.
    """
    found = {}
    for file in sorted(folder.glob(DETECTIONS)):
        text = file.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_text(file, whole)
        for row in map(json.loads, whole.splitlines()):
            if "index" in row:
                found[row["index"]] = row
            elif row["annotations_sha256"] != identity["annotations_sha256"] or row != {**row, **identity}:
                raise UserError(f"{folder} holds the evaluation of another checkpoint or of other images.")
    return found


@torch.inference_mode()
def detected(network: networks.Detector, coco: CocoSet, index: int) -> dict[str, Any]:
    """Returns {"detections": in COCO's format for results} of an image, and why it is "broken" if it is."""
    try:
        picture = read_picture(coco, index).to(next(network.parameters()).device) / 255
    except BrokenPicture as error:
        return {"detections": [], "broken": str(error)}
    (found,) = network([picture])
    rows: list[dict[str, Any]] = []
    for i, (label, score) in enumerate(zip(found["labels"].tolist(), found["scores"].tolist(), strict=True)):
        x0, y0, x1, y1 = found["boxes"][i].tolist()
        row = {"image_id": coco.images[index]["id"], "category_id": coco.category_ids[label - 1], "score": score}
        row["bbox"] = [x0, y0, x1 - x0, y1 - y0]
        if "masks" in found:
            row["segmentation"] = encoded(found["masks"][i, 0] > 0.5)
        else:
            row["keypoints"] = found["keypoints"][i].flatten().tolist()
        rows.append(row)
    return {"detections": rows}


def encoded(mask: Tensor) -> dict[str, Any]:
    """Returns a mask (H, W) bool in COCO's run lengths."""
    found = rle.encode(np.asfortranarray(mask.cpu().numpy(), np.uint8))
    return {"size": found["size"], "counts": found["counts"].decode()}


def finish(
    given: argparse.Namespace, folder: Path, coco: CocoSet, rows: dict[int, dict[str, Any]], result: dict[str, Any]
) -> None:
    """Computes the metrics, writes result.json, and prints the table."""
    other = baseline_rows(given.baseline, coco) if given.baseline else None
    broken = [row["broken"] for row in rows.values() if "broken" in row]
    result |= {"num_images": len(rows), "num_broken": len(broken), "broken": broken, "annotations": given.annotations}
    table = Table("", *average_precision.NAMES, "interval of ap", title=f"{len(rows)} images, {len(broken)} broken")
    for name, kind in average_precision.KINDS[coco.task].items():
        ours = average_precision.evaluate(coco, detections_of(rows), kind)
        values, matches = average_precision.metrics_of(ours), average_precision.matches_of(ours)
        interval = bootstrap(lambda w, m=matches: average_precision.average_precision(m, w), len(rows)).ends
        result |= {f"{name}_{key}": value for key, value in values.items()} | {f"{name}_ap_interval": interval}
        table.add_row(name, *(percent(values.get(key)) for key in average_precision.NAMES), ends(interval))
        if other is not None:
            theirs = average_precision.matches_of(average_precision.evaluate(coco, detections_of(other), kind))
            def difference(w, m=matches, t=theirs):
                return average_precision.average_precision(m, w) - average_precision.average_precision(t, w)
            gain, interval = difference(np.ones((1, len(rows))))[0], bootstrap(difference, len(rows)).ends
            result |= {f"{name}_ap_gain": float(gain), f"{name}_ap_gain_interval": interval, "baseline": str(given.baseline)}
            table.add_row(f"{name}, gain", f"{100 * gain:+.2f}", *[""] * 5, ends(interval))
    result["interval"] = f"{100 * LEVEL:.0f} %, percentiles over {RESAMPLES} resamples of the images"
    write_text(folder / RESULT_FILE, json.dumps(result, indent=1))
    Console(width=120).print(table)
    print(*(f"broken picture, without detections: {reason}" for reason in broken[:10]), sep="\n", end="\n" * bool(broken))
    print(f"results      {folder / RESULT_FILE}")


def baseline_rows(folder: Path, coco: CocoSet) -> dict[int, dict[str, Any]]:
    """Returns the detections of another finished evaluation.

    Raises:
        UserError: it is not there, not finished, or of other images.
    """
    if not (folder / RESULT_FILE).is_file():
        raise UserFileNotFoundError(f"--baseline {folder} holds no finished evaluation.")
    rows = kept_detections(folder, {"annotations_sha256": coco.sha256, "task": coco.task})
    return rows


def detections_of(rows: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for index in sorted(rows) for one in rows[index]["detections"]]


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def ends(interval: tuple[float, float]) -> str:
    return "{:.2f} to {:.2f}".format(*(100 * end for end in interval))


if __name__ == "__main__":
    main()
