"""report.html: an evaluation as a single-file page that opens anywhere.

V videos, K classes.
"""

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nlvideo.data.clips.sampling import resized_size
from nlvideo.data.decoding.video import DecodeError, SlowVideo, Video
from nlvideo.data.lists.video_table import VideoTable
from nlvideo.evaluation.calibration import calibration
from nlvideo.evaluation.calibration_picture import reliability_figure
from nlvideo.evaluation.pages import Picture, figure_picture, file_url, render_page
from nlvideo.evaluation.result_files import METRIC_NAMES, Evaluation, class_rows, interval_cell, shown_metrics
from nlvideo.evaluation.summary import per_class
from nlvideo.runtime.files import write_text
from nlvideo.runtime.names import in_picture

if TYPE_CHECKING:  # imported on use: not every evaluation writes a report
    from matplotlib.axes import Axes

REPORT_FILE = "report.html"
NUM_VIDEOS = 6  # best, and worst
NUM_TOP_CLASSES = 5  # of each video
STRIP_FRAMES, ROW_FRAMES, STRIP_HEIGHT = 8, 4, 96  # of a video; height in pixels
MAX_NAMED_CLASSES = 60  # more are plotted without names
MAX_COUNTED_CLASSES = 16  # of a confusion matrix with its counts written in
MAX_CONFUSIONS = 15
BAR_SHARE = 80  # percent of its column; the score stands in the rest
WIDTH = 5.4  # of a picture, in inches: readable where a narrow page shows it 370 pixels wide
REPORTED_SETTINGS = (
    "checkpoint checkpoint_sha256 step list list_sha256 num_videos num_undecodable num_missing num_frames "
    "frame_stride views activation batch_norm precision device num_devices views_per_step videos_per_step "
    "num_threads decoder mean std versions seconds"
).split()

Opening = Callable[..., AbstractContextManager[Video]]  # of a path, with the part that is wanted


def write_report(evaluation: Evaluation, table: VideoTable, open_video: Opening) -> Path:
    """Writes report.html into the evaluation's folder and returns its path.

    Args:
        evaluation: as read from its folder.
        table: its videos, in the same order.
        open_video: opens a path; used for strips of frames from the best and the worst videos.
    """
    path = evaluation.folder / REPORT_FILE
    write_text(path, render_page("evaluation/report.html.j2", _content(evaluation, table, open_video)))
    return path


def _content(evaluation: Evaluation, table: VideoTable, open_video: Opening) -> dict[str, Any]:
    """Returns the variables of report.html.j2."""
    result, single_label = evaluation.result, not evaluation.multi_label
    views = result["views"]
    content = {
        "title": f"Evaluation of {Path(result['checkpoint']).parent.name or result['checkpoint']}, step "
        f"{result['step']}",
        "subtitle": f"{result['num_videos']} videos of {len(evaluation.classes)} classes, {views['num_clips']} clips x "
        f"{views['num_crops']} crops, {result['num_undecodable']} undecodable",
        "scores": [_score(result, key, name) for key, name in shown_metrics(result).items()],
        "interval": result["interval"],
        "views_pictures": _views_pictures(result),
        "classes_picture": _classes_picture(evaluation),
        "confusion_picture": _confusion_picture(evaluation) if single_label else None,
        "confused": _most_confused(evaluation) if single_label else [],
        "class_table": _class_table(evaluation),
        "calibration_picture": _calibration_picture(evaluation),
        "videos": _best_and_worst(evaluation, table, open_video),
        "undecodable": result["undecodable"],
        "settings": [(key, result[key]) for key in REPORTED_SETTINGS if key in result],
    }
    return content | {"contents": _contents(content)}


