"""report.html: an evaluation as a page of one file, to be opened anywhere.

V videos, K classes.
"""

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image

from nlvideo.data.clips.sampling import resized_size
from nlvideo.data.decoding.opening import open_video
from nlvideo.data.decoding.video import DecodeError, SlowVideo
from nlvideo.data.lists.path_list import VideoTable
from nlvideo.evaluation import metrics
from nlvideo.evaluation.result_files import SHOWN, Evaluation, per_class
from nlvideo.runtime.names import in_picture
from nlvideo.training.run_status import write_whole

REPORT_FILE = "report.html"
SHOWN_VIDEOS = 6  # best, and worst
STRIP_FRAMES, STRIP_HEIGHT, STRIP_GAP = 8, 96, 3
NAMED_CLASSES = 60  # more are drawn without names
CONFUSED = 15
PROTOCOL = (
    "checkpoint checkpoint_sha256 step list list_sha256 num_videos num_undecodable num_missing num_frames "
    "frame_stride views activation batch_norm precision device num_devices views_per_step videos_per_step "
    "num_threads decoder mean std versions seconds"
).split()


def write_report(evaluation: Evaluation, table: VideoTable, *, decoder: str, frame_rate: float) -> Path:
    """Writes report.html beside the results and returns its path.

    The videos with the best and the worst scores are opened once more, for a strip of their frames.
    """
    from jinja2 import Environment

    result, main = evaluation.result, metrics.headline(evaluation.result)
    views = result["views"]
    template = Environment(autoescape=True).from_string((files("nlvideo.evaluation") / "report.html.j2").read_text())
    counts, values = per_class(evaluation.scores, evaluation.targets, evaluation.multi_label)
    page = template.render(
        title=f"Evaluation of {Path(result['checkpoint']).parent.name or result['checkpoint']}, step {result['step']}",
        subtitle=f"{result['num_videos']} videos of {len(evaluation.classes)} classes, {views['num_clips']} clips x "
        f"{views['num_crops']} crops, {result['num_undecodable']} undecodable",
        scores=[_score(result, key) for key in SHOWN if key in result],
        interval=result["interval"],
        views_picture=_views_picture(result, main),
        classes_picture=_classes_picture(evaluation, counts, values),
        confusion_picture=None if evaluation.multi_label else _confusion_picture(evaluation),
        confused=[] if evaluation.multi_label else _confused(evaluation),
        videos=_videos(evaluation, table, decoder, frame_rate),
        undecodable=result["undecodable"],
        protocol=[(key, result[key]) for key in PROTOCOL if key in result],
    )
    write_whole(evaluation.folder / REPORT_FILE, page)
    return evaluation.folder / REPORT_FILE


def _score(result: dict[str, Any], key: str) -> dict[str, str]:
    ends = result.get(f"{key}_interval")
    value = "-" if result[key] is None else f"{100 * result[key]:.2f} %"
    return {
        "name": SHOWN[key],
        "value": value,
        "interval": "{:.2f} to {:.2f}".format(*(100 * e for e in ends)) if ends else "",
    }


def _views_picture(result: dict[str, Any], main: str) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True, width_ratios=(3, 1)), ("clips", "crops"), strict=True):
        rows = result[f"by_{name}"]
        for key, label in SHOWN.items():
            if rows and rows[0].get(key) is not None:
                axes.plot([r[name] for r in rows], [100 * r[key] for r in rows], marker=".", label=label)
        axes.set(
            xlabel=f"{name} of each video", xticks=[r[name] for r in rows] if len(rows) <= 10 else axes.get_xticks()
        )
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("%")
    if figure.axes[0].lines:
        figure.axes[0].legend()
    return _picture(figure)


def _classes_picture(evaluation: Evaluation, counts: np.ndarray, values: np.ndarray) -> str:
    from matplotlib.figure import Figure

    order = np.argsort(np.nan_to_num(values, nan=-1), kind="stable")
    order = order[~np.isnan(values[order])]
    height = max(2.5, 0.22 * len(order)) if len(order) <= NAMED_CLASSES else 6
    figure = Figure(figsize=(6, height), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(order)), 100 * values[order], color="#4c78a8", height=0.8 if len(order) <= NAMED_CLASSES else 1)
    if len(order) <= NAMED_CLASSES:
        axes.set_yticks(
            range(len(order)), [f"{in_picture(evaluation.classes[k])} ({counts[k]})" for k in order], fontsize=8
        )
    else:
        axes.set_ylabel(f"{len(order)} classes, by score; names in classes.csv")
    what = "average precision" if evaluation.multi_label else "top-1"
    brackets = ", number of videos in brackets" if len(order) <= NAMED_CLASSES else ""
    axes.set(xlim=(0, 100), ylim=(-0.6, len(order) - 0.4), xlabel=f"{what} (%){brackets}")
    axes.grid(alpha=0.3, axis="x")
    return _picture(figure)


