"""Exports a checkpoint's network for programs without nlvideo: as ONNX or as a torch.export archive.

    python tools/export.py outputs/default/checkpoint_best.pt network.onnx
    python tools/export.py outputs/default/checkpoint_best.pt network.pt2 --normalize

The export takes clips (batch, 3, frames, height, width) of the training size, in batches of any size, and returns
logits (batch, classes). network.onnx.json beside it says how its clips are made and what it returns; the export holds
the same text. Before it is put in place, its logits are compared with the network's.
scripts/predict_with_onnxruntime.py needs nothing else; nlvideo-predict takes checkpoint=network.onnx too, and
nlvideo-extract with layer=head.
"""

import argparse
import copy
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nlvideo.data.clips.batch import normalize
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.runtime.errors import RunFailed, UserError, UserFileExistsError, UserFileNotFoundError, reporting_errors
from nlvideo.runtime.files import check_writable, replacing, reporting_disk_errors
from nlvideo.weights.foreign_files import EXPORT_ENDINGS
from nlvideo.weights.trained_network import TrainedCheckpoint, read_trained

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest logit
RESIZE = (
    "bilinear with antialiasing, as Pillow's BILINEAR give or take 1, to uint8; the longer side is "
    "round(longer * short_side / shorter)"
)
CROPS = {
    1: "the centre: top, left = (height - crop_size) // 2, (width - crop_size) // 2",
    3: "along the longer side, the width where they are equal: its start, the centre and its end; across it the centre",
}
LOOPED = "frame t is (start + t * frame_stride) % frames"
WINDOW = "last = max(frames - num_frames * frame_stride, 0)"
CLIPS = {  # of a video of so many frames; / divides floats, // rounds down
    "uniform": f"start i is floor(i * last / (num_clips - 1) + 0.5), of a single clip last // 2; {WINDOW}; {LOOPED}",
    "vnl": f"start i is i * frames // num_clips; {LOOPED}",
    "points": f"start i is i * frames // num_clips - num_frames * frame_stride // 2, kept within 0 and last; {WINDOW}; "
    f"{LOOPED}",
    "mmaction": "start i is round(i * last / (num_clips - 1)), of a single clip last // 2; last = max(frames - "
    f"num_frames * frame_stride + frame_stride - 1, 0); {LOOPED}",
    "mmaction_dense": f"start i is floor(i * last / (num_clips - 1)); last = max(frames - 64, 0); {LOOPED}",
    "slowfast": "length = max(num_frames * frame_stride / 30 * fps, 1); start i is max(frames - length, 0) * i / "
    "num_clips; frame t is start + t * (length - 1) / (num_frames - 1), kept within 0 and frames - 1, rounded down",
}


class Normalization(NamedTuple):
    """Mean and standard deviation of RGB values in [0, 1], as in DataConfig."""

    mean: Sequence[float]
    std: Sequence[float]