def _contents(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the page's sections, those that it has."""
    sections = {
        "views": ("Views", content["views_pictures"]),
        "classes": ("Classes", True),
        "calibration": ("Calibration", content["calibration_picture"]),
    }
    sections |= {part["id"]: (part["title"], True) for part in content["videos"]}
    sections |= {"undecodable": ("Undecodable", content["undecodable"]), "settings": ("Settings", True)}
    return [{"id": key, "title": title, "children": []} for key, (title, there) in sections.items() if there]


def _score(result: dict[str, Any], key: str, name: str) -> dict[str, str]:
    value = "-" if result[key] is None else f"{100 * result[key]:.2f} %"
    return {"name": name, "value": value, "interval": interval_cell(result, key)}


def _views_pictures(result: dict[str, Any]) -> list[Picture]:
    """Returns a picture for clips and one for crops, those of which there were several."""
    return [_views_picture(result[f"by_{name}"], name) for name in ("clips", "crops") if len(result[f"by_{name}"]) > 1]


def _views_picture(rows: Sequence[dict[str, Any]], name: str) -> Picture:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    said = []
    for key, label in METRIC_NAMES.items():
        if rows[0].get(key) is not None:
            values = [100 * row[key] for row in rows]
            axes.plot([row[name] for row in rows], values, marker=".", label=label)
            said.append(f"{label} {values[0]:.2f} % with {rows[0][name]}, {values[-1]:.2f} % with {rows[-1][name]}")
    low, high = axes.get_ylim()
    axes.set(xlabel=f"{name} per video", ylabel="%", ylim=(max(low, 0), min(high, 100.5)))
    if len(rows) <= 10:
        axes.set_xticks([row[name] for row in rows])
    axes.grid(alpha=0.3)
    if said:
        axes.legend()
    return figure_picture(figure, f"Accuracy by number of {name}: {'; '.join(said)}")


def _classes_picture(evaluation: Evaluation) -> Picture:
    from matplotlib.figure import Figure

    counts, values = per_class(evaluation.scores, evaluation.targets, evaluation.multi_label)
    order = np.argsort(np.nan_to_num(values, nan=-1), kind="stable")
    order = order[~np.isnan(values[order])]
    named = len(order) <= MAX_NAMED_CLASSES
    figure = Figure(figsize=(WIDTH, max(2.5, 0.22 * len(order)) if named else WIDTH), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(order)), 100 * values[order], color="#4c78a8", height=0.8 if named else 1)
    metric = "average precision" if evaluation.multi_label else "top-1"
    if named:
        names = [f"{in_picture(evaluation.classes[k])} ({counts[k]})" for k in order]
        axes.set_yticks(range(len(order)), names, fontsize=9)
        axes.set_xlabel(f"{metric} (%), number of videos in brackets")
    else:
        axes.set_ylabel(f"{len(order)} classes, by score; names in classes.csv")
        axes.set_xlabel(f"{metric} (%)")
    axes.set(xlim=(0, 100), ylim=(-0.6, len(order) - 0.4))
    axes.grid(alpha=0.3, axis="x")
    return figure_picture(figure, f"{metric} of each class: {_extremes(evaluation.classes[order], values[order])}")


def _extremes(names: np.ndarray, values: np.ndarray) -> str:
    """Returns what the picture of these classes shows, from the lowest (C,) fraction to the highest."""
    if len(names) == 0:
        return "no class has one"
    return f"from {100 * values[0]:.2f} % ({names[0]}) to {100 * values[-1]:.2f} % ({names[-1]})"


def _confusion_picture(evaluation: Evaluation) -> Picture:
    from matplotlib.figure import Figure

    matrix = _confusion_matrix(evaluation)
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    size = len(matrix)
    side = min(9, max(WIDTH - 1, 0.3 * size))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.8, label="% of the class's videos")
    axes.set(xlabel="predicted", ylabel="class")
    if size <= MAX_NAMED_CLASSES:
        names = [in_picture(name) for name in evaluation.classes]
        axes.set_xticks(range(size), names, rotation=90, fontsize=9)
        axes.set_yticks(range(size), names, fontsize=9)
    if size <= MAX_COUNTED_CLASSES:
        _write_counts(axes, matrix, shares)
    right = f"{np.trace(matrix)} of {matrix.sum()} videos are on its diagonal"
    return figure_picture(figure, f"Confusion matrix of {size} classes: {right}")


def _write_counts(axes: "Axes", matrix: np.ndarray, shares: np.ndarray) -> None:
    for i, j in np.argwhere(matrix):
        color = "#fefefe" if shares[i, j] > 55 else "#010101"  # on the cell's colour, whatever the page's scheme
        axes.text(j, i, matrix[i, j], ha="center", va="center", fontsize=9, color=color)


def _confusion_matrix(evaluation: Evaluation) -> np.ndarray:
    """Returns (K, K) counts, rows by class, columns by prediction, without undecodable videos."""
    decoded = ~np.isnan(evaluation.scores).any(1)
    matrix = np.zeros((len(evaluation.classes),) * 2, int)
    np.add.at(matrix, (evaluation.targets[decoded], evaluation.scores[decoded].argmax(1)), 1)
    return matrix