def _confusion_picture(evaluation: Evaluation) -> str:
    from matplotlib.figure import Figure

    matrix = _confusion(evaluation)
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    size, named = len(matrix), len(matrix) <= NAMED_CLASSES
    side = min(9, max(4, 0.3 * size))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.8, label="% of the class's videos")
    axes.set(xlabel="predicted", ylabel="class")
    if named:
        names = [in_picture(name) for name in evaluation.classes]
        axes.set_xticks(range(size), names, rotation=90, fontsize=8)
        axes.set_yticks(range(size), names, fontsize=8)
    if size <= 16:
        for i, j in np.argwhere(matrix):
            axes.text(
                j, i, matrix[i, j], ha="center", va="center", fontsize=8, color="white" if shares[i, j] > 55 else "k"
            )
    return _picture(figure)


def _confusion(evaluation: Evaluation) -> np.ndarray:
    """Returns (K, K) counts: row the class, column the best guess; videos without scores are left out."""
    decoded = ~np.isnan(evaluation.scores).any(1)
    matrix = np.zeros((len(evaluation.classes),) * 2, int)
    np.add.at(matrix, (evaluation.targets[decoded], evaluation.scores[decoded].argmax(1)), 1)
    return matrix


def _confused(evaluation: Evaluation) -> list[dict[str, Any]]:
    matrix = _confusion(evaluation)
    np.fill_diagonal(matrix, 0)
    rows = []
    for flat in np.argsort(-matrix, axis=None, kind="stable")[:CONFUSED]:
        i, j = divmod(int(flat), len(matrix))
        if matrix[i, j]:
            rows.append({"target": evaluation.classes[i], "best": evaluation.classes[j], "count": matrix[i, j]})
    return rows


def _videos(evaluation: Evaluation, table: VideoTable, decoder: str, frame_rate: float) -> list[dict[str, Any]]:
    """Returns the best and the worst videos: by the score of their class, or by the mean over their classes."""
    scores, targets = evaluation.scores, evaluation.targets
    if evaluation.multi_label:
        counted = np.where(targets.any(1), (scores * targets).sum(1) / np.maximum(targets.sum(1), 1), np.nan)
        what = "the mean score of its actions"
    else:
        counted, what = np.take_along_axis(scores, targets[:, None], 1)[:, 0], "the score of its class"
    order = np.argsort(counted, kind="stable")  # NaN comes last
    order = order[~np.isnan(counted[order])]
    best, worst = order[::-1][:SHOWN_VIDEOS], order[:SHOWN_VIDEOS]
    return [
        {
            "title": f"{title} videos",
            "note": f"By {what}.",
            "videos": [_video(evaluation, table, int(i), counted[i], decoder, frame_rate) for i in chosen],
        }
        for title, chosen in (("Worst", worst), ("Best", best))
    ]


def _video(
    evaluation: Evaluation, table: VideoTable, index: int, counted: float, decoder: str, frame_rate: float
) -> dict[str, Any]:
    scores = evaluation.scores[index]
    target = evaluation.targets[index]
    strip, reason = None, ""
    try:
        strip = _strip(table.path(index), decoder, frame_rate)
    except (DecodeError, SlowVideo) as error:  # it was there when it was scored
        reason = error.reason
    best = np.argsort(-scores, kind="stable")[: min(5, len(scores))]
    largest = max(1.0, float(scores[best[0]]))  # sums of scores go beyond 1
    return {
        "name": evaluation.ids[index],
        "says": f"{table.target_names(index) or 'no action'}: {counted:.3f}",
        "strip": strip,
        "reason": reason,
        "best": [
            {
                "name": evaluation.classes[k],
                "score": f"{scores[k]:.3f}",
                "width": round(240 * scores[k] / largest),
                "right": bool(target[k] if evaluation.multi_label else k == target),
            }
            for k in best
        ],
    }


def _strip(path: str, decoder: str, frame_rate: float) -> str:
    with open_video(path, decoder, frame_rate=frame_rate) as video:
        size = resized_size(video.height, video.width, STRIP_HEIGHT)
        wanted = np.unique(np.linspace(0, video.num_frames - 1, STRIP_FRAMES).round().astype(int))
        frames = video.read(wanted, size)  # (F, H, W, 3)
    apart = F.pad(frames, (0, 0, 0, STRIP_GAP), value=255)  # white between them
    pixels = apart.permute(1, 0, 2, 3).reshape(size[0], -1, 3).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _picture(figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