class NormalizedNetwork(nn.Module):
    """A network that takes uint8 clips and normalises them."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, normalization: Normalization):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(normalization.mean))
        self.register_buffer("std", torch.tensor(normalization.std))

    def forward(self, clips: Tensor) -> Tensor:
        return self.network(normalize(clips, self.mean, self.std, torch.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="the .onnx or .pt2 file to write")
    parser.add_argument("--normalize", action="store_true", help="take uint8 RGB instead of normalised clips")
    arguments = parser.parse_args()
    with reporting_errors():
        export(arguments.checkpoint, arguments.out, arguments.normalize)


def export(checkpoint: Path, out: Path, with_normalization: bool) -> None:
    """Writes the network of a checkpoint and its description, and prints a summary.

    Raises:
        UserError: `out` cannot be written, or the checkpoint cannot be read.
        RunFailed: the export's logits differ from the network's; nothing is written.
    """
    check_output(out)
    trained = read_trained(checkpoint)
    data = trained.config.data
    clip_shape = (3, data.num_frames, data.crop_size, data.crop_size)
    normalization = Normalization(data.mean, data.std) if with_normalization else None
    description = describe(trained, clip_shape, with_normalization)
    difference = export_network(trained.build_network(), clip_shape, out, normalization, description)
    classes = len(trained.classes)
    print(
        f"{out}: clips {' x '.join(map(str, clip_shape))}, {classes} classes, described in {description_of(out).name}"
    )
    print(f"  largest difference from the network: {difference:.1e} of the largest logit, in batches of 1 and 3")


def description_of(out: Path) -> Path:
    """Returns where the description of an export goes."""
    return out.with_name(f"{out.name}.json")


def check_output(out: Path) -> None:
    """Raises UserError unless `out` and its description can be written with the installed packages."""
    if out.suffix not in EXPORT_ENDINGS:
        raise UserError(f"{out} must end in {' or '.join(EXPORT_ENDINGS)}, which selects the format.")
    for path in (out, description_of(out)):
        if os.path.lexists(path):
            raise UserFileExistsError(f"{path} exists already; nothing is overwritten.")
    if not out.parent.is_dir():
        raise UserFileNotFoundError(f"The folder {out.parent} does not exist.")
    check_writable(out.parent, "out")
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing and out.suffix == ".onnx":
        raise UserError(f"ONNX needs the packages {', '.join(missing)}: pip install nlvideo[export]")


def describe(trained: TrainedCheckpoint, clip_shape: Sequence[int], with_normalization: bool) -> dict[str, Any]:
    """Returns the description that is written as JSON: what a program without nlvideo needs to make the same clips."""
    data, test = trained.config.data, trained.config.data.test
    num_crops = 1 if test.crop_size is None else test.num_crops
    return {
        "input": {
            "name": "clips",
            "shape": ["batch", *clip_shape],
            "layout": "batch, RGB channel, frame, height, width",
            "dtype": "uint8" if with_normalization else "float32",
            "values": "0 to 255" if with_normalization else "(RGB / 255 - mean) / std",
        },
        "normalization": {"mean": data.mean, "std": data.std, "inside": with_normalization},
        "num_frames": data.num_frames,
        "frame_stride": data.frame_stride,
        "clip_fps": data.clip_fps,  # null: every frame of the video counts, whatever its rate
        "short_side": max(test.short_side, data.crop_size),
        "crop_size": data.crop_size,
        "resize": RESIZE,
        "views": {
            "num_clips": test.num_clips,
            "num_crops": num_crops,
            "clip_sampling": test.clip_sampling,
            "clips": CLIPS[test.clip_sampling],
            "crops": CROPS[num_crops],
            "pooling": test.pooling,  # of the views' scores, not of their logits
        },
        "output": {
            "name": "logits",
            "shape": ["batch", len(trained.classes)],
            "scores": "sigmoid" if data.is_multi_label else "softmax",
        },
        "block": trained.config.block.kind,
        "checkpoint_sha256": trained.sha256,  # as in the result.json of an evaluation
        "step": trained.step,
        "classes": trained.classes,
    }


@torch.no_grad()
def export_network(
    network: nn.Module,
    clip_shape: tuple[int, int, int, int],
    path: Path,
    normalization: Normalization | None = None,
    description: Mapping[str, Any] | None = None,
) -> float:
    """Writes a network and its description; returns the largest difference of logits over the largest logit.

    Args:
        network: takes normalised clips; put into eval mode, otherwise unchanged.
        clip_shape: (3, T, H, W).
        path: the .onnx or .pt2 file to write.
        normalization: include it in the export, which then takes uint8 clips.
        description: written as JSON into the export and beside it.

    Raises:
        RunFailed: the difference is larger than TOLERANCE, or the disk is full; nothing is written.
    """
    description = dict(description or {})
    network = network.eval() if normalization is None else NormalizedNetwork(network, normalization).eval()
    write, open_runner = (_write_onnx, _onnx_runner) if path.suffix == ".onnx" else (_write_archive, _archive_runner)
    # the network, which holds its description too, is put in place before the description
    with (
        reporting_disk_errors(path),
        replacing(description_of(path)) as partial_description,
        replacing(path) as partial,
    ):
        # Users can do nothing about the warnings of exporters, such as deprecated calls to each other.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write(_program(network, _random_clips(2, clip_shape, normalization), path.suffix), partial, description)
            run = open_runner(partial)
            batches = (_random_clips(size, clip_shape, normalization) for size in (1, 3))
            difference = max(_relative_difference(run(clips), network(clips)) for clips in batches)
        if difference > TOLERANCE:
            raise RunFailed(
                f"{path} would differ from the network by {difference:.1e} of the largest logit, more than "
                f"{TOLERANCE:.0e}; it was not written."
            )
        partial_description.write_text(json.dumps(description, indent=1))
    return difference


def _program(network: nn.Module, clips: Tensor, ending: str) -> torch.export.ExportedProgram:
    """Returns the traced network, for batches of any size."""
    network = copy.deepcopy(network).requires_grad_(False)
    for block in network.modules():
        if isinstance(block, NonLocalBlock):
            # ONNX lacks searchsorted, which concatenation needs. In both formats gaussian would compute its softmax in
            # chunks whose number depends on the batch size, which cannot be traced. The other softmaxes have a fused
            # operator, because their queries and values have the same number of channels.
            block.plain = ending == ".onnx" or block.mode == "gaussian"
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (clips,), dynamic_shapes=({0: batch},), strict=False)
    _forget_source_files(program.graph_module)
    return program


def _forget_source_files(traced: nn.Module) -> None:
    """Removes where each operator's code stands on this machine, which names its user: exports are given to others."""
    for part in traced.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)


def _write_onnx(program: torch.export.ExportedProgram, path: Path, description: Mapping[str, Any]) -> None:
    for name in ("onnxscript", "onnx_ir"):  # they log constants that they cannot fold
        logging.getLogger(name).setLevel(logging.ERROR)
    exported = torch.onnx.export(program, dynamo=True, input_names=["clips"], output_names=["logits"], verbose=False)
    assert exported is not None
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # of the exporter: the modules and the trace, where there is one, of each operator
    exported.model.metadata_props.update({key: json.dumps(value) for key, value in description.items()})
    exported.save(path)


def _write_archive(program: torch.export.ExportedProgram, path: Path, description: Mapping[str, Any]) -> None:
    program.example_inputs = None  # otherwise stored: 2 clips of 32 frames are 38 MB
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files={"description.json": json.dumps(description, indent=1)})


def _onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(["logits"], {"clips": clips.numpy()})[0])


def _archive_runner(path: Path) -> Callable[[Tensor], Tensor]:
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _random_clips(batch: int, clip_shape: Sequence[int], normalization: Normalization | None) -> Tensor:
    """Returns clips that the exported network takes, the same in every call."""
    generator = torch.Generator().manual_seed(batch)
    if normalization is None:
        return torch.randn(batch, *clip_shape, generator=generator)
    return torch.randint(256, (batch, *clip_shape), dtype=torch.uint8, generator=generator)


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    """Returns max |found - expected| / max |expected|; infinity for different shapes and NaN."""
    if found.shape != expected.shape:
        return float("inf")
    difference = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    return difference.nan_to_num(nan=float("inf")).item()


if __name__ == "__main__":
    main()
