"""Pictures: a detector's detections beside what its blocks attend to, and the losses of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detection.networks import BODY, Detector, context_blocks
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.utils import draw_bounding_boxes, draw_keypoints, draw_segmentation_masks

from nlvideo.models.global_context import attention_map
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.training.metrics_file import read_metrics

SURE = 0.5  # detections below this score are not drawn


def draw_losses(folder: Path) -> None:
    """Draws the losses of a run over its steps into its folder."""
    rows, figure = read_metrics(folder), Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in (key for key in (rows[0] if rows else ()) if key.startswith("loss")):
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], label=name)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
    figure.savefig(folder / "curves.png", dpi=110)


@torch.inference_mode()
def draw_detections(
    path: Path, network: Detector, picture: Tensor, names: Sequence[str], query: tuple[float, float] | None
) -> None:
    """Writes a PNG of the detections, and a panel with the attention of the last block of each stage and of the head.

    Args:
        picture: (3, H, W) uint8.
        query: x and y in the picture; None: the centre of the best detection. Blocks in the keypoint head attend within
            the best detection, from its centre; those of GCNet have one map for all queries.
    """
    blocks = {".".join(name.split(".")[:3]): block for name, block in context_blocks(network).items()}  # the last of each
    blocks = {("head" if not name.startswith(BODY) else name): block for name, block in blocks.items()}
    seen: dict[str, Tensor] = {}
    handles = [b.register_forward_pre_hook(lambda _, x, n=name: seen.update({n: x[0]})) for name, b in blocks.items()]
    device = next(network.parameters()).device
    pixels = (picture / 255).to(device)
    (found,) = network([pixels])
    for handle in handles:
        handle.remove()
    height, width = picture.shape[1:]
    best = found["boxes"][0].tolist() if len(found["boxes"]) else [0, 0, width, height]
    centre = ((best[0] + best[2]) / 2, (best[1] + best[3]) / 2)
    padded, (inner,) = (batch := network.transform([pixels])[0]).tensors.shape, batch.image_sizes
    whole = [0, 0, width * padded[3] / inner[1], height * padded[2] / inner[0]]
    figure = Figure(figsize=(4 * (1 + len(seen)), 4 * height / width + 0.3), layout="constrained")
    panels = figure.subplots(1, 1 + len(seen), squeeze=False)[0]
    panels[0].imshow(_with_detections(picture, found, names).permute(1, 2, 0))
    panels[0].set(title=f"detections of at least {SURE:.0%}", xticks=[], yticks=[])
    for axes, (name, x) in zip(panels[1:], seen.items(), strict=True):
        axes.imshow(picture.float().mean(0), cmap="gray")
        of_head = name == "head"
        title = _draw_map(axes, blocks[name], x[0], best if of_head else whole, centre if of_head else query or centre)
        axes.set(title=f"{name.removeprefix(BODY)}{title}", xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def _draw_map(axes: Axes, block: nn.Module, x: Tensor, area: Sequence[float], query: tuple[float, float]) -> str:
    """Draws the weights of a block's keys for a query over the area that its input (C, h, w) covers; says for whom."""
    (_, rows, columns), (x0, y0, x1, y1) = x.shape, area
    step, ending = 1, ", all queries"
    if isinstance(block, NonLocalBlock):
        step, ending = 2 if block.subsample else 1, ", from the cross"
        row, column = int((query[1] - y0) / (y1 - y0) * rows), int((query[0] - x0) / (x1 - x0) * columns)
        weights = block.attention_map(x[None, :, None])[0, row * columns + column]
        axes.plot(*query, "+", color="#4dff88", markersize=14, markeredgewidth=2.5)
    else:
        weights = attention_map(x[None], block.key)[0]
    weights = weights.reshape(rows // step, columns // step).cpu()
    right = x0 + (x1 - x0) * (columns // step * step) / columns  # subsampling drops an odd last row or column
    bottom = y0 + (y1 - y0) * (rows // step * step) / rows
    axes.imshow(weights, extent=(x0, right, bottom, y0), cmap="inferno", alpha=0.65, interpolation="bilinear")
    return ending


def _with_detections(picture: Tensor, found: Mapping[str, Any], names: Sequence[str]) -> Tensor:
    kept = found["scores"] >= SURE
    labels = [f"{names[k - 1]} {score:.0%}" for k, score in zip(found["labels"][kept], found["scores"][kept], strict=True)]
    if not labels:
        return picture
    if "masks" in found:
        picture = draw_segmentation_masks(picture, found["masks"][kept, 0].cpu() > 0.5, alpha=0.5)
    else:
        picture = draw_keypoints(picture, found["keypoints"][kept, :, :2].cpu(), colors="yellow", radius=2)
    return draw_bounding_boxes(picture, found["boxes"][kept].cpu(), labels)