def _most_confused(evaluation: Evaluation) -> list[dict[str, Any]]:
    matrix = _confusion_matrix(evaluation)
    np.fill_diagonal(matrix, 0)
    rows = []
    for flat in np.argsort(-matrix, axis=None, kind="stable")[:MAX_CONFUSIONS]:
        i, j = divmod(int(flat), len(matrix))
        if matrix[i, j]:
            rows.append({"target": evaluation.classes[i], "best": evaluation.classes[j], "count": matrix[i, j]})
    return rows


def _class_table(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the titles and the rows of the table of classes, its fractions in percent."""
    rows = class_rows(evaluation.classes.tolist(), evaluation.scores, evaluation.targets)
    titles = {key: {"f1": "F1"}.get(key, key) for key in rows[0] if key != "accuracy"}  # which is the recall

    def cell(value: Any) -> str:
        return "" if value is None else f"{100 * value:.2f}" if isinstance(value, float) else str(value)

    return {"titles": list(titles.values()), "rows": [[cell(row[key]) for key in titles] for row in rows]}


def _calibration_picture(evaluation: Evaluation) -> Picture | None:
    # from the scores, since results before calibration have no bins
    pooling = evaluation.result["views"].get("pooling", "")
    found = calibration(evaluation.scores, evaluation.targets, pooling)
    if not found:
        return None
    alt = f"How often predictions come true, against their score; calibration error {100 * found.error:.2f} %"
    return figure_picture(reliability_figure(found, evaluation.multi_label), alt)


def _best_and_worst(evaluation: Evaluation, table: VideoTable, open_video: Opening) -> list[dict[str, Any]]:
    scores, targets = evaluation.scores, evaluation.targets
    if evaluation.multi_label:
        by = "the mean score of its actions"
        of_target = np.where(targets.any(1), (scores * targets).sum(1) / np.maximum(targets.sum(1), 1), np.nan)
    else:
        by = "the score of its class"
        of_target = np.take_along_axis(scores, targets[:, None], 1)[:, 0]
    order = np.argsort(of_target, kind="stable")
    order = order[~np.isnan(of_target[order])]

    def section(title: str, chosen: np.ndarray) -> dict[str, Any]:
        videos = [_video(evaluation, table, int(i), float(of_target[i]), open_video) for i in chosen]
        return {"id": title.split()[0].lower(), "title": title, "note": f"By {by}.", "videos": videos}

    return [section("Worst videos", order[:NUM_VIDEOS]), section("Best videos", order[::-1][:NUM_VIDEOS])]


def _video(
    evaluation: Evaluation, table: VideoTable, index: int, of_target: float, open_video: Opening
) -> dict[str, Any]:
    scores, target = evaluation.scores[index], evaluation.targets[index]
    strips: list[str] = []
    reason = ""
    try:
        with open_video(table.path(index), part=table.part(index)) as video:
            strips = _strips(video)
    except (DecodeError, SlowVideo) as error:  # removed or damaged since it was scored
        reason = error.reason
    best = np.argsort(-scores, kind="stable")[: min(NUM_TOP_CLASSES, len(scores))]
    largest = max(1.0, float(scores[best[0]]))  # sums over views exceed 1
    return {
        "name": evaluation.ids[index],
        "target": f"{table.target_names(index) or 'no action'}: {of_target:.3f}",
        "strips": strips,
        "reason": reason,
        "best": [
            {
                "name": evaluation.classes[k],
                "score": f"{scores[k]:.3f}",
                "width": round(BAR_SHARE * scores[k] / largest),
                "right": bool(target[k] if evaluation.multi_label else k == target),
            }
            for k in best
        ],
    }


def _strips(video: Video) -> list[str]:
    """Returns frames spread over a video as JPEG data URLs of ROW_FRAMES frames side by side."""
    size = resized_size(video.height, video.width, STRIP_HEIGHT)
    wanted = np.unique(np.linspace(0, video.num_frames - 1, STRIP_FRAMES).round().astype(int))
    frames = video.read(wanted, size)  # (F, H, W, 3)
    return [_strip(frames[i : i + ROW_FRAMES]) for i in range(0, len(frames), ROW_FRAMES)]


def _strip(frames: Tensor) -> str:
    pixels = torch.cat(list(frames), dim=1).numpy()  # (H, F W, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=80)
    return file_url("image/jpeg", file.getvalue())
