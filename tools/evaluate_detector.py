"""Evaluates a detector by COCO's rules: AP of boxes, masks or keypoints, with intervals, and pictures.

    python tools/evaluate_detector.py outputs/shapes_nl1 --pictures 4
    python tools/evaluate_detector.py outputs/shapes_nl1 --baseline outputs/shapes_none    # and the paired difference
    torchrun --nproc_per_node=8 tools/evaluate_detector.py DIR --coco COCO

DIR/evaluation gets result.json, the pictures, and detections*.jsonl, one for each rank, from which a killed evaluation
continues. AP is COCOeval's. Intervals are basic bootstrap intervals over the images. Broken pictures are counted.
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
from pycocotools import mask as run_lengths
from rich.console import Console
from rich.table import Table
from torchvision.models.detection import FasterRCNN
from train_detector import network_settings

from nlvideo.evaluation.intervals import LEVEL, RESAMPLES, bootstrap
from nlvideo.runtime import distributed
from nlvideo.runtime.errors import UserError, UserFileNotFoundError, reporting_errors
from nlvideo.runtime.files import make_folder, write_text
from nlvideo.runtime.folder_lock import lock_folder
from nlvideo.runtime.progress import progress_bar
from nlvideo.weights.checkpoint_file import NEWEST_FILE, load_checkpoint

RESULT_FILE, FOLDER = "result.json", "evaluation"
Rows = dict[int, dict[str, Any]]  # {index of an image: what was detected in it}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, or a checkpoint")
    parser.add_argument("--coco", metavar="DIR", help="with val2017/ and annotations/ (default: the run's)")
    parser.add_argument("--images", metavar="DIR", help="of pictures, instead of --coco")
    parser.add_argument("--annotations", metavar="FILE", help="in COCO's format, instead of --coco")
    parser.add_argument("--categories", nargs="+", default=[], metavar="NAME", help="only these count (default: all)")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"(default: {FOLDER}, beside the checkpoint)")
    parser.add_argument("--baseline", type=Path, metavar="DIR", help="another run, evaluated on the same images")
    parser.add_argument("--pictures", type=int, default=0, metavar="N", help="draw the first N images")
    parser.add_argument("--query", type=float, nargs=2, default=(), metavar=("X", "Y"), help="whose attention is drawn")
    with reporting_errors():
        evaluate(parser.parse_args())


def evaluate(given: argparse.Namespace) -> None:
    """Detects what is not detected yet, and writes and prints the results."""
    world, path = distributed.init_world(), given.run / NEWEST_FILE if given.run.is_dir() else given.run
    checkpoint = distributed.together(load_checkpoint, path)
    config = checkpoint["config"]
    if "keypoints" not in checkpoint:
        raise UserError(f"{path} is not a detector's checkpoint.")
    if given.annotations is None or given.images is None:
        if not (root := given.coco or config["coco"]) or given.annotations != given.images:
            raise UserError("Give --coco, or --images and --annotations, where the run had no --coco.")
        given.annotations, given.images = coco_places(Path(root), "val", config["task"])
    coco = distributed.together(CocoSet, Path(given.annotations), Path(given.images), config["task"])
    if (coco.names, coco.keypoints) != (checkpoint["classes"], checkpoint["keypoints"]):
        raise UserError(f"{given.annotations} has other categories or keypoints than {path} was trained for.")
    if unknown := {*given.categories} - {*coco.names}:
        raise UserError(f"--categories {' '.join(unknown)}: choose from {', '.join(coco.names)}.")
    network = networks.build_detector(network_settings(config, coco)).eval().to(world.device)
    network.load_state_dict(checkpoint["model"])
    folder = given.output or path.parent / FOLDER
    identity = {"checkpoint_sha256": checkpoint["sha256"], "annotations_sha256": coco.sha256, "task": coco.task}
    distributed.on_main(make_folder, folder, f"--output {folder}")
    distributed.on_main(lock_folder, folder)
    other = distributed.together(baseline_detections, given.baseline, coco)
    before = distributed.on_main(kept_detections, folder, identity, coco)
    left = [i for i in range(len(coco.images)) if "broken" in before.get(i, ("broken",))][world.rank :: world.size]
    with open(folder / f"detections{world.rank}.jsonl", "a") as file:
        file.write(json.dumps(identity) + "\n")
        for index in progress_bar(left, desc="detecting", unit="image", disable=not world.is_main):
            row = {"index": index, "bytes": coco.bytes_of(index)} | detected(network, coco, index)
            file.write(json.dumps(row) + "\n")
            file.flush()
    distributed.wait_for_all()
    if world.is_main:
        identity |= {"checkpoint": str(path), "step": checkpoint["step"], "annotations": str(given.annotations)}
        rows = kept_detections(folder, identity, coco)
        finish(folder, coco, rows, other, identity | {"categories": given.categories or coco.names})
        for index in (i for i in range(min(given.pictures, len(rows))) if "broken" not in rows[i]):
            file, picture = folder / f"picture{index}.png", read_picture(coco, index)
            draw_detections(file, network, picture, coco.names, given.query)
    distributed.leave_together()


def kept_detections(folder: Path, identity: dict[str, Any], coco: CocoSet) -> Rows:
    """Returns what is detected already in these pictures, told by their sizes, without a line that a kill cut.

    Another identity raises UserError.
    """
    found: Rows = {}
    for file in folder.glob("detections*.jsonl"):
        text = file.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_text(file, whole)
        for row in map(json.loads, whole.splitlines()):
            if "index" in row:
                if row.get("bytes") == coco.bytes_of(row["index"]):
                    found[row["index"]] = row if "broken" not in row else found.get(row["index"], row)
            elif any(row[key] != identity.get(key, row[key]) for key in row):
                raise UserError(f"{folder} is of another checkpoint, task or data; remove it, or give --output.")
    return found


def baseline_detections(run: Path | None, coco: CocoSet) -> Rows | None:
    """Returns those of another finished evaluation, None if none is wanted."""
    folder = run / FOLDER if run and (run / FOLDER).is_dir() else run
    if folder is None:
        return None
    if not (folder / RESULT_FILE).is_file():
        raise UserFileNotFoundError(f"--baseline {folder} holds no finished evaluation.")
    rows = kept_detections(folder, {"annotations_sha256": coco.sha256, "task": coco.task}, coco)
    if len(rows) < len(coco.images):
        raise UserError(f"--baseline {folder} was evaluated on other pictures of {coco.annotations}.")
    return rows


@torch.inference_mode()
def detected(network: FasterRCNN, coco: CocoSet, index: int) -> dict[str, Any]:
    """Returns {"detections": in COCO's format for results} of an image, and why it is "broken" if it is."""
    try:
        picture = read_picture(coco, index)
    except BrokenPicture as error:
        return {"detections": [], "broken": str(error)}
    (found,) = network([picture.to(next(network.parameters()).device) / 255])
    rows, sizes = [], found["boxes"][:, 2:] - found["boxes"][:, :2]
    for i, (label, score) in enumerate(zip(found["labels"].tolist(), found["scores"].tolist(), strict=True)):
        row = {"image_id": coco.images[index]["id"], "category_id": coco.category_ids[label - 1], "score": score}
        row["bbox"] = found["boxes"][i, :2].tolist() + sizes[i].tolist()
        if "masks" in found:
            mask = run_lengths.encode(np.asfortranarray((found["masks"][i, 0] > 0.5).cpu().numpy(), np.uint8))
            row["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode()}
        elif "keypoints" in found:
            row["keypoints"] = found["keypoints"][i].flatten().tolist()
        rows.append(row)
    return {"detections": rows}


def finish(folder: Path, coco: CocoSet, rows: Rows, other: Rows | None, result: dict[str, Any]) -> None:
    """Computes the metrics, writes result.json, and prints the table; `other` are the baseline's detections."""
    broken = [row["broken"] for row in rows.values() if "broken" in row]
    result |= {"num_images": len(rows), "num_broken": len(broken), "broken": broken}
    result["interval"] = f"{LEVEL:.0%}, basic bootstrap over {RESAMPLES} resamples of the images"
    table = Table("", *average_precision.NAMES, "interval of ap", title=f"{len(rows)} images, {len(broken)} broken")
    ids = [coco.category_ids[coco.names.index(category)] for category in result["categories"]]
    for name, kind in average_precision.KINDS[coco.task].items():
        ours = average_precision.evaluate(coco, rows, kind, ids)
        values, matches = average_precision.metrics_of(ours), average_precision.matches_of(ours)
        add_row(table, result, name, values, basic_interval([matches], len(rows)))
        each = average_precision.average_precision(matches, np.ones((1, len(rows))))[0].tolist()
        names = [coco.names[coco.category_ids.index(one.category)] for one in matches]
        result[f"{name}_ap_of_categories"] = dict(zip(names, each, strict=True))
        if other is not None:
            theirs = average_precision.evaluate(coco, other, kind, ids)
            both, gain = [matches, average_precision.matches_of(theirs)], float(ours.stats[0] - theirs.stats[0])
            add_row(table, result, f"{name}_gain", {"ap": gain}, basic_interval(both, len(rows)))
    write_text(folder / RESULT_FILE, json.dumps(result, indent=1))
    Console(width=120).print(table)
    for reason in broken[:10]:
        print(f"broken picture, without detections: {reason}")
    print(f"results      {folder / RESULT_FILE}")


def basic_interval(matches: list[list[average_precision.Matches]], images: int) -> tuple[float, float]:
    """Returns the interval of AP, or of the first network's minus the second's.

    AP of resamples, which repeat images, is biased upwards against AP of the sample, as that is against AP of all
    images: the basic interval, 2 AP minus the percentiles, corrects for this.
    """

    def value(weights: np.ndarray) -> np.ndarray:
        first, *others = (np.nanmean(average_precision.average_precision(one, weights), 1) for one in matches)
        return first - sum(others)

    middle, found, least = value(np.ones((1, images)))[0], bootstrap(value, images), 1 - len(matches)
    return float(max(2 * middle - found.high, least)), float(min(2 * middle - found.low, 1))


def add_row(table: Table, result: dict[str, Any], name: str, values: dict[str, Any], ends: tuple[float, float]) -> None:
    result |= {f"{name}_{key}": value for key, value in values.items()} | {f"{name}_ap_interval": ends}
    cells = [f"{100 * values[key]:.2f}" if values.get(key) is not None else "-" for key in average_precision.NAMES]
    table.add_row(name, *cells, "{:.2f} to {:.2f}".format(*(100 * end for end in ends)))


if __name__ == "__main__":
    main()
