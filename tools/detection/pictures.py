"""Pictures of a detector's detections beside what its blocks attend to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.utils import draw_segmentation_masks

from detection.networks import BODY, context_blocks
from nlvideo.models.global_context import attention_map
from nlvideo.models.non_local import NonLocalBlock

SURE = 0.5  # detections below this score are not drawn


@torch.inference_mode()
def draw_detections(
    path: Path, network: FasterRCNN, picture: Tensor, names: Sequence[str], query: Sequence[float]
) -> None:
    """Writes a PNG of the detections, and a panel with the attention of the last block of each stage and of the head.

    It is that of the query, x and y in the picture (3, H, W) uint8, or of the centre of the best detection. Blocks in
    the keypoint head attend within the best detection, from its centre; those of GCNet have one map for all queries.
    """
    blocks, seen = dict[str, nn.Module](), dict[str, Tensor]()
    for name, block in context_blocks(network).items():
        blocks[".".join(name.split(".")[:3]) if name.startswith(BODY) else "head"] = block
    handles = [b.register_forward_pre_hook(lambda _, x, n=name: seen.update({n: x[0]})) for name, b in blocks.items()]
    pixels = picture.to(next(network.parameters()).device) / 255
    (found,), batch = network([pixels]), network.transform([pixels])[0]
    for handle in handles:
        handle.remove()
    seen = {name: x for name, x in seen.items() if len(x)}  # the head sees nothing where nothing is detected
    (height, width), (inner_height, inner_width) = picture.shape[1:], batch.image_sizes[0]
    best = found["boxes"][0].tolist() if len(found["boxes"]) else [0, 0, width, height]
    centre = (best[0] + best[2]) / 2, (best[1] + best[3]) / 2
    padded = [0, 0, width * batch.tensors.shape[3] / inner_width, height * batch.tensors.shape[2] / inner_height]
    figure = Figure(figsize=(4 * (1 + len(seen)), 4 * height / width + 0.3), layout="constrained")
    panels = figure.subplots(1, 1 + len(seen), squeeze=False)[0]
    _draw_detections(panels[0], picture, found, names)
    panels[0].set(title=f"detections of at least {SURE:.0%}", xticks=[], yticks=[])
    for axes, (name, x) in zip(panels[1:], seen.items(), strict=True):
        axes.imshow(picture.float().mean(0), cmap="gray", vmin=0, vmax=255)
        where = (best, centre) if name == "head" else (padded, query or centre)
        title = name.removeprefix(BODY) + _draw_map(axes, blocks[name], x[0], *where)
        axes.set(title=title, xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def _draw_map(axes: Axes, block: nn.Module, x: Tensor, area: Sequence[float], query: Sequence[float]) -> str:
    """Draws the weights of a block's keys for a query over the area that its input (C, h, w) covers; says for whom."""
    (_, rows, columns), (x0, y0, x1, y1) = x.shape, area
    step, ending = 1, ", for all queries"
    if isinstance(block, NonLocalBlock):
        step, ending = 2 if block.subsample else 1, ", from the cross"
        row = min(max(int((query[1] - y0) / (y1 - y0) * rows), 0), rows - 1)
        column = min(max(int((query[0] - x0) / (x1 - x0) * columns), 0), columns - 1)
        weights = block.attention_map(x[None, :, None])[0, row * columns + column]
        axes.plot(*query, "+", color="#4dff88", markersize=14, markeredgewidth=2.5)
    else:
        weights = attention_map(x[None], block.key)[0]
    right = x0 + (x1 - x0) * (columns // step * step) / columns  # subsampling drops an odd last row or column
    bottom = y0 + (y1 - y0) * (rows // step * step) / rows
    weights = weights.reshape(rows // step, columns // step).cpu()
    axes.imshow(weights, extent=(x0, right, bottom, y0), cmap="inferno", alpha=0.65, interpolation="bilinear")
    return ending


def _draw_detections(axes: Axes, picture: Tensor, found: Mapping[str, Any], names: Sequence[str]) -> None:
    sure = {key: value[found["scores"] >= SURE].cpu() for key, value in found.items()}
    colours = [f"C{i % 10}" for i in range(len(sure["boxes"]))]
    if colours and "masks" in sure:
        picture = draw_segmentation_masks(picture, sure["masks"][:, 0] > 0.5, 0.5, [*map(to_hex, colours)])
    axes.imshow(picture.permute(1, 2, 0))
    for i, (x0, y0, x1, y1) in enumerate(sure["boxes"].tolist()):
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=colours[i])
        label, at_left = f"{names[sure['labels'][i] - 1]} {sure['scores'][i]:.0%}", x0 < picture.shape[2] - x1
        box = {"facecolor": "black", "alpha": 0.6, "pad": 1, "edgecolor": "none"}
        axes.text(x0 if at_left else x1, y0, label, color="w", size=7, ha="left" if at_left else "right", bbox=box)
        if "keypoints" in sure:
            axes.plot(*sure["keypoints"][i, :, :2].T, ".", color=colours[i], markeredgecolor="white")
